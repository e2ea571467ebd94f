"""`guardrail eval`: score benchmarks, write a report, compare two of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from guardrail.cli_eval_output import comparison_lines, summary_lines
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
from guardrail.errors import GuardrailError, UsageError

if TYPE_CHECKING:
    from guardrail.evaluation.evaluate import Progress

__all__ = ["Cache", "Data", "Resamples", "Seed", "app", "load_suites", "open_cache"]

Data = Annotated[
    Path | None,
    typer.Option(
        envvar="GUARDRAIL_DATA", help="Folder with copies of the data sets; a set that is not in it is downloaded."
    ),
]
Cache = Annotated[Path | None, typer.Option(help="Folder of judgements made before; default: the user's cache folder.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Judge everything anew, and keep no judgement.")]
AllowOverlap = Annotated[
    bool, typer.Option("--allow-overlap", help="Evaluate on texts that the calibration was fitted on, too.")
]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples for the 95 % intervals.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.")]
BatchSize = Annotated[int, typer.Option(help="Items that are judged together.")]

_INTERRUPTED = 130


class _Group(TyperGroup):
    """`guardrail eval SUITE…` is `guardrail eval run SUITE…`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a classifier on benchmarks: 'guardrail eval SUITE... -o DIR', the same as 'guardrail eval run'.",
)


@app.command()
def run(
    suites: Annotated[
        list[str], typer.Argument(metavar="SUITE...", help="Names from 'guardrail eval list', or YAML files.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report and the scores of every row.")],
    model: Model = "embedded",
    data: Data = None,
    adaptation: Annotated[
        list[str] | None,
        typer.Option(help="'none': the model's taxonomy; 'zero-shot': the suite's; 'few-shot': with examples; 'all'."),
    ] = None,
    taxonomy: TaxonomyOption = None,
    template: Template = None,
    threshold: Threshold = None,
    calibration: CalibrationOption = None,
    allow_overlap: AllowOverlap = False,
    category_scores: CategoryScoresOption = "first",
    served_model: Served = None,
    tokenizer: TokenizerOption = None,
    prompts: Prompts = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: QuantizeOption = None,
    batch_size: BatchSize = 64,
    cache: Cache = None,
    no_cache: NoCache = False,
    no_texts: Annotated[
        bool, typer.Option("--no-texts", help="Keep no text of the data sets in scores and report.")
    ] = False,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    fail_under: Annotated[
        list[str] | None, typer.Option(help="Exit with 1 when a metric is lower: toxic-chat:auprc=0.60.")
    ] = None,
    fail_over: Annotated[
        list[str] | None, typer.Option(help="Exit with 1 when a metric is higher: xstest:fpr=0.20.")
    ] = None,
) -> None:
    """Score benchmarks and write a report: HTML, Markdown, JSON, LaTeX, and every row's score.

    A run that was interrupted goes on when the same command is given again.
    """
    from guardrail.calibration import Calibration
    from guardrail.evaluation.classifier import calibrations_of, open_classifier
    from guardrail.evaluation.evaluate import Plan, check_overlap, evaluate, foreign_runs
    from guardrail.evaluation.gate import Bound, check_bounds, check_judged, check_names
    from guardrail.evaluation.metrics import scikit_learn
    from guardrail.evaluation.report import write_report
    from guardrail.evaluation.summary import Resampling
    from guardrail.taxonomy import Taxonomy

    # What can be wrong is found out before hours of scoring.
    scikit_learn()
    resampling = Resampling(resamples, seed)
    if output.exists() and not output.is_dir():
        raise UsageError(f"-o: {output} is not a folder", hint="name a folder for the report")
    bounds = [Bound.parse("--fail-under", text) for text in fail_under or ()]
    bounds += [Bound.parse("--fail-over", text) for text in fail_over or ()]
    adaptations, every = _adaptations(adaptation or ["none"])
    loaded = load_suites(suites, data)
    options = {"template": template, "device": device, "dtype": dtype, "quantize": quantize}
    options.update(served=served_model, tokenizer=tokenizer, prompts=prompts)
    options = {name: value for name, value in options.items() if value}
    fixed = {"taxonomy": taxonomy, "threshold": threshold, "calibration": calibration}
    classifier = open_classifier(model, options, {**fixed, "category_scores": category_scores})
    given = Calibration.read(Path(calibration)) if calibration else None
    for used in () if allow_overlap else [given] if given else calibrations_of(classifier):
        check_overlap(used, loaded)
    plan = Plan(
        adaptations=adaptations,
        taxonomy=Taxonomy.load(taxonomy) if taxonomy else None,
        calibration=given,
        threshold=threshold,
        category_scores=category_scores,  # type: ignore[arg-type]  # the guard checks it
        batch_size=batch_size,
        texts=not no_texts,
        resampling=resampling,
        command=_command(),
        loading={"model": model, **options, "category_scores": category_scores},
    )
    try:
        with open_cache(cache, no_cache) as judgements, _progress() as progress:
            told = _say if every else None
            planned = partial(check_names, bounds)
            results = evaluate(
                classifier, loaded, output, plan, judgements, progress=progress, skipped=told, planned=planned
            )
    except KeyboardInterrupt:
        raise _interrupted(no_cache) from None
    classifier.close()
    write_report(results, output)
    typer.echo("\n".join(summary_lines(results, output)))
    for name in foreign_runs(output):
        _say(f"{output}: {name} is of an earlier evaluation and not in this report")
    check_judged(results)
    check_bounds(bounds, results)


@app.command("list")
def list_(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The shipped suites."""
    import json

    from guardrail.evaluation.suite import Suite, shipped_suites

    found = [Suite.load(name) for name in shipped_suites()]
    if json_:
        keys = ("id", "name", "description", "licence", "citation", "judged", "notes")
        rows = [
            {**{key: getattr(suite, key) for key in keys}, "label": suite.label_text, "expect": dict(suite.expect)}
            for suite in found
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    width = max(len(suite.id) for suite in found)
    for suite in found:
        items = suite.expect.get("items")
        typer.echo(f"{suite.id:<{width}}  {'' if items is None else items:>6}  {suite.name} ({suite.licence})")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that an evaluation was written to.")],
    threshold: Threshold = None,
    calibration: CalibrationOption = None,
    allow_overlap: AllowOverlap = False,
    resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Make a report anew from its rows, with another threshold or calibration if given; no classifier runs."""
    from guardrail.calibration import Calibration
    from guardrail.evaluation.evaluate import results_of
    from guardrail.evaluation.report import write_report
    from guardrail.evaluation.summary import Resampling

    given = Calibration.read(Path(calibration)) if calibration else None
    results = results_of(
        folder,
        Resampling(resamples, seed),
        threshold=threshold,
        calibration=given,
        allow_overlap=allow_overlap,
        command=_command(),
    )
    write_report(results, folder)
    typer.echo("\n".join(summary_lines(results, folder)))


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(metavar="A", help="Folder of an evaluation.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="Folder of another one.")],
    rows: Annotated[int, typer.Option(help="How many of the rows that changed are shown.")] = 10,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, with all rows that changed.")] = False,
    resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """What B does better or worse than A on the same items, how sure that is, and which rows changed."""
    import json

    from guardrail.evaluation.compare import compare as compared
    from guardrail.evaluation.compare import only_in
    from guardrail.evaluation.summary import Resampling

    found = compared(one, other, Resampling(resamples, seed))
    if json_:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    typer.echo("\n\n".join("\n".join(comparison_lines(entry, rows)) for entry in found))
    for line in only_in(one, other):
        _say(f"not compared: {line}")


def load_suites(names: Sequence[str], data: Path | None) -> list[Any]:
    """The suites with their items; all are found before anything is scored."""
    from guardrail.evaluation.suite import Suite
    from guardrail.evaluation.suite_rows import load_items

    suites = [Suite.load(name) for name in names]
    ids = [suite.id for suite in suites]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise UsageError(f"the suite {twice} is named twice", hint="name each suite once")
    return [load_items(suite, data) for suite in suites]


def open_cache(folder: Path | None, off: bool) -> Any:
    """The cache that the flags name."""
    from guardrail.evaluation.cache import Cache, default_folder

    if off and folder is not None:
        raise UsageError("--cache and --no-cache cannot be given together", hint="leave one of them out")
    return Cache(None if off else folder or default_folder())


def _adaptations(given: Sequence[str]) -> tuple[tuple[Any, ...], bool]:
    """The adaptations, and whether those that a suite does not allow are left out."""
    from guardrail.evaluation.runner import ADAPTATIONS as known

    for name in given:
        if name not in (*known, "all"):
            raise UsageError(f"--adaptation is {name!r}, which is not known", hint=f"known: {', '.join(known)}, all")
    every = "all" in given
    return (known if every else tuple(name for name in known if name in given)), every


def _interrupted(forgotten: bool) -> GuardrailError:
    hint = "without --no-cache it could go on" if forgotten else "the same command goes on from there"
    error = GuardrailError("interrupted", hint=hint)
    error.exit_status = _INTERRUPTED
    return error


def _command() -> str:
    return shlex.join(["guardrail", *sys.argv[1:]])


def _say(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar for each run, when somebody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(suite: str, adaptation: str, done: int, total: int) -> None:
            name = suite if adaptation == "none" else f"{suite}, {adaptation}"
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        yield show
