"""`guardrail score`: judge every row of a file, here or on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardrail.cli_options import (
    CalibrationOption,
    CategoryScoresOption,
    Device,
    Dtype,
    Model,
    Prompts,
    QuantizeOption,
    Served,
    TaxonomyOption,
    Template,
    Threshold,
    TokenizerOption,
)
from guardrail.cli_score_progress import Watch, alone, counts, interrupted, number, progress, say
from guardrail.errors import UsageError

if TYPE_CHECKING:
    from guardrail.batch import Options
    from guardrail.batch_run import Run
    from guardrail.cluster.engine import Progress
    from guardrail.jsonl import LineReader

__all__ = ["score"]

_STDOUT = "-"
_RAY = "Ray engine: "


def score(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="JSONL file, may be gzipped; '-' reads stdin. Ray engine: also Parquet, a folder, 'data/*.jsonl', s3://…",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="JSONL file, compressed when it ends in .gz; '-' is stdout. Ray engine: also a folder of parts, OUT/.",
        ),
    ] = _STDOUT,
    model: Model = "embedded",
    taxonomy: TaxonomyOption = None,
    template: Template = None,
    threshold: Threshold = None,
    calibration: CalibrationOption = None,
    category_scores: CategoryScoresOption = "first",
    served_model: Served = None,
    tokenizer: TokenizerOption = None,
    prompts: Prompts = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: QuantizeOption = None,
    batch_size: Annotated[int, typer.Option(help="Rows that are judged together.")] = 64,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")] = False,
    on_error: Annotated[
        str, typer.Option(help="A row that cannot be judged: 'record' an error row, or 'stop'.")
    ] = "record",
    max_line_bytes: Annotated[int, typer.Option(help="A longer line is an error row.")] = 10_000_000,
    engine: Annotated[str, typer.Option(help="'local', this process, or 'ray', workers on a cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(help=_RAY + "models that run at once; default: what fits.")] = None,
    cpus_per_worker: Annotated[int | None, typer.Option(help=_RAY + "cores for each worker (1).")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help=_RAY + "GPUs for each worker (0).")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help=_RAY + "the cluster; default: RAY_ADDRESS, else one on this machine.")
    ] = None,
    part_bytes: Annotated[int | None, typer.Option(help=_RAY + "input for each part (4194304).")] = None,
    retries: Annotated[
        int | None, typer.Option(help=_RAY + "how often a part whose worker died is redone (3).")
    ] = None,
) -> None:
    """Judge every row of a JSONL file, in order; an interrupted run can be resumed.

    A row has text, or prompt and response, or messages; other keys are carried through to the output.
    """
    from guardrail.batch import Options

    options = Options(
        batch_size=batch_size,
        on_error=on_error,  # type: ignore[arg-type]  # it checks it
        resume=resume,
        overwrite=overwrite,
        engine=engine,
        max_line_bytes=max_line_bytes,
    )
    guard = {
        "taxonomy": taxonomy,
        "template": template,
        "threshold": threshold,
        "calibration": calibration,
        "category_scores": category_scores,
        "served": served_model,
        "tokenizer": tokenizer,
        "prompts": prompts,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
    }
    cluster = {
        "workers": workers,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
        "ray_address": ray_address,
        "part_bytes": part_bytes,
        "retries": retries,
    }
    given = {name: value for name, value in cluster.items() if value is not None}
    watch = Watch()
    try:
        if engine == "ray":
            _on_cluster(source, output, options, model, guard, given, watch)
        else:
            _here(source, output, options, model, guard, given, watch)
    except BrokenPipeError:
        say(f"stopped: the reader of stdout has gone; {watch.summary()}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise interrupted(watch, resumable=output != _STDOUT) from None


def _here(
    source: str,
    output: str,
    options: Options,
    model: str,
    guard: dict[str, Any],
    given: dict[str, Any],
    watch: Watch,
) -> None:
    from guardrail.batch import check_paths, score_file
    from guardrail.cli_options import load_guard

    for name in given:
        raise UsageError(f"--{name.replace('_', '-')} is for --engine ray", hint="leave it out, or add --engine ray")
    check_paths(source, output, options)
    loaded = load_guard(model, **guard)
    with progress(watch) as report:

        def tell(run: Run, lines: LineReader) -> None:
            report(run.tally, 0 if lines.size is None else lines.offset, lines.size)

        run = score_file(loaded, source, output, options, report=tell)
    name = "stdout" if output == _STDOUT else output
    say(f"{name}: was complete already, {counts(run.tally)}" if watch.tally is None else f"{name}: {watch.summary()}")


def _on_cluster(
    source: str,
    output: str,
    options: Options,
    model: str,
    guard: dict[str, Any],
    given: dict[str, Any],
    watch: Watch,
) -> None:
    from guardrail.cluster.engine import PART_BYTES, ClusterOptions, score
    from guardrail.cluster.model import ModelSpec
    from guardrail.cluster.pool import Size

    size = Size(given.get("workers"), given.get("cpus_per_worker", 1), given.get("gpus_per_worker", 0.0))
    cluster = ClusterOptions(
        size, given.get("ray_address"), given.get("part_bytes", PART_BYTES), given.get("retries", 3)
    )
    spec = ModelSpec.read(model, **{name: value for name, value in guard.items() if value is not None})
    with alone(), progress(watch) as report:

        def tell(state: Progress) -> None:
            report(state.tally, state.parts, state.planned)

        done = score(source, output, spec, options, cluster, report=tell)
    if watch.tally is None:
        say(f"{output}: was complete already, {counts(done.tally)}")
        return
    again = f"; {number(done.again, 'part')} scored again after a worker had died" if done.again else ""
    say(f"{output}: {watch.summary()}{again}")
