"""The rows of a run as arrays, decided anew: what metrics are computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guardrail.evaluation.scored import Scored
from guardrail.judgement import Decided, Judgement
from guardrail.policy import Thresholds
from guardrail.scoring import sigmoid

__all__ = ["Table", "decided_by_service", "places_of", "table_of", "thresholds_text"]


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a run that have a label, as arrays (N,); those without a judgement are apart."""

    rows: tuple[Scored, ...]
    """Labelled and judged, in the order of the arrays."""
    unsafe: NDArray[np.bool_]
    score: NDArray[np.float64]
    """P(unsafe), calibrated."""
    raw: NDArray[np.float64]
    """P(unsafe), before calibration."""
    margin: NDArray[np.float64]
    """Log-odds before calibration, of a cascade's rows after it. They rank as the scores do, also where two scores are
    both 1 in double precision."""
    flagged: NDArray[np.bool_]
    decided: tuple[Decided, ...]
    failed: tuple[Scored, ...]
    """Labelled and not judged."""
    unknown: int
    """Items without a label."""
    truncated: int


def table_of(rows: Iterable[Scored], decider: Callable[[Judgement], Decided]) -> Table:
    """The rows as arrays, decided anew."""
    judged: list[tuple[Scored, Decided]] = []
    failed: list[Scored] = []
    unknown = truncated = 0
    for row in rows:
        truncated += row.judgement.truncated
        decided = decider(row.judgement)
        if row.unsafe is None:
            unknown += 1
        elif decided.scores is None:
            failed.append(row)
        else:
            judged.append((row, decided))
    margins = [row.judgement.margins.unsafe for row, _ in judged if row.judgement.margins]
    calibrated = [decided.margin for _, decided in judged if decided.margin is not None]
    of_two = any(row.judgement.stage for row, _ in judged)
    return Table(
        rows=tuple(row for row, _ in judged),
        unsafe=np.array([row.unsafe for row, _ in judged], dtype=bool),
        score=np.array([decided.scores.unsafe for _, decided in judged if decided.scores], dtype=float),
        raw=np.array([sigmoid(margin) for margin in margins], dtype=float),
        margin=np.array(calibrated if of_two else margins, dtype=float),
        flagged=np.array([decided.flagged for _, decided in judged], dtype=bool),
        decided=tuple(decided for _, decided in judged),
        failed=tuple(failed),
        unknown=unknown,
        truncated=truncated,
    )


def places_of(margin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers between 0 and 1 in the order of the margins, all distinct ones evenly spaced."""
    levels, place = np.unique(margin, return_inverse=True)
    places: NDArray[np.float64] = (place + 1) / (len(levels) + 1)
    return places


def decided_by_service(table: Table, side: Thresholds) -> bool:
    """Whether the verdicts are a service's own, and not by a threshold."""
    return side.own and any(decided.scores.own is not None for decided in table.decided if decided.scores)


def thresholds_text(side: Thresholds, table: Table) -> str:
    """What verdicts were made by, in words."""
    verdict = "none for the verdict" if side.verdict is None else f"{side.verdict:.4g}"
    codes = (f"{code} {value:.4g} by itself" for code, value in side.categories.items())
    return "; ".join(["the service's own verdict" if decided_by_service(table, side) else verdict, *codes])
