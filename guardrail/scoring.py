"""Logits to log-odds to probabilities: pure arithmetic on Python floats, the same for every classifier."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Curve", "Logits", "Margins", "Scores", "highest", "margins", "sigmoid"]

# Beyond this the odds are 0 or 1 in double precision; it keeps infinities out of stored margins.
_CERTAIN = 1000.0


@dataclass(frozen=True, slots=True)
class Logits:
    """What a classifier says about one conversation, before calibration.

    `safe` and `unsafe` are the logits of the two verdicts at the position where the verdict is read. `categories`
    follows the prompt's taxonomy and is empty when it was not asked for. With the form `binary` each is the logit of
    that category alone; with `first` each is log P(this code comes first | the verdict is unsafe), so that their
    exponentials sum to one. `own` is the verdict of a service that decides by thresholds which it does not tell.
    """

    safe: float
    unsafe: float
    categories: tuple[float, ...] = ()
    form: Literal["binary", "first"] = "binary"
    own: bool | None = None


@dataclass(frozen=True, slots=True)
class Margins:
    """Log-odds, log(p / (1 - p)), before calibration: of the verdict unsafe, and of each category in taxonomy order."""

    unsafe: float
    categories: tuple[float, ...] = ()
    own: bool | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Probabilities in [0, 1]: of the verdict unsafe, and of each category in taxonomy order."""

    unsafe: float
    categories: tuple[float, ...]
    own: bool | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """A strictly increasing map from log-odds to calibrated log-odds, so that no ranking ever changes.

    It is linear between `points` (x, y), and goes on with `slope` on both sides of them. One point makes a straight
    line: with `(0, 0)` and the slope 1/T temperature scaling (Guo et al. 2017, section 4.2), with `(0, b)` and the
    slope a Platt scaling (Platt 1999); several make an isotonic fit.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    slope: float = 1.0

    def __post_init__(self) -> None:
        numbers = [value for point in self.points for value in point]
        if not self.points or not all(map(math.isfinite, (*numbers, self.slope))):
            raise ValueError("a curve has one point or more, of finite numbers")
        if not self.slope > 0:
            raise ValueError(f"the slope is {self.slope:g}, which is not above 0")
        for (x, y), (next_x, next_y) in zip(self.points, self.points[1:], strict=False):
            if not (next_x > x and next_y > y):
                raise ValueError("the points of a curve rise in both coordinates")

    @classmethod
    def line(cls, slope: float, intercept: float = 0.0) -> Curve:
        """y = slope x + intercept."""
        return cls(((0.0, intercept),), slope)

    def __call__(self, x: float) -> float:
        """The calibrated log-odds."""
        points = self.points
        if len(points) == 1:  # every category of every row comes by here
            ((near_x, near_y),) = points
            return near_y + self.slope * (x - near_x)
        after = bisect_right(points, x, key=lambda point: point[0])
        if after in (0, len(points)):
            near_x, near_y = points[0] if after == 0 else points[-1]
            return near_y + self.slope * (x - near_x)
        (x0, y0), (x1, y1) = points[after - 1], points[after]
        # Rounding must not carry a value past the segment's end, where the order would change.
        return min(y1, y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow for any finite or infinite argument."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    odds = math.exp(logit)
    return odds / (1.0 + odds)


def margins(logits: Logits) -> Margins:
    """The log-odds of unsafe, from the softmax over the two verdict logits only (Llama Guard paper, section 3.3), and
    of each category: its own logit (`binary`), or the log-odds of P(unsafe) P(code | unsafe) (`first`).

    Raises ValueError for NaN.
    """
    if math.isnan(logits.safe) or math.isnan(logits.unsafe) or any(map(math.isnan, logits.categories)):
        raise ValueError("the classifier returned NaN")
    unsafe = _bounded(logits.unsafe - logits.safe)
    if logits.form == "binary":
        return Margins(unsafe, tuple(map(_bounded, logits.categories)), logits.own)
    return Margins(unsafe, tuple(_joint(unsafe, value) for value in logits.categories), logits.own)


def _bounded(value: float) -> float:
    return max(-_CERTAIN, min(_CERTAIN, value))


def _joint(unsafe: float, code: float) -> float:
    """The log-odds of sigmoid(unsafe) exp(code), which are never above `unsafe`."""
    log_probability = code - (math.log1p(math.exp(-unsafe)) if unsafe > 0 else math.log1p(math.exp(unsafe)) - unsafe)
    if log_probability >= 0:
        return unsafe
    return _bounded(min(unsafe, log_probability - math.log(-math.expm1(log_probability))))


def highest(windows: Sequence[Margins]) -> Margins:
    """The margins of a text that was judged in several windows: the maximum over the windows, each one by itself."""
    if len(windows) == 1:
        return windows[0]
    own = [window.own for window in windows if window.own is not None]
    return Margins(
        max(window.unsafe for window in windows),
        tuple(map(max, zip(*(window.categories for window in windows), strict=True))),
        any(own) if own else None,
    )
