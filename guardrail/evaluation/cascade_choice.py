"""Chooses the band of a cascade from the scores of both classifiers on the same labelled rows.

The bands that come into question hold the first one's threshold or end at it: from there on both sides lie the rows of
which it is less and less unsure. Such a band is two numbers: how many of the distinct scores below the threshold it
has, and how many of those from the threshold on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from guardrail.cascade import Band
from guardrail.errors import InputError, UsageError
from guardrail.evaluation.calibration_fit import between
from guardrail.evaluation.metrics import Bools, Floats

__all__ = ["PLACES", "Chooser", "Rows"]

PLACES = 32
"""Of each end of the band that are tried for a cost target: so many evenly spaced in rows, and as many that grow by a
factor, for narrow bands."""
_EQUAL = 1e-12
_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled rows that both classifiers judged, (N,), and those that count in the share only."""

    unsafe: Bools
    first: Floats
    """P(unsafe), calibrated."""
    second: Floats
    first_margin: Floats
    """Calibrated log-odds: all ranking goes by them."""
    second_margin: Floats
    first_flagged: Bools
    second_flagged: Bools
    unjudged: Floats
    """P(unsafe) by the first of the rows that the second failed on, (M,)."""
    always: int = 0
    """Rows that the first failed on: the second is asked, whatever the band."""

    @property
    def total(self) -> int:
        """All rows."""
        return len(self.unsafe) + len(self.unjudged) + self.always

    def inside(self, band: Band | None) -> Bools:
        """Which of the N rows are in the band; none without one."""
        return _inside(self.first, band)

    def share(self, band: Band | None) -> float:
        """Of all rows those that the second is asked about."""
        asked = self.inside(band).sum() + _inside(self.unjudged, band).sum() + self.always
        return float(asked / self.total)


def _inside(score: Floats, band: Band | None) -> Bools:
    return np.zeros(len(score), dtype=bool) if band is None else (score >= band.low) & (score <= band.high)


class Chooser:
    """Finds bands; deterministic."""

    def __init__(self, rows: Rows, threshold: float) -> None:
        """Raises InputError when only one class is among the rows."""
        if not rows.unsafe.any() or rows.unsafe.all():
            raise InputError("only one class is among the labels", hint="a band needs safe and unsafe rows")
        self._rows = rows
        scores = np.concatenate([rows.first, rows.unjudged])
        self._levels, level = np.unique(scores, return_inverse=True)
        self._split = int(np.searchsorted(self._levels, threshold, side="left"))
        self._level: _Ints = level[: len(rows.first)]
        counts = np.bincount(level, minlength=len(self._levels))
        self._below, self._above = self._outwards(counts)

    def _outwards(self, values: NDArray[np.int64]) -> tuple[_Ints, _Ints]:
        """Sums over the levels next to the threshold, from none of them to all: below it, and from it on."""
        below, above = values[: self._split][::-1], values[self._split :]
        return tuple(np.concatenate([[0], np.cumsum(side)]).astype(np.int64) for side in (below, above))  # type: ignore[return-value]

    def for_cost(self, share: float) -> Band | None:
        """The band with the highest AUPRC among those that ask the second about at most this share of the rows.

        Of equal ones the one that asks about the fewest rows, then the one that goes least far below the threshold.
        None, no band, when the first alone is best. Raises UsageError when what the first failed on is more already.
        """
        most = int(share * self._rows.total + 1e-9) - self._rows.always
        if most < 0:
            failed = f"{self._rows.always} of {self._rows.total} rows"
            raise UsageError(f"the first model failed on {failed}, which are above the cost {share:g} already")
        found = [
            (self._auprc(low, high), int(self._below[low] + self._above[high]), low, high)
            for low in _places(self._below, most)
            for high in _places(self._above, most - int(self._below[low]))
        ]
        best = max(auprc for auprc, *_ in found)
        _, low, high = min(rest for auprc, *rest in found if auprc >= best - _EQUAL)
        return self._band(low, high)

    def for_recall(self, recall: float) -> Band | None:
        """The band that asks the second about the fewest rows among those with this recall at the thresholds.

        Of equal ones the one with the highest AUPRC, then the one that goes least far below the threshold. None when
        the first alone has the recall. Raises InputError when no band has it.
        """
        rows = self._rows
        gained = (rows.second_flagged.astype(int) - rows.first_flagged.astype(int)) * rows.unsafe
        gains = np.bincount(self._level, weights=gained, minlength=len(self._levels)).astype(np.int64)
        below, above = self._outwards(gains)
        found, positive = int((rows.first_flagged & rows.unsafe).sum()), int(rows.unsafe.sum())
        need = recall * positive - 1e-9 - found - below
        # The first place where the gains above the threshold are enough is where their running maximum is.
        high = np.searchsorted(np.maximum.accumulate(above), need, side="left")
        low = np.flatnonzero(high < len(above))
        if not len(low):
            raise InputError(self._out_of_reach(recall, (found + below.max() + above.max()) / positive))
        asked = self._below[low] + self._above[high[low]]
        ties = [int(at) for at in low[asked == asked.min()]]
        best = max(ties, key=lambda at: (round(self._auprc(at, int(high[at])), 12), -at))
        return self._band(best, int(high[best]))

    def _out_of_reach(self, recall: float, most: float) -> str:
        rows = self._rows
        alone = (float(flagged[rows.unsafe].mean()) for flagged in (rows.first_flagged, rows.second_flagged))
        first, second = (f"{value:.3f}" for value in alone)
        return (
            f"no band around the first model's threshold has the recall {recall:g}: at most {most:.3f} is reached, "
            f"{first} by the first alone, {second} by the second alone"
        )

    def _band(self, low: int, high: int) -> Band | None:
        """With so many levels below the threshold and so many from it on; its ends lie between two scores."""
        first, end = self._split - low, self._split + high
        if first == end:
            return None
        levels = [float(level) for level in self._levels]
        lower = 0.0 if first == 0 else between(levels[first - 1], levels[first])
        upper = 1.0 if end == len(levels) else _below_next(levels[end - 1], levels[end])
        return Band(lower, upper)

    @cached_property
    def _ranks(self) -> tuple[_Ints, _Ints, int]:
        """The places of all log-odds of both classifiers in one order, and how many distinct ones there are."""
        margins = np.concatenate([self._rows.first_margin, self._rows.second_margin])
        distinct, ranks = np.unique(margins, return_inverse=True)
        return ranks[: len(ranks) // 2], ranks[len(ranks) // 2 :], len(distinct)

    def _auprc(self, low: int, high: int) -> float:
        """As `metrics.auprc`, by counting instead of sorting: it runs a thousand times."""
        first, second, distinct = self._ranks
        inside = (self._level >= self._split - low) & (self._level < self._split + high)
        rank = np.where(inside, second, first)
        unsafe = self._rows.unsafe
        hits = np.bincount(rank[unsafe], minlength=distinct)[::-1]
        flagged = np.cumsum(np.bincount(rank, minlength=distinct)[::-1])
        return float((hits * np.cumsum(hits) / np.maximum(flagged, 1)).sum() / unsafe.sum())


def _places(asked: _Ints, most: int) -> list[int]:
    """Numbers of levels that ask about at most so many rows: none, the most, and some evenly spaced between."""
    affordable = int(np.searchsorted(asked, most, side="right"))
    if affordable <= 2 * PLACES:
        return list(range(affordable))
    wanted = np.concatenate([np.linspace(0, most, PLACES + 1), np.geomspace(1, most, PLACES)])
    return sorted({int(np.searchsorted(asked, rows, side="right")) - 1 for rows in wanted})


def _below_next(level: float, following: float) -> float:
    """The middle, to as few digits (from 4 on) as keep it from `level` on and below the following one."""
    middle = (level + following) / 2
    shortened = (round(middle, digits) for digits in range(4, 18))
    return next((value for value in shortened if level <= value < following), level)
