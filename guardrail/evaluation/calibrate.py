"""Fits a calibration for a guard on labelled items that no report is computed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from guardrail.calibration import Calibration, Side
from guardrail.errors import BackendError, InputError, UsageError
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.calibration_fit import MAX_F1, Method, Target, fit_curve, threshold_for, weights_for
from guardrail.evaluation.overlap import digests_of
from guardrail.evaluation.runner import Judged, judge_items
from guardrail.evaluation.suite_rows import Item, LoadedSuite
from guardrail.guard import Guard
from guardrail.judgement import Judgement
from guardrail.policy import Thresholds
from guardrail.scoring import Curve, Margins, sigmoid
from guardrail.types import Role

__all__ = ["Recipe", "calibrate", "check_purpose", "refuse_evaluation"]

_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Recipe:
    """How curves and thresholds are chosen."""

    method: Method = "platt"
    target: Target = MAX_F1
    prior: float | None = None
    """Assumed share of unsafe messages in use, also where categories are fitted; None takes the data's."""
    categories: bool = False
    """Whether categories get curves and thresholds of their own."""
    at_least: int = 30
    """Rows of either class without which nothing is fitted."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise UsageError(f"--method is {self.method!r}, which is not known", hint=f"known: {known}")
        if self.prior is not None and not 0 < self.prior < 1:
            raise UsageError(f"--prior is {self.prior}", hint="give a share between 0 and 1")
        if self.at_least < 2:
            raise UsageError(f"--at-least is {self.at_least}", hint="give a number from 2")


def check_purpose(suites: Sequence[LoadedSuite]) -> None:
    """Refuse suites that are for evaluation: a report on them could no longer be trusted."""
    refuse_evaluation((loaded.suite.id, loaded.suite.use) for loaded in suites)


def refuse_evaluation(uses: Iterable[tuple[str, str]]) -> None:
    """UsageError for the first suite, given by its id and its use, that is for evaluation."""
    for suite, use in uses:
        if use != "validation":
            raise UsageError(
                f"{suite} is an evaluation set: thresholds fitted on it would flatter every report on it",
                hint="use data of your own with 'use: validation', or say --allow-evaluation-set",
            )


def calibrate(
    guard: Guard, suites: Sequence[LoadedSuite], recipe: Recipe, cache: Cache, *, batch_size: int = 64
) -> tuple[Calibration, list[dict[str, Any]]]:
    """The calibration, and one line of figures for each part that was fitted or left as it was.

    A role, or a category, with too few rows of a class keeps what the guard has now. Items without a label play no
    part, and neither do those that could not be judged. With a prior, items are weighed by their verdicts: those
    without one play no part in categories either, and of a role whose verdict is not fitted no category is. Raises
    InputError when no role can be fitted.
    """
    if len(guard.stages) > 1:
        raise UsageError("a cascade has two calibrations", hint="calibrate each of its models by itself")
    items = [item for loaded in suites for item in loaded.items]
    found = list(judge_items(guard, items, cache, Judged(), batch_size=batch_size))
    judged = [pair for pair in found if pair[1].margins]
    if found and not judged:
        raise BackendError(f"no item could be judged: {found[0][1].error}")
    fitter = _Fitter(guard, recipe, _same_codes(guard, suites))
    user, assistant = (
        fitter.side(role, [pair for pair in judged if pair[1].role is role]) for role in (Role.USER, Role.ASSISTANT)
    )
    verdicts = [line for line in fitter.lines if line["part"] == "verdict"]
    if not any(line["fitted"] for line in verdicts):
        counts = ", ".join(
            f"{line['unsafe']} unsafe and {line['safe']} safe of the {line['role']}" for line in verdicts
        )
        raise InputError(
            f"too few labelled rows: {counts}",
            file=", ".join(loaded.suite.id for loaded in suites),
            hint=f"give at least {recipe.at_least} of each, or lower --at-least",
        )
    fitted = {
        "on": [{"id": loaded.suite.id, "sha256": loaded.sha256, "items": len(loaded.items)} for loaded in suites],
        "date": datetime.now(UTC).date().isoformat(),
        "method": recipe.method,
        "target": str(recipe.target),
        "prior": recipe.prior,
        "not_judged": len(items) - len(judged),
        "texts": " ".join(digests_of(items)),
    }
    return Calibration(user, assistant, guard.backend.name, guard.taxonomy.ref, fitted), fitter.lines


def _same_codes(guard: Guard, suites: Sequence[LoadedSuite]) -> bool:
    """Whether the suites' category labels are of the guard's own taxonomy."""
    return all(
        loaded.suite.taxonomy is not None and loaded.suite.taxonomy.digest == guard.taxonomy.digest for loaded in suites
    )


class _Fitter:
    """Fits one part after the other, and remembers the figures of each."""

    def __init__(self, guard: Guard, recipe: Recipe, same_codes: bool) -> None:
        if recipe.categories and not same_codes:
            raise UsageError(
                f"--categories: the labels are not of the guard's taxonomy {guard.taxonomy.id}",
                hint="give a suite whose taxonomy is the guard's, or leave --categories out",
            )
        self._guard = guard
        self._recipe = recipe
        self.lines: list[dict[str, Any]] = []

    def side(self, role: Role, judged: Sequence[tuple[Item, Judgement]]) -> Side:
        """Curves and thresholds for one judged role."""
        now = self._guard.calibration.side(role)
        rows = [(item, found.margins) for item, found in judged if found.margins]
        labelled = [(item, margins) for item, margins in rows if item.unsafe is not None]
        unsafe = np.array([item.unsafe for item, _ in labelled], dtype=bool)
        verdicts = np.array([margins.unsafe for _, margins in labelled], dtype=float)
        prior = None if self._too_few(unsafe) else self._recipe.prior
        weights = weights_for(unsafe, prior)
        curve, threshold = self._part(role, "verdict", verdicts, unsafe, weights)
        curves: dict[str, Curve] = {}
        thresholds: dict[str, float] = {}
        if self._recipe.categories and prior is not None:
            # The prior is a share of the messages: a row that violates a category weighs what its verdict does.
            curves, thresholds = self._categories(role, labelled, weights)
        elif self._recipe.categories and self._recipe.prior is None:
            curves, thresholds = self._categories(role, rows, np.ones(len(rows)))
        if curve is None and not curves:
            return now
        if threshold is None:
            threshold, curve = now.thresholds.verdict, now.curve
        # What a category had stays where it does not hang on the verdict's curve.
        kept = {code: value for code, value in now.thresholds.categories.items() if code in now.categories}
        own_verdict = now.thresholds.own and curve is now.curve
        chosen = Thresholds(threshold, {**kept, **thresholds}, own_verdict)
        return Side(curve or now.curve, chosen, {**now.categories, **curves})

    def _too_few(self, unsafe: NDArray[np.bool_]) -> bool:
        return min(int(unsafe.sum()), int((~unsafe).sum())) < self._recipe.at_least

    def _categories(
        self, role: Role, rows: Sequence[tuple[Item, Margins]], weights: NDArray[np.float64]
    ) -> tuple[dict[str, Curve], dict[str, float]]:
        """Curves and thresholds by code, of the categories that have enough rows."""
        curves: dict[str, Curve] = {}
        thresholds: dict[str, float] = {}
        for at, code in enumerate(self._guard.taxonomy.codes):
            known = [row for row, (item, _) in enumerate(rows) if item.categories.get(code) is not None]
            violated = np.array([rows[row][0].categories[code] for row in known], dtype=bool)
            values = np.array([rows[row][1].categories[at] for row in known], dtype=float)
            curve, threshold = self._part(role, code, values, violated, weights[known])
            if curve is not None and threshold is not None:
                curves[code], thresholds[code] = curve, threshold
        return curves, thresholds

    def _part(
        self, role: Role, part: str, margins: NDArray[np.float64], unsafe: NDArray[np.bool_],
        weights: NDArray[np.float64],
    ) -> tuple[Curve | None, float | None]:  # fmt: skip
        """The fitted curve and threshold; None when there are too few rows.

        Raises InputError, with role and part, for scores that do not go with the labels, or an unmet target.
        """
        counts = {"role": role.value, "part": part, "unsafe": int(unsafe.sum()), "safe": int((~unsafe).sum())}
        if self._too_few(unsafe):
            self.lines.append({**counts, "fitted": False})
            return None, None
        try:
            curve = fit_curve(self._recipe.method, margins, unsafe, weights)
            calibrated = np.array([curve(margin) for margin in margins])
            scores = np.array([sigmoid(margin) for margin in calibrated])
            threshold = threshold_for(self._recipe.target, scores, unsafe, weights)
        except InputError as error:
            raise InputError(f"{role.value} {part}: {error.reason}", hint=error.hint) from None
        losses = {
            "loss_before": _loss(margins, unsafe, weights),
            "loss": _loss(calibrated, unsafe, weights),
            "loss_unseen": _loss_unseen(self._recipe.method, margins, unsafe, weights),
        }
        self.lines.append({**counts, "fitted": True, **_figures(scores, unsafe, weights, threshold), **losses})
        return curve, threshold


def _figures(
    scores: NDArray[np.float64],
    unsafe: NDArray[np.bool_],
    weights: NDArray[np.float64],
    threshold: float,
) -> Mapping[str, Any]:
    """How the part does on the very rows that it was fitted on, weighted as for the fit."""
    flagged = scores >= threshold
    hits, alarms = float(weights[flagged & unsafe].sum()), float(weights[flagged & ~unsafe].sum())
    positive, negative = float(weights[unsafe].sum()), float(weights[~unsafe].sum())
    return {
        "threshold": threshold,
        "precision": hits / (hits + alarms) if hits + alarms else None,
        "recall": hits / positive,
        "f1": 2 * hits / (hits + alarms + positive),
        "fpr": alarms / negative,
    }


def _loss_unseen(
    method: Method, margins: NDArray[np.float64], unsafe: NDArray[np.bool_], weights: NDArray[np.float64]
) -> float | None:
    """The loss in five-fold cross-validation, the folds alike in labels: what new rows would have.

    None when a fold has too few rows to be fitted.
    """
    fold = np.empty(len(unsafe), dtype=int)
    shuffle = np.random.default_rng(0)
    for label in (True, False):
        rows = shuffle.permutation(np.flatnonzero(unsafe == label))
        fold[rows] = np.arange(len(rows)) % _FOLDS
    calibrated = np.empty(len(margins))
    for number in range(_FOLDS):
        seen = fold != number
        try:
            curve = fit_curve(method, margins[seen], unsafe[seen], weights[seen])
        except InputError:
            return None
        calibrated[~seen] = [curve(margin) for margin in margins[~seen]]
    return _loss(calibrated, unsafe, weights)


def _loss(margins: NDArray[np.float64], unsafe: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """Mean log loss of the probabilities with these log-odds."""
    return float(np.average(np.logaddexp(0, np.where(unsafe, -margins, margins)), weights=weights))
