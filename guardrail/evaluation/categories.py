"""Category scores against category labels, as in the Llama Guard paper (section 4.2).

One against all: a category's rows against all others whose label for it is known. One against benign: a category's
rows against all safe rows, so that a text of another category counts neither way; a row that is safe as a whole is
safe for every category. The score of a category of the
suite is that of the same category of the guard, or else the highest of the guard's categories that share a hazard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from guardrail.evaluation import metrics
from guardrail.evaluation.bootstrap import intervals
from guardrail.evaluation.runner import Run
from guardrail.evaluation.table import Table, places_of
from guardrail.taxonomy import Taxonomy
from guardrail.taxonomy_map import mapping
from guardrail.types import Role

if TYPE_CHECKING:
    from guardrail.evaluation.summary import Resampling

__all__ = ["category_table", "sources"]


def sources(guard: Taxonomy, suite: Taxonomy) -> dict[str, tuple[str, ...]]:
    """The guard's categories that score each category of the suite, by code; empty where nothing corresponds."""
    pairs = mapping(guard, suite).pairs
    found: dict[str, tuple[str, ...]] = {}
    for category in suite:
        same = [own for own in guard if (own.code, own.name) == (category.code, category.name)]
        found[category.code] = (
            (category.code,) if same else tuple(pair.source for pair in pairs if pair.target == category.code)
        )
    return found


def category_table(table: Table, run: Run, resampling: Resampling) -> list[dict[str, Any]]:
    """One entry for each category of the suite that has labels, as in a run's result."""
    if run.suite_taxonomy is None:
        return []
    by_code = sources(run.taxonomy, run.suite_taxonomy)
    labelled = {code for row in table.rows for code, label in row.labels.items() if label is not None}
    return [
        _entry(table, run, category.code, category.name, by_code[category.code], resampling)
        for category in run.suite_taxonomy
        if category.code in labelled
    ]


def _entry(
    table: Table, run: Run, code: str, name: str, origin: tuple[str, ...], resampling: Resampling
) -> dict[str, Any]:
    labels = [row.labels.get(code) for row in table.rows]
    known = np.array([label is not None for label in labels], dtype=bool)
    violated = np.array([bool(label) for label in labels], dtype=bool)
    score = _scores(table, run, origin)
    all_, benign = known, violated | ~table.unsafe
    return {
        "code": code,
        "name": name,
        "unsafe": int(violated.sum()),
        "known": int(known.sum()),
        "from": list(origin),
        "one_vs_all": _auprc(violated[all_], score[all_], resampling) if score is not None else None,
        "one_vs_benign": _auprc(violated[benign], score[benign], resampling) if score is not None else None,
        "chance_all": _share(violated[all_]),
        "chance_benign": _share(violated[benign]),
    }


def _scores(table: Table, run: Run, origin: tuple[str, ...]) -> NDArray[np.float64] | None:
    """The highest of the given categories' log-odds for each row, as numbers from 0 to 1; None when there are none."""
    places = [run.taxonomy.codes.index(code) for code in origin]
    found = [row.judgement.margins for row in table.rows]
    if not places or not all(margins and margins.categories for margins in found):
        return None
    role = Role(run.suite["judged"])
    calibrations = (run.calibration, *([run.second.calibration] if run.second else ()))
    curves = [
        [(at, side.categories.get(run.taxonomy.codes[at], side.curve)) for at in places]
        for side in (calibration.side(role) for calibration in calibrations)
    ]
    highest = [
        max(curve(margins.categories[at]) for at, curve in curves[row.judgement.stage])
        for row, margins in zip(table.rows, found, strict=True)
        if margins
    ]
    return places_of(np.array(highest))


def _auprc(violated: NDArray[np.bool_], score: NDArray[np.float64], resampling: Resampling) -> dict[str, float] | None:
    value = metrics.auprc(violated, score)
    flagged = np.zeros(len(violated), dtype=bool)
    interval = intervals(violated, score, flagged, resamples=resampling.resamples, seed=resampling.seed)["auprc"]
    return None if value is None or interval is None else {"value": value, "low": interval.low, "high": interval.high}


def _share(violated: NDArray[np.bool_]) -> float | None:
    return float(violated.mean()) if len(violated) else None
