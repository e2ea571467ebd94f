"""`guardrail cascade`: from two evaluations, when to ask the second model, what that saves and what it loses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from guardrail.cli_eval import Resamples, Seed
from guardrail.cli_eval_output import table

__all__ = ["cascade"]

_METRICS = ("auprc", "precision", "recall", "fpr", "f1")
_UNDEFINED = "-"


def cascade(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Folder of an evaluation of the first model.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="The same of the second, on the same suites.")],
    recall: Annotated[
        float | None, typer.Option(help="Ask the second as rarely as reaches this recall at the thresholds.")
    ] = None,
    cost: Annotated[
        float | None, typer.Option(help="Ask the second about at most this share, for the highest AUPRC.")
    ] = None,
    band: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="This band; what would it cost and lose?")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write, such as cascade.yaml.")] = None,
    cost_ratio: Annotated[
        float | None, typer.Option(help="Cost of a row with the second over one with the first; default: measured.")
    ] = None,
    first_model: Annotated[str | None, typer.Option(help="Its name in the file; default: as it was evaluated.")] = None,
    second_model: Annotated[str | None, typer.Option(help="The same of the second.")] = None,
    allow_evaluation_set: Annotated[
        bool, typer.Option("--allow-evaluation-set", help="Choose on a set that reports are computed on.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Choose when a cascade asks its second model, from the scores of both; no classifier runs.

    The file is for --model cascade:FILE. Without -o nothing is written.
    """
    from guardrail.cascade import Band
    from guardrail.evaluation.calibrate import refuse_evaluation
    from guardrail.evaluation.cascade_output import check_output, write_cascade
    from guardrail.evaluation.cascade_report import Aim, cascade_results, read_pair
    from guardrail.evaluation.metrics import scikit_learn
    from guardrail.evaluation.summary import Resampling

    scikit_learn()
    aim = Aim(recall, cost, Band(*band) if band is not None else None)
    if output is not None:
        check_output(output, overwrite=overwrite)
    pair = read_pair(first, second)
    if not allow_evaluation_set and (output is not None or aim.band is None):
        refuse_evaluation((suite["id"], suite.get("use", "evaluation")) for suite in pair.suites)
    results = cascade_results(pair, aim, cost_ratio, Resampling(resamples, seed))
    if output is not None:
        write_cascade(output, pair, aim, results, (first_model, second_model))
    if json_:
        models = {"first": pair.first.model, "second": pair.second.model, "taxonomy": pair.first.taxonomy.ref}
        print(json.dumps({**models, "aim": str(aim), "runs": pair.names, "roles": results}, indent=2))
    else:
        print("\n".join(_head(pair)))
        for found in results:
            print("\n".join(("", *_lines(found))))
    for note in _notes(results, output):
        print(note, file=sys.stderr)


def _head(pair: Any) -> Iterator[str]:
    yield f"first:  {pair.first.model} · {pair.first.taxonomy.ref}"
    yield f"second: {pair.second.model} · {pair.second.taxonomy.ref}"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """One role: what is asked, both models and the cascade side by side, and other shares."""
    unjudged = {"first": found["first_failed"], "second": found["second_failed"]}
    left_out = "".join(
        f"; {count} that the {name} failed on are in no metric" for name, count in unjudged.items() if count
    )
    yield f"{found['role']}: {found['items']} rows, {found['unsafe']} of those judged by both unsafe{left_out}"
    yield f"band: {_band(found['band'])}; {found['share']:.1%} of the rows go to the second model"
    yield from _cost_lines(found["cost"])
    costs = {"first": found["cost"]["first"], "second": 1.0, "cascade": found["cost"]["cascade"]}
    head = ("", "cost", *_METRICS, "95 % of AUPRC")
    yield from table([head, *(_system(name, value, found[name]) for name, value in costs.items())])
    yield f"AUPRC lost against the second alone: {_difference(found['lost_to_second'])}"
    yield f"AUPRC gained over the first alone:   {_difference(found['gained_over_first'])}"
    columns = ("at most", "share", "band", *_METRICS, "cost saved")
    yield from table([columns, *map(_point, found["curve"])], left=0)


def _cost_lines(cost: Mapping[str, Any]) -> Iterator[str]:
    if cost["ratio"] is None:
        yield "cost saved: unknown, the evaluations do not tell how long a row takes; give --cost-ratio"
        return
    source = "as measured in the evaluations" if cost["measured"] else "as given"
    when = f"when it costs {cost['ratio']:.3g} times the first, {source}"
    yield f"cost saved against the second alone: {cost['saved']:.1%}, {when}"


def _system(name: str, cost: float | None, metrics: Mapping[str, Mapping[str, float] | None]) -> tuple[str, ...]:
    values = (_number(entry["value"] if (entry := metrics[metric]) else None) for metric in _METRICS)
    auprc = metrics["auprc"]
    ends = f"{auprc['low']:.3f} to {auprc['high']:.3f}" if auprc else _UNDEFINED
    return (name, _number(cost), *values, ends)


def _difference(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return _UNDEFINED
    return f"{entry['value']:+.3f} (95 %: {entry['low']:+.3f} to {entry['high']:+.3f}, p {entry['p']:.3f})"


def _point(point: Mapping[str, Any]) -> tuple[str, ...]:
    saved = _UNDEFINED if point["saved"] is None else f"{point['saved']:.1%}"
    metrics = (_number(point[metric]) for metric in _METRICS)
    return (f"{point['at_most']:.0%}", f"{point['share']:.1%}", _band(point["band"]), *metrics, saved)


def _band(ends: list[float] | None) -> str:
    return f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "none"


def _number(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.3f}"


def _notes(results: list[dict[str, Any]], output: Path | None) -> Iterator[str]:
    for found in results:
        if found["band"] is None:
            yield f"{found['role']}: the first model alone does it; the second is asked only where the first fails"
    missing = {"user", "assistant"} - {found["role"] for found in results}
    if output is not None:
        for role in sorted(missing):
            yield f"{role}: no rows, so no band: there the second is asked only where the first fails"
        yield f"{output}: figures are of the rows that the band was chosen on"
