"""`guardrail train` and `guardrail export`: a guard from labelled rows and a policy of your own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.errors import GuardrailError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guardrail.training.outcome import Outcome

__all__ = ["export", "train"]

_INTERRUPTED = 130
_LIBRARIES = ("torch", "transformers", "accelerate", "sklearn", "safetensors")

Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file that says what is trained, and on what.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the run; the guard is in its 'model'.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL file with labelled rows, instead of the configuration's; can be given several times."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run that was interrupted stopped.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that is there, and start anew.")
    ] = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Also compare before and after on this suite of 'guardrail eval list', or a YAML file."),
    ] = None,
    suite_data: Annotated[
        Path | None, typer.Option(envvar="GUARDRAIL_DATA", help="Folder with copies of the suites' data sets.")
    ] = None,
    json_: Json = False,
) -> None:
    """Train a guard on labelled rows: an encoder, a Llama checkpoint, or a small Llama from nothing.

    Checks the data, trains, picks the best step, calibrates, and compares before and after; all in one folder.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite cannot be given together", hint="leave one of them out")
    _check_libraries()
    from guardrail.training.config import read_config
    from guardrail.training.run import train as trained

    try:
        outcome = trained(
            read_config(config, data or ()),
            output,
            resume=resume,
            overwrite=overwrite,
            suites=suite or (),
            suite_data=suite_data,
            say=_say,
        )
    except KeyboardInterrupt:
        raise _interrupted(output) from None
    if outcome is not None:
        typer.echo(json.dumps(outcome.to_dict(), ensure_ascii=False) if json_ else "\n".join(_summary(outcome)))


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a LoRA adapter or a checkpoint; with --onnx, a run.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the guard.")],
    base: Annotated[str | None, typer.Option(help="Base of the adapter; default: the one that it names.")] = None,
    template: Annotated[str | None, typer.Option(help="Prompt format that it was trained with.")] = None,
    taxonomy: Annotated[
        str | None, typer.Option("--taxonomy", "-t", help="Default taxonomy of the guard, a name or a YAML file.")
    ] = None,
    id_: Annotated[str | None, typer.Option("--id", help="Name of the guard.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="CHECKPOINT is a run that trains an encoder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it is there.")] = False,
    json_: Json = False,
) -> None:
    """Write a guard's folder: from an adapter and its base, a checkpoint, or the best weights of an encoder's run."""
    if output.exists() and not overwrite:
        raise UsageError(f"-o: {output} is there already", hint="name another folder, or replace it with --overwrite")
    if not checkpoint.is_dir():
        raise UsageError(f"there is no folder {checkpoint}", hint="name the folder of an adapter or a checkpoint")
    if onnx and any((base, template, taxonomy, id_)):
        raise UsageError("--onnx: a run has all that is needed", hint="leave --base, --template, --taxonomy, --id out")
    _check_libraries()
    from guardrail.training.quiet import quiet

    with quiet():
        if onnx:
            from guardrail.training.encoder_export import export_encoder

            name = export_encoder(checkpoint, output)
        else:
            from guardrail.training.merge import export_checkpoint

            name = export_checkpoint(checkpoint, output, base=base, template=template, taxonomy=taxonomy, id=id_)
    found = {"name": name, "model": str(output)}
    typer.echo(json.dumps(found) if json_ else f"{name}: guardrail check TEXT --model {output}")


def _check_libraries() -> None:
    """Before any work: one line for an install without the extra."""
    from importlib.util import find_spec

    if missing := next((name for name in _LIBRARIES if find_spec(name) is None), None):
        raise MissingExtraError(missing, "train")


def _summary(outcome: Outcome) -> Iterator[str]:
    from guardrail.training.comparison import comparison_lines

    trained = outcome.trained
    found = ", ".join(f"{name} {value:.3f}" for name, value in trained.metrics.items())
    yield f"{outcome.name}: step {trained.best_step} of {trained.steps}, {found or 'not validated'}"
    yield f"before: {outcome.before or 'no guard'}"
    yield from comparison_lines(outcome.comparison)
    for note in outcome.notes:
        yield f"note: {note}"
    yield f"model: {outcome.model}; card: {outcome.folder / 'MODEL_CARD.md'}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupted(output: Path) -> GuardrailError:
    hint = "the same command with --resume goes on from there" if (output / "config.yaml").is_file() else None
    error = GuardrailError("interrupted", hint=hint)
    error.exit_status = _INTERRUPTED
    return error
