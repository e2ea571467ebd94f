"""Options that several commands share, and how they become a guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from guardrail.guard import Guard

__all__ = [
    "CalibrationOption",
    "CategoryScoresOption",
    "Device",
    "Dtype",
    "Model",
    "Prompts",
    "QuantizeOption",
    "Served",
    "TaxonomyOption",
    "Template",
    "Threshold",
    "TokenizerOption",
    "load_guard",
]

_MODEL_HELP = (
    "'embedded', 'encoder:FOLDER', a Llama Guard checkpoint (id or folder), 'gguf:FILE', 'classifier:CHECKPOINT', "
    "'openai:URL' of a model server, 'openai-moderation:MODEL' or 'perspective:' (these three send the texts there), "
    "or 'cascade:FILE'."
)
Model = Annotated[str, typer.Option("--model", "-m", help=_MODEL_HELP)]
TaxonomyOption = Annotated[
    str | None, typer.Option("--taxonomy", "-t", help="A shipped taxonomy's name or a YAML file; default: the model's.")
]
Template = Annotated[str | None, typer.Option(help="Prompt format to use instead of the checkpoint's own.")]
Threshold = Annotated[float | None, typer.Option(help="Flag from this P(unsafe); default: the calibrated one.")]
CalibrationOption = Annotated[
    str | None,
    typer.Option("--calibration", help="File of 'guardrail calibrate'; default: the weights' own."),
]
CategoryScoresOption = Annotated[
    str, typer.Option(help="'first': one pass; 'each': one prompt per category (Llama checkpoints).")
]
Served = Annotated[
    str | None,
    typer.Option("--served-model", help="Its name on the server ('openai:URL'); default: the only one there."),
]
TokenizerOption = Annotated[
    str | None, typer.Option("--tokenizer", help="Folder or hub id of its tokenizer ('openai:URL'); default: its name.")
]
Prompts = Annotated[
    str | None, typer.Option(help="'tokens', 'text' or 'chat' ('openai:URL'); default: tokens where the server can.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps (checkpoints).")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 (checkpoints).")]
QuantizeOption = Annotated[
    str | None, typer.Option("--quantize", help="8bit, or on CUDA 4bit: less memory (checkpoints).")
]


def load_guard(
    model: str,
    taxonomy: str | None,
    template: str | None,
    threshold: float | None,
    category_scores: str,
    device: str | None,
    dtype: str | None,
    *,
    served: str | None = None,
    tokenizer: str | None = None,
    prompts: str | None = None,
    quantize: str | None = None,
    calibration: str | None = None,
    on_error: str = "closed",
) -> Guard:
    """The guard that the flags describe; flags that were not given are not passed on."""
    from guardrail.loading import load

    given = {"device": device, "dtype": dtype, "quantize": quantize, "served": served, "tokenizer": tokenizer}
    options: dict[str, Any] = {name: value for name, value in {**given, "prompts": prompts}.items() if value}
    return load(
        model,
        taxonomy=taxonomy,
        template=template,
        threshold=threshold,
        calibration=calibration,
        category_scores=category_scores,  # type: ignore[arg-type]  # the guard checks it
        on_error=on_error,  # type: ignore[arg-type]
        **options,
    )
