"""Two evaluations of the same items: differences, their significance, and the rows that were decided differently."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardrail.errors import InputError
from guardrail.evaluation import metrics
from guardrail.evaluation.bootstrap import paired
from guardrail.evaluation.evaluate import run_folders
from guardrail.evaluation.ranking import with_ranking
from guardrail.evaluation.runner import Run
from guardrail.evaluation.scored import read_scores
from guardrail.evaluation.summary import STANDARD, Resampling
from guardrail.evaluation.table import Table, table_of, thresholds_text

__all__ = ["Side", "compare", "only_in", "sides"]

_Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Side:
    """A run with its rows."""

    run: Run
    table: Table


def compare(one: Path, other: Path, resampling: Resampling = STANDARD) -> list[dict[str, Any]]:
    """One entry for each suite and adaptation that both folders have: each side's metrics, b - a, and changed rows.

    Only items that both sides judged are compared; how many were left out is said. Raises InputError when the folders
    have no run in common, or when a suite's data differs between them.
    """
    return [_compared(name, a, b, resampling) for name, a, b in sides(one, other)]


def sides(one: Path, other: Path) -> Iterator[tuple[str, Side, Side]]:
    """Name and both sides of each suite and adaptation that both folders have, on the same data with the same labels.

    Raises InputError where the folders have no run in common, or data or labels differ.
    """
    runs = _runs(one), _runs(other)
    names = [name for name in runs[0] if name in runs[1]]
    if not names:
        hint = f"a has {', '.join(runs[0])}; b has {', '.join(runs[1])}"
        raise InputError("the two have no suite and adaptation in common", file=f"{one}, {other}", hint=hint)
    for name in names:
        places = runs[0][name], runs[1][name]
        a, b = map(_read, places)
        if a.run.suite["sha256"] != b.run.suite["sha256"]:
            hint = "score both on the same files"
            raise InputError("the data of the two runs differs", file=f"{places[0]}, {places[1]}", hint=hint)
        _check_labels(a, b, name)
        yield name, a, b


def only_in(one: Path, other: Path) -> list[str]:
    """The runs that only one of the folders has, each with its folder."""
    runs = _runs(one), _runs(other)
    pairs = ((one, runs[0], runs[1]), (other, runs[1], runs[0]))
    return [f"{name} is only in {place}" for place, here, there in pairs for name in here if name not in there]


def _runs(folder: Path) -> dict[str, Path]:
    """The runs of a report's folder, by `suite/adaptation`."""
    return {f"{place.parent.name}/{place.name}": place for place in run_folders(folder)}


def _compared(name: str, a: Side, b: Side, resampling: Resampling) -> dict[str, Any]:
    places = [{row.id: at for at, row in enumerate(side.table.rows)} for side in (a, b)]
    common = [identity for identity in places[0] if identity in places[1]]
    labelled = {row.id for side in (a, b) for row in (*side.table.rows, *side.table.failed)}
    at_a, at_b = (np.array([place[identity] for identity in common], dtype=int) for place in places)
    return {
        "run": name.removesuffix("/none"),
        "items": len(common),
        "left_out": len(labelled) - len(common),
        "a": _about(a),
        "b": _about(b),
        "metrics": _metrics(a.table, b.table, at_a, at_b, resampling),
        "changed": list(_changed(a.table, b.table, at_a.tolist(), at_b.tolist())),
        "resamples": resampling.resamples,
        "seed": resampling.seed,
    }


def _metrics(a: Table, b: Table, at_a: _Places, at_b: _Places, resampling: Resampling) -> dict[str, dict[str, Any]]:
    """Each metric of both sides on the rows at these places, and b - a; rows rank as in the reports of the two."""
    unsafe, flagged_a, flagged_b = a.unsafe[at_a], a.flagged[at_a], b.flagged[at_b]
    system_a, system_b = (a.score[at_a], a.margin[at_a]), (b.score[at_b], b.margin[at_b])
    differences = with_ranking(
        lambda one, other: paired(unsafe, one, flagged_a, other, flagged_b, **asdict(resampling)), system_a, system_b
    )
    values_a = with_ranking(lambda score: metrics.all_metrics(unsafe, score, flagged_a), system_a)
    values_b = with_ranking(lambda score: metrics.all_metrics(unsafe, score, flagged_b), system_b)
    return {
        name: {"a": values_a[name], "b": values_b[name], **(asdict(difference) if difference else {})}
        for name, difference in differences.items()
    }


def _check_labels(a: Side, b: Side, name: str) -> None:
    """Refuse two runs by suites that label the same items differently."""
    labels = [{row.id: row.unsafe for row in (*side.table.rows, *side.table.failed)} for side in (a, b)]
    if labels[0] != labels[1]:
        differing = sum(labels[0].get(identity) != labels[1].get(identity) for identity in {*labels[0], *labels[1]})
        hint = "the suite file was changed in between: score both with the same one"
        raise InputError(f"the labels of {differing} items differ between the two", file=name, hint=hint)


def _about(side: Side) -> dict[str, Any]:
    policy = side.run.policy.user if side.run.suite["judged"] == "user" else side.run.policy.assistant
    known = {"model": side.run.model, "taxonomy": side.run.taxonomy.ref, "template": side.run.template}
    return {**known, "thresholds": thresholds_text(policy, side.table), "errors": len(side.table.failed)}


def _read(folder: Path) -> Side:
    run = Run.read(folder)
    return Side(run, table_of(read_scores(folder / "scores.jsonl", run.taxonomy, run.rows_sha256), run.decider))


def _changed(a: Table, b: Table, at_a: list[int], at_b: list[int]) -> Iterator[dict[str, Any]]:
    """The rows that only one side flags: first those that b gets right."""
    rows: list[dict[str, Any]] = []
    for here, there in zip(at_a, at_b, strict=True):
        if a.flagged[here] == b.flagged[there]:
            continue
        row = b.rows[there]
        rows.append(
            {
                "id": row.id,
                "unsafe": bool(b.unsafe[there]),
                "a": round(float(a.score[here]), 6),
                "b": round(float(b.score[there]), 6),
                "flagged": "b" if b.flagged[there] else "a",
                "better": "b" if bool(b.flagged[there]) == bool(b.unsafe[there]) else "a",
                "text": row.messages[-1]["content"] if row.messages else None,
            }
        )
    yield from sorted(rows, key=lambda row: (row["better"] == "a", -abs(row["b"] - row["a"])))
