"""Options that several commands share, and how they become a guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from guardrail.guard import Guard

__all__ = [
    "CategoryScoresOption",
    "Device",
    "Dtype",
    "Model",
    "TaxonomyOption",
    "Template",
    "Threshold",
    "load_guard",
]

Model = Annotated[
    str, typer.Option("--model", "-m", help="'embedded', 'encoder:FOLDER', or a Llama Guard checkpoint: id or folder.")
]
TaxonomyOption = Annotated[
    str | None, typer.Option("--taxonomy", "-t", help="A shipped taxonomy's name or a YAML file; default: the model's.")
]
Template = Annotated[str | None, typer.Option(help="Prompt format to use instead of the checkpoint's own.")]
Threshold = Annotated[float | None, typer.Option(help="Flag from this P(unsafe); default: the calibrated one.")]
CategoryScoresOption = Annotated[
    str, typer.Option(help="'first': one pass; 'each': one prompt per category (Llama checkpoints).")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps (Llama checkpoints).")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 (Llama checkpoints).")]


def load_guard(
    model: str,
    taxonomy: str | None,
    template: str | None,
    threshold: float | None,
    category_scores: str,
    device: str | None,
    dtype: str | None,
    *,
    on_error: str = "closed",
) -> Guard:
    """The guard that the flags describe; flags that were not given are not passed on."""
    from guardrail.guard import load

    options: dict[str, Any] = {name: value for name, value in (("device", device), ("dtype", dtype)) if value}
    return load(
        model,
        taxonomy=taxonomy,
        template=template,
        threshold=threshold,
        category_scores=category_scores,  # type: ignore[arg-type]  # the guard checks it
        on_error=on_error,  # type: ignore[arg-type]
        **options,
    )
