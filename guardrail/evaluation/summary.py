"""From a run's rows to the numbers of its report; runs no classifier."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardrail.errors import UsageError
from guardrail.evaluation import metrics
from guardrail.evaluation.bootstrap import intervals
from guardrail.evaluation.categories import category_table
from guardrail.evaluation.overlap import fitted_texts, overlap
from guardrail.evaluation.published import for_suite, load_published, operating_points
from guardrail.evaluation.ranking import with_ranking
from guardrail.evaluation.runner import Run
from guardrail.evaluation.scored import read_scores
from guardrail.evaluation.suite_rows import LENGTHS
from guardrail.evaluation.table import Table, decided_by_service, table_of, thresholds_text
from guardrail.types import Role

__all__ = ["STANDARD", "Resampling", "summarise", "with_intervals"]

_WORST = 15
_REASONS = 5
_SLICE_ROWS = 10
"""A slice of fewer rows is listed without metrics."""
_SLICE_METRICS = ("auprc", "recall", "fpr", "f1")


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made."""

    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 10:
            raise UsageError(f"--resamples is {self.resamples}", hint="give at least 10; 1000 is usual")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}", hint="give a whole number from 0")


STANDARD = Resampling()


def summarise(folder: Path, run: Run, resampling: Resampling = STANDARD) -> dict[str, Any]:
    """The result of the run in a folder, as plain JSON values; what is undefined is None."""
    table = table_of(read_scores(folder / "scores.jsonl", run.taxonomy, run.rows_sha256), run.decider)
    safe = run.suite["items"] - run.suite["unsafe"] - run.suite["unknown"]
    published = for_suite(load_published(), run.suite["id"])
    shares = table.unsafe.mean() if len(table.unsafe) else None
    side = run.policy.side(Role(run.suite["judged"]))
    return {
        "suite": {
            **run.suite,
            "chance": None if shares is None else float(shares),
            "caveat": " ".join(filter(None, (run.suite["caveat"], _overlap_text(table, run)))),
        },
        "adaptation": run.adaptation,
        "model": run.model,
        "taxonomy": run.taxonomy.ref,
        "template": run.template,
        "classifier": run.classifier,
        "calibration": {"digest": run.calibration.digest, "text": _calibration_text(run)},
        "policy": {"user": run.policy.user.to_dict(), "assistant": run.policy.assistant.to_dict()},
        "threshold": None if decided_by_service(table, side) else side.verdict,
        "thresholds": _thresholds_text(run, table),
        "second": _second(run, table),
        "started": run.started,
        "seconds": run.seconds,
        "scored": run.scored,
        "cached": run.cached,
        "guardrail": run.guardrail,
        "environment": run.environment,
        "command": run.command,
        "seed": resampling.seed,
        "resamples": resampling.resamples,
        **_figures(table, resampling),
        "categories": category_table(table, run, resampling),
        "slices": _slices(table, resampling),
        "worst": _worst(table, run),
        "published": published,
        "published_points": operating_points(published, run.suite["unsafe"], safe),
    }


def _thresholds_text(run: Run, table: Table) -> str:
    role = Role(run.suite["judged"])
    first = thresholds_text(run.policy.side(role), table)
    return f"{first}; second model: {thresholds_text(run.second.policy.side(role), table)}" if run.second else first


def _second(run: Run, table: Table) -> dict[str, Any] | None:
    """Of a cascade: its second model, and how many labelled items that judged."""
    if run.second is None:
        return None
    rows = (*table.rows, *table.failed)
    return {"model": run.second.model, "items": sum(row.judgement.stage == 1 for row in rows)}


def _figures(table: Table, resampling: Resampling) -> dict[str, Any]:
    unsafe, score, flagged = table.unsafe, table.score, table.flagged
    confusion = metrics.confusion(unsafe, flagged)
    curves = metrics.curves(unsafe, score)
    point = {name: getattr(confusion, name) for name in ("recall", "precision", "fpr")}
    return {
        "counts": {
            "items": len(unsafe) + len(table.failed) + table.unknown,
            "unsafe": int(unsafe.sum()) + sum(bool(row.unsafe) for row in table.failed),
            "safe": int((~unsafe).sum()) + sum(not row.unsafe for row in table.failed),
            "unknown": table.unknown,
            "errors": len(table.failed),
            "truncated": table.truncated,
        },
        "confusion": {name: getattr(confusion, name) for name in ("tp", "fp", "fn", "tn")},
        "metrics": with_intervals(unsafe, score, table.margin, flagged, resampling),
        "uncalibrated": {"ece": metrics.ece(unsafe, table.raw), "brier": metrics.brier(unsafe, table.raw)},
        "pessimistic": _pessimistic(table) if table.failed else None,
        "failures": _failures(table),
        "curves": {"pr": curves.pr, "roc": curves.roc, "point": point} if curves else None,
        "reliability": {
            "calibrated": [asdict(part) for part in metrics.reliability(unsafe, score)],
            "uncalibrated": [asdict(part) for part in metrics.reliability(unsafe, table.raw)],
        },
        "histogram": asdict(metrics.histogram(unsafe, score)),
    }


def with_intervals(
    unsafe: NDArray[np.bool_],
    score: NDArray[np.float64],
    margin: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    resampling: Resampling,
    names: Sequence[str] = metrics.NAMES,
) -> dict[str, dict[str, float] | None]:
    """Each metric of the names with the ends of its interval; `margin`: log-odds that rank as the scores do, (N,)."""
    resamples, seed = resampling.resamples, resampling.seed
    values = with_ranking(lambda scores: metrics.all_metrics(unsafe, scores, flagged), (score, margin))
    ends = with_ranking(
        lambda scores: intervals(unsafe, scores, flagged, resamples=resamples, seed=seed), (score, margin)
    )
    found: dict[str, dict[str, float] | None] = {}
    for name in names:
        value, interval = values[name], ends[name]
        found[name] = None if value is None or interval is None else {"value": value, **asdict(interval)}
    return found


def _pessimistic(table: Table) -> dict[str, float | None]:
    """The metrics with every error as a mistake: an unsafe item that failed scores 0, a safe one scores 1."""
    failed = np.array([row.unsafe for row in table.failed], dtype=bool)
    found = metrics.all_metrics(
        np.concatenate([table.unsafe, failed]),
        np.concatenate([table.score, (~failed).astype(float)]),
        np.concatenate([table.flagged, ~failed]),
    )
    # In one bin with judged items an error could make up for theirs, so each is in a bin of its own here.
    judged = metrics.ece(table.unsafe, table.score) or 0.0
    found["ece"] = (judged * len(table.unsafe) + len(failed)) / (len(table.unsafe) + len(failed))
    return found


def _overlap_text(table: Table, run: Run) -> str:
    texts = {row.digest for row in (*table.rows, *table.failed) if row.digest}
    share = overlap(fitted_texts(run.calibration), texts)
    return f"The calibration was fitted on texts of this set (about {share:.0%})." if share else ""


def _failures(table: Table) -> list[dict[str, Any]]:
    """Why items could not be judged, the most common reasons first."""
    reasons = Counter(str(row.judgement.error) for row in table.failed)
    return [{"error": reason, "items": count} for reason, count in reasons.most_common(_REASONS)]


def _slices(table: Table, resampling: Resampling) -> list[dict[str, Any]]:
    places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    errors: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for at, row in enumerate(table.rows):
        for part in row.slices.items():
            places[part].append(at)
    for row in table.failed:
        for part in row.slices.items():
            errors[part].append(bool(row.unsafe))
    order = list(dict.fromkeys(name for name, _ in (*places, *errors)))
    listed = sorted({*places, *errors}, key=lambda part: (order.index(part[0]), *_rank(part[1])))
    return [_slice(table, name, value, places[name, value], errors[name, value], resampling) for name, value in listed]


def _rank(value: str) -> tuple[int, str]:
    """Lengths from short to long, all else by the alphabet."""
    return (LENGTHS.index(value), "") if value in LENGTHS else (len(LENGTHS), value)


def _slice(
    table: Table, name: str, value: str, places: Sequence[int], errors: Sequence[bool], resampling: Resampling
) -> dict[str, Any]:
    at = np.array(places, dtype=int)
    unsafe = table.unsafe[at]
    found: Mapping[str, Any] = dict.fromkeys(_SLICE_METRICS)
    if len(places) >= _SLICE_ROWS:
        columns = (table.score[at], table.margin[at], table.flagged[at])
        found = with_intervals(unsafe, *columns, resampling, _SLICE_METRICS)
    total = int(unsafe.sum()) + sum(errors)
    counts = {"items": len(places) + len(errors), "unsafe": total, "errors": len(errors)}
    return {"slice": name, "value": value, **counts, **found}


def _worst(table: Table, run: Run) -> dict[str, list[dict[str, Any]]]:
    """The safe items with the highest scores and the unsafe ones with the lowest, among those decided wrongly."""
    texts = any(row.messages for row in table.rows)
    alarms = [at for at in np.argsort(-table.score, kind="stable") if table.flagged[at] and not table.unsafe[at]]
    misses = [at for at in np.argsort(table.score, kind="stable") if not table.flagged[at] and table.unsafe[at]]
    return {
        name: [_wrong(table, run, int(at)) for at in places[:_WORST]] if texts else []
        for name, places in (("false_positives", alarms), ("false_negatives", misses))
    }


def _wrong(table: Table, run: Run, at: int) -> dict[str, Any]:
    row, decided = table.rows[at], table.decided[at]
    scores = decided.scores.categories if decided.scores else ()
    ranked = sorted(zip(run.taxonomy, scores, strict=False), key=lambda pair: -pair[1])
    categories = [{"code": category.code, "name": category.name, "score": score} for category, score in ranked[:3]]
    return {
        "id": row.id,
        "score": float(table.score[at]),
        "messages": [dict(message) for message in row.messages],
        "categories": categories,
    }


def _calibration_text(run: Run) -> str:
    """The verdict's curve for the judged role, in words."""
    side = run.calibration.user if run.suite["judged"] == "user" else run.calibration.assistant
    if len(side.curve.points) > 1:
        return f"isotonic, {len(side.curve.points)} points"
    ((x, y),) = side.curve.points
    if y - side.curve.slope * x:
        return f"Platt, slope {side.curve.slope:.3g}, intercept {y - side.curve.slope * x:.3g}"
    return "none" if side.curve.slope == 1 else f"temperature {1 / side.curve.slope:.3g}"
