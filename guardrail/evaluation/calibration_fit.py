"""Fits what a calibration file holds: a curve from log-odds to calibrated log-odds, and thresholds by a target.

Arrays have one entry per row: `margins`, log-odds (N,); `unsafe`, bool (N,); `weights`, above 0 (N,).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from guardrail.errors import InputError, MissingExtraError, UsageError
from guardrail.evaluation import metrics
from guardrail.scoring import Curve

__all__ = ["MAX_F1", "Method", "Target", "between", "fit_curve", "threshold_for", "weights_for"]

Method = Literal["none", "temperature", "platt", "isotonic"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_TARGET = re.compile(r"(fpr|recall|precision|cost)(<=|>=|=)([0-9.eE+-]+)")
_SIGNS = {"fpr": "<=", "recall": ">=", "precision": ">=", "cost": "="}
_TARGETS = "max-f1, fpr<=X, recall>=X, precision>=X, cost=X (a miss costs X times a false alarm)"


@dataclass(frozen=True, slots=True)
class Target:
    """What a threshold is chosen for."""

    kind: Literal["max-f1", "fpr", "recall", "precision", "cost"]
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Target:
        """`max-f1`, `fpr<=0.01`, `recall>=0.9`, `precision>=0.8` or `cost=5`."""
        if text == "max-f1":
            return cls("max-f1")
        match = _TARGET.fullmatch(text.replace(" ", ""))
        if match is None or match[2] != _SIGNS[match[1]]:
            raise UsageError(f"--target is {text!r}, which is not known", hint=f"known: {_TARGETS}")
        try:
            value = float(match[3])
        except ValueError:
            value = -1.0
        if not (value > 0 if match[1] == "cost" else 0 <= value <= 1):
            raise UsageError(f"--target: {match[3]} is out of range", hint="a rate is from 0 to 1, a cost above 0")
        return cls(match[1], value)  # type: ignore[arg-type]  # the pattern names them

    def __str__(self) -> str:
        return self.kind if self.kind == "max-f1" else f"{self.kind}{_SIGNS[self.kind]}{self.value:g}"


MAX_F1 = Target("max-f1")


def weights_for(unsafe: Bools, prior: float | None) -> Floats:
    """Weights with the mean 1 under which the share `prior` of the rows is unsafe; all 1 without a prior."""
    if prior is None:
        return np.ones(len(unsafe))
    if not 0 < prior < 1:
        raise UsageError(f"--prior is {prior}", hint="give a share between 0 and 1")
    share = unsafe.mean()
    weights: Floats = np.where(unsafe, prior / share, (1 - prior) / (1 - share))
    return weights


def fit_curve(method: Method, margins: Floats, unsafe: Bools, weights: Floats) -> Curve:
    """The curve with the lowest weighted log loss among those that the method allows.

    Raises InputError when only one class is there, or when higher margins do not go with unsafe rows.
    """
    if method not in get_args(Method):
        raise UsageError(f"--method is {method!r}, which is not known", hint=f"known: {', '.join(get_args(Method))}")
    if unsafe.all() or not unsafe.any():
        raise InputError("only one class is among the labels", hint="a calibration needs safe and unsafe rows")
    if (metrics.auroc(unsafe, margins) or 0.0) < 0.5:
        raise InputError("higher scores do not go with unsafe labels", hint="check the label rule, or the model")
    if method == "none":
        return Curve()
    if method == "temperature":
        return _temperature(margins, unsafe, weights)
    return _platt(margins, unsafe, weights) if method == "platt" else _isotonic(margins, unsafe, weights)


def _temperature(margins: Floats, unsafe: Bools, weights: Floats) -> Curve:
    """Guo et al. 2017, section 4.2; the logarithm of the temperature is searched for between 1/50 and 50."""
    try:
        from scipy.optimize import minimize_scalar
    except ImportError:
        raise MissingExtraError("scikit-learn", "eval") from None
    signed = np.where(unsafe, -margins, margins)

    def loss(log_temperature: float) -> float:
        return float((weights * np.logaddexp(0, signed / np.exp(log_temperature))).sum())

    edge = float(np.log(50))
    found = minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-4})
    return Curve.line(1 / round(float(np.exp(found.x)), 4))


def _platt(margins: Floats, unsafe: Bools, weights: Floats) -> Curve:
    """Platt 1999: logistic regression on smoothed targets, which keeps the slope finite on separable rows."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtraError("scikit-learn", "eval") from None
    positive, negative = weights[unsafe].sum(), weights[~unsafe].sum()
    target = np.where(unsafe, (positive + 1) / (positive + 2), 1 / (negative + 2))
    x = np.concatenate([margins, margins])[:, None]
    y = np.repeat([1, 0], len(margins))
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(
        x, y, np.concatenate([weights * target, weights * (1 - target)])
    )
    slope, intercept = round(float(fitted.coef_[0, 0]), 6), round(float(fitted.intercept_[0]), 6)
    if not slope > 0:
        raise InputError("higher scores do not go with unsafe labels", hint="check the label rule, or the model")
    return Curve.line(slope, intercept)


def _isotonic(margins: Floats, unsafe: Bools, weights: Floats) -> Curve:
    """Isotonic regression through the centres of its blocks (Oron and Flournoy 2017), so that no two scores become one.

    Each block counts half an unsafe and half a safe row more, so that no odds are infinite; blocks that no longer rise
    after that are joined by a second isotonic regression.
    """
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError:
        raise MissingExtraError("scikit-learn", "eval") from None
    fitted = IsotonicRegression(out_of_bounds="clip").fit_transform(
        margins, unsafe.astype(float), sample_weight=weights
    )
    more = float(weights[unsafe].mean()) / 2, float(weights[~unsafe].mean()) / 2
    blocks = []
    for level in np.unique(fitted):
        block = fitted == level
        mass = float(weights[block].sum())
        share = (level * mass + more[0]) / (mass + sum(more))
        blocks.append((float(np.average(margins[block], weights=weights[block])), share, mass + sum(more)))
    x, shares, masses = (np.array(column) for column in zip(*blocks, strict=True))
    joined = IsotonicRegression().fit_transform(x, shares, sample_weight=masses)
    points: list[tuple[float, float]] = []
    for level in np.unique(joined):
        block = joined == level
        centre = round(float(np.average(x[block], weights=masses[block])), 6)
        odds = round(float(np.log(level / (1 - level))), 6)
        if not points or (centre > points[-1][0] and odds > points[-1][1]):  # equal after rounding only
            points.append((centre, odds))
    if len(points) < 2:
        raise InputError("higher scores do not go with unsafe labels", hint="check the label rule, or the model")
    return Curve(tuple(points), 1.0)


def threshold_for(target: Target, scores: Floats, unsafe: Bools, weights: Floats) -> float:
    """The threshold, about midway between two neighbouring scores, that meets the target.

    max-f1 and cost: the best there is; fpr and precision: the lowest that keeps it; recall: the highest that keeps it.
    Raises InputError when only one class is there or no threshold meets the target.
    """
    if unsafe.all() or not unsafe.any():
        raise InputError("only one class is among the labels", hint="a threshold needs safe and unsafe rows")
    order = np.argsort(-scores, kind="stable")
    scores, unsafe, weights = scores[order], unsafe[order], weights[order]
    last = np.append(scores[1:] != scores[:-1], True)
    hits = np.cumsum(weights * unsafe)[last]
    alarms = np.cumsum(weights * ~unsafe)[last]
    levels = scores[last]
    positive, negative = float(hits[-1]), float(alarms[-1])
    best = _best(target, hits, alarms, positive, negative)
    upper = float(levels[best]) if best >= 0 else 1.0
    lower = float(levels[best + 1]) if best + 1 < len(levels) else 0.0
    if best < 0 and lower >= 1.0:
        raise InputError(f"no threshold has {target}: a score is 1", hint="ask for less")
    return between(lower, upper)


def between(lower: float, upper: float) -> float:
    """The middle, to as few digits (from 4 on) as keep it above `lower` and at most `upper`."""
    middle = (lower + upper) / 2
    shortened = (round(middle, digits) for digits in range(4, 18))
    return next((value for value in shortened if lower < value <= upper), upper)


def _best(target: Target, hits: Floats, alarms: Floats, positive: float, negative: float) -> int:
    """How many distinct scores, less one, are flagged; -1 flags none."""
    match target.kind:
        case "max-f1":
            return int(np.argmax(2 * hits / (hits + alarms + positive)))
        case "cost":
            costs = np.append(target.value * positive, target.value * (positive - hits) + alarms)
            return int(np.argmin(costs)) - 1
        case "recall":
            met = np.flatnonzero(hits >= target.value * positive - 1e-9)
            return int(met[0])
        case "fpr":
            met = np.flatnonzero(alarms <= target.value * negative + 1e-9)
            return int(met[-1]) if len(met) else -1
    met = np.flatnonzero(hits >= target.value * (hits + alarms) - 1e-9)
    if not len(met):
        raise InputError(f"no threshold has {target}", hint="ask for less, or give rows of more kinds")
    return int(met[-1])
