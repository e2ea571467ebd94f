"""What a cascade of two evaluated models would cost and lose, from their runs; no classifier runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardrail.cascade import Band
from guardrail.errors import InputError, UsageError
from guardrail.evaluation import metrics
from guardrail.evaluation.bootstrap import paired
from guardrail.evaluation.cascade_choice import Chooser, Rows
from guardrail.evaluation.compare import Side, sides
from guardrail.evaluation.metrics import Bools, Floats
from guardrail.evaluation.runner import Run
from guardrail.evaluation.summary import STANDARD, Resampling, with_intervals
from guardrail.evaluation.table import places_of
from guardrail.types import Role

__all__ = ["SHARES", "Aim", "Pair", "cascade_results", "read_pair"]

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Cost targets of the curve."""
_SHOWN = ("auprc", "precision", "recall", "fpr", "f1")


@dataclass(frozen=True, slots=True)
class Aim:
    """What the band is chosen for, or the band itself: one of the three."""

    recall: float | None = None
    cost: float | None = None
    band: Band | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("recall", "cost", "band") if getattr(self, name) is not None]
        if len(given) != 1:
            both = " and ".join(f"--{name}" for name in given)
            message = f"{both} cannot be given together" if given else "nothing says how the band is chosen"
            raise UsageError(message, hint="give one of --recall, --cost and --band")
        for name, value in (("recall", self.recall), ("cost", self.cost)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"--{name} is {value:g}", hint="give a number from 0 to 1")

    def __str__(self) -> str:
        if self.band is not None:
            return f"band={self.band}"
        return f"cost<={self.cost:g}" if self.recall is None else f"recall>={self.recall:g}"


@dataclass(frozen=True, slots=True)
class Pair:
    """The runs of two models on the same rows."""

    first: Run
    """One of the first model's runs: they agree in all but the suite."""
    second: Run
    names: tuple[str, ...]
    roles: Mapping[Role, Rows]
    suites: tuple[Mapping[str, Any], ...]
    ratio: float | None
    """Seconds for a row with the second over those with the first; None when the runs do not tell."""


def read_pair(one: Path, other: Path) -> Pair:
    """The suites that both evaluations have, rows by judged role.

    Raises InputError when data or labels differ, UsageError when the two cannot be a cascade.
    """
    found = list(sides(one, other))
    firsts, seconds = [a.run for _, a, _ in found], [b.run for _, _, b in found]
    for folder, runs in ((one, firsts), (other, seconds)):
        _check_alike(folder, runs)
    if firsts[0].model == seconds[0].model:
        raise UsageError(f"both evaluations are of {firsts[0].model}", hint="give those of two models")
    if firsts[0].taxonomy.digest != seconds[0].taxonomy.digest:
        refs = f"{firsts[0].taxonomy.ref}, the second under {seconds[0].taxonomy.ref}"
        raise UsageError(f"the first model was scored under {refs}", hint="score both with the same --taxonomy")
    parts: dict[Role, list[Rows]] = {}
    for _, a, b in found:
        parts.setdefault(Role(a.run.suite["judged"]), []).append(_rows(a, b))
    return Pair(
        firsts[0],
        seconds[0],
        tuple(name.removesuffix("/none") for name, _, _ in found),
        {role: _joined(parts[role]) for role in sorted(parts)},
        tuple(run.suite for run in firsts),
        _ratio(firsts, seconds),
    )


def cascade_results(
    pair: Pair, aim: Aim, ratio: float | None = None, resampling: Resampling = STANDARD
) -> list[dict[str, Any]]:
    """For each role the band, what it costs and how the cascade does beside the two models, as plain JSON values.

    `ratio` takes the place of the measured one. Raises InputError when a recall cannot be reached.
    """
    if ratio is not None and not ratio > 0:
        raise UsageError(f"--cost-ratio is {ratio:g}", hint="give a number above 0")
    return [_result(pair, role, rows, aim, ratio, resampling) for role, rows in pair.roles.items()]


def _result(
    pair: Pair, role: Role, rows: Rows, aim: Aim, ratio: float | None, resampling: Resampling
) -> dict[str, Any]:
    threshold, other = (run.policy.side(role).verdict for run in (pair.first, pair.second))
    if threshold is None:
        raise UsageError(f"the first model has no threshold for the verdict on the {role}, so no band lies around it")
    chooser = Chooser(rows, threshold)
    band = _chosen(chooser, aim)
    used = pair.ratio if ratio is None else ratio
    inside = rows.inside(band)
    columns = {"first": np.zeros_like(inside), "second": np.ones_like(inside), "cascade": inside}
    return {
        "role": role.value,
        "items": rows.total,
        "judged": len(rows.unsafe),
        "unsafe": int(rows.unsafe.sum()),
        "first_failed": rows.always,
        "second_failed": len(rows.unjudged),
        "thresholds": {"first": threshold, "second": other},
        "band": _ends(band),
        "share": rows.share(band),
        "cost": _cost(rows.share(band), used, measured=ratio is None),
        **{name: with_intervals(*_system(rows, asked), resampling, _SHOWN) for name, asked in columns.items()},
        "lost_to_second": _difference(rows, inside, columns["second"], resampling),
        "gained_over_first": _difference(rows, columns["first"], inside, resampling),
        "curve": _curve(rows, chooser, used),
    }


def _chosen(chooser: Chooser, aim: Aim) -> Band | None:
    if aim.recall is not None:
        return chooser.for_recall(aim.recall)
    return aim.band if aim.cost is None else chooser.for_cost(aim.cost)


def _curve(rows: Rows, chooser: Chooser, ratio: float | None) -> list[dict[str, Any]]:
    """The band for each of some cost targets; one that was found for less stays where no better one is found."""
    points: list[dict[str, Any]] = []
    for share in SHARES:
        if rows.always > int(share * rows.total + 1e-9):
            continue
        point = _point(rows, chooser.for_cost(share), share, ratio)
        if points and point["auprc"] < points[-1]["auprc"]:
            point = {**points[-1], "at_most": share}
        points.append(point)
    return points


def _system(rows: Rows, asked: Bools) -> tuple[Bools, Floats, Floats, Bools]:
    """Truth, P(unsafe), log-odds and decisions where the second judges what it is asked."""
    return (
        rows.unsafe,
        np.where(asked, rows.second, rows.first),
        np.where(asked, rows.second_margin, rows.first_margin),
        np.where(asked, rows.second_flagged, rows.first_flagged),
    )


def _difference(rows: Rows, asked_a: Bools, asked_b: Bools, resampling: Resampling) -> dict[str, float] | None:
    """The AUPRC of b minus that of a, in the same resamples."""
    (_, _, margin_a, flagged_a), (_, _, margin_b, flagged_b) = _system(rows, asked_a), _system(rows, asked_b)
    columns = (places_of(margin_a), flagged_a, places_of(margin_b), flagged_b)
    found = paired(rows.unsafe, *columns, resamples=resampling.resamples, seed=resampling.seed)["auprc"]
    return asdict(found) if found else None


def _point(rows: Rows, band: Band | None, at_most: float, ratio: float | None) -> dict[str, Any]:
    unsafe, _, margin, flagged = _system(rows, rows.inside(band))
    counts = metrics.confusion(unsafe, flagged)
    share = rows.share(band)
    return {
        "at_most": at_most,
        "share": share,
        "band": _ends(band),
        "auprc": metrics.auprc(unsafe, margin),
        **{name: getattr(counts, name) for name in _SHOWN[1:]},
        "saved": _cost(share, ratio, measured=False)["saved"],
    }


def _ends(band: Band | None) -> list[float] | None:
    return None if band is None else [band.low, band.high]


def _cost(share: float, ratio: float | None, *, measured: bool) -> dict[str, Any]:
    """For a row, with that of the second alone as 1: the first judges each, the second its share."""
    if ratio is None:
        return {"ratio": None, "measured": False, "first": None, "cascade": None, "saved": None}
    cascade = 1 / ratio + share
    return {"ratio": ratio, "measured": measured, "first": 1 / ratio, "cascade": cascade, "saved": 1 - cascade}


def _check_alike(folder: Path, runs: Sequence[Run]) -> None:
    """Refuse an evaluation whose runs differ in what one model of a cascade has once."""
    for run in runs:
        if run.second is not None:
            raise UsageError(f"{folder}: it is of a cascade", hint="give the evaluations of its two models")
    kinds = {
        "models": {run.model for run in runs},
        "taxonomies": {run.taxonomy.ref for run in runs},
        "calibrations": {run.calibration.digest for run in runs},
        "thresholds": {run.policy.digest for run in runs},
    }
    for kind, found in kinds.items():
        if len(found) > 1:
            hint = "score all suites in one command, with --adaptation none"
            raise UsageError(f"{folder}: its runs have different {kind}: {', '.join(sorted(found))}", hint=hint)


def _rows(a: Side, b: Side) -> Rows:
    """The rows of one suite: those that both judged, and the others as far as they count."""
    first = {row.id: at for at, row in enumerate(a.table.rows)}
    second = {row.id: at for at, row in enumerate(b.table.rows)}
    both = [name for name in first if name in second]
    if not both:
        name = a.run.suite["id"]
        raise InputError("there is no labelled row that both models judged", file=name, hint="see the two reports")
    at_a, at_b = (np.array([places[name] for name in both], dtype=int) for places in (first, second))
    only = np.array([at for name, at in first.items() if name not in second], dtype=int)
    return Rows(
        unsafe=a.table.unsafe[at_a],
        first=a.table.score[at_a],
        second=b.table.score[at_b],
        first_margin=_margins(a, at_a),
        second_margin=_margins(b, at_b),
        first_flagged=a.table.flagged[at_a],
        second_flagged=b.table.flagged[at_b],
        unjudged=a.table.score[only],
        always=len(a.table.failed),
    )


def _margins(side: Side, places: NDArray[np.int64]) -> Floats:
    return np.array([side.table.decided[at].margin for at in places], dtype=float)


def _joined(parts: Sequence[Rows]) -> Rows:
    names = [name for name in Rows.__slots__ if name != "always"]
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Rows(**columns, always=sum(part.always for part in parts))


def _ratio(firsts: Sequence[Run], seconds: Sequence[Run]) -> float | None:
    """Where both evaluations judged rows themselves, and long enough to be timed."""
    rates = []
    for runs in (firsts, seconds):
        scored = sum(run.scored for run in runs)
        rates.append(sum(run.seconds for run in runs) / scored if scored else 0.0)
    return rates[1] / rates[0] if all(rates) else None
