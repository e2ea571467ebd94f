"""Suites × adaptations with one classifier: scores every run and gives their results.

OUT/report.html, report.md, report.json, tables.tex
OUT/runs/SUITE/ADAPTATION/scores.jsonl, run.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from guardrail.backends.base import Backend
from guardrail.calibration import Calibration
from guardrail.errors import InputError, TemplateError, UsageError
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.overlap import digests_of, fitted_texts, overlap
from guardrail.evaluation.runner import Adaptation, Run, run_suite
from guardrail.evaluation.scored import Scored, read_scores, write_scores
from guardrail.evaluation.suite_rows import LoadedSuite
from guardrail.evaluation.summary import Resampling, summarise
from guardrail.guard import CategoryScores, Guard, fitting_calibration
from guardrail.policy import Policy
from guardrail.taxonomy import Taxonomy

__all__ = ["Plan", "by_name", "check_overlap", "evaluate", "foreign_runs", "results_of", "run_folders"]

_RUNS = "runs"

Progress = Callable[[str, Adaptation, int, int], None]
"""Given suite id, adaptation, items done and items in all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How suites are scored."""

    adaptations: tuple[Adaptation, ...] = ("none",)
    taxonomy: Taxonomy | None = None
    """In place of the classifier's default, for the adaptation `none`."""
    calibration: Calibration | None = None
    threshold: float | None = None
    category_scores: CategoryScores = "first"
    batch_size: int = 64
    texts: bool = True
    """Whether judged texts are kept in scores.jsonl and shown in the report."""
    resampling: Resampling = field(default_factory=Resampling)
    command: str = ""
    """The command line, for the record."""
    loading: Mapping[str, Any] = field(default_factory=dict)
    """The `model` that was named and the options for it, for the record."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size is {self.batch_size}", hint="give a number from 1")
        if self.taxonomy is not None and "none" not in self.adaptations:
            hint = "add --adaptation none, or leave --taxonomy out"
            raise UsageError("--taxonomy is for the adaptation 'none', which was not asked for", hint=hint)


def evaluate(
    classifier: Backend | Guard,
    suites: Sequence[LoadedSuite],
    folder: Path,
    plan: Plan,
    cache: Cache,
    *,
    progress: Progress | None = None,
    skipped: Callable[[str], None] | None = None,
    planned: Callable[[list[str]], None] | None = None,
) -> list[dict[str, Any]]:
    """Score every suite under every adaptation that it and the classifier allow, and return the results.

    A guard, such as a cascade, brings its taxonomy and thresholds: the plan has none then. `skipped` is told which
    adaptation a suite does not allow, and why; without it that is a UsageError. `planned` is told the names of all runs
    before the first one, as `suite` or `suite/adaptation`.
    """
    jobs = []
    for loaded in suites:
        for adaptation in plan.adaptations:
            try:
                jobs.append((loaded, adaptation, _guard(classifier, loaded, adaptation, plan)))
            except (UsageError, TemplateError) as error:
                if skipped is None:
                    raise
                skipped(f"{loaded.suite.id}, {adaptation}: left out: {error}")
    if not jobs:
        raise UsageError("no suite allows any of the adaptations", hint="give --adaptation none")
    if planned:
        planned([_run_name(loaded.suite.id, adaptation) for loaded, adaptation, _ in jobs])
    results = []
    for loaded, adaptation, guard in jobs:
        place = folder / _RUNS / loaded.suite.id / adaptation
        run = run_suite(
            guard,
            loaded,
            adaptation,
            place,
            cache,
            batch_size=plan.batch_size,
            texts=plan.texts,
            command=plan.command,
            loading=plan.loading,
            report=_reporter(progress, loaded, adaptation),
        )
        results.append(summarise(place, run, plan.resampling))
    return results


def _reporter(progress: Progress | None, loaded: LoadedSuite, adaptation: Adaptation) -> Callable[[int], None] | None:
    if progress is None:
        return None
    return lambda done: progress(loaded.suite.id, adaptation, done, len(loaded.items))


def _guard(classifier: Backend | Guard, loaded: LoadedSuite, adaptation: Adaptation, plan: Plan) -> Guard:
    """The classifier under the taxonomy of the adaptation; UsageError when the suite has none."""
    backend = classifier.backend if isinstance(classifier, Guard) else classifier
    suite = loaded.suite
    choices = {"none": plan.taxonomy, "zero-shot": suite.taxonomy, "few-shot": suite.few_shot}
    taxonomy = choices[adaptation]
    if taxonomy is None and adaptation != "none":
        lacks = "taxonomy of its own" if adaptation == "zero-shot" else "few-shot examples"
        raise UsageError(f"the suite {suite.id} has no {lacks}", hint="leave this --adaptation out, or give 'all'")
    if adaptation == "few-shot" and backend.labels is not None:
        raise UsageError(f"{backend.name} reads no policy, so examples change nothing", hint="leave few-shot out")
    if isinstance(classifier, Guard):
        return classifier if taxonomy is None else classifier.under(taxonomy)
    taxonomy = taxonomy or backend.default_taxonomy
    calibration = fitting_calibration(backend, taxonomy, plan.calibration)
    user, assistant = (side.thresholds.replaced(plan.threshold) for side in (calibration.user, calibration.assistant))
    return Guard(
        backend,
        taxonomy=taxonomy,
        policy=Policy(user, assistant),
        calibration=calibration,
        category_scores=plan.category_scores,
    )


def check_overlap(calibration: Calibration, suites: Iterable[LoadedSuite]) -> None:
    """Refuse suites whose texts the calibration was fitted on: their numbers would flatter it."""
    for loaded in suites:
        _refuse_overlap(calibration, loaded.suite.id, set(digests_of(loaded.items)))


def _refuse_overlap(calibration: Calibration, suite: str, texts: set[str]) -> None:
    share = overlap(fitted_texts(calibration), texts)
    if share > 0:
        raise UsageError(
            f"the calibration was fitted on texts of {suite}: about {share:.0%} of one are in the other",
            hint="calibrate on another set, or say --allow-overlap; the report then tells of it",
        )


def run_folders(folder: Path) -> list[Path]:
    """The folders of the runs that a report is of; InputError when there is no report."""
    file = folder / "report.json"
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
        return [folder / _RUNS / run["suite"]["id"] / run["adaptation"] for run in runs]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a report"
        hint = "give a folder that 'guardrail eval -o' wrote"
        raise InputError(f"cannot be read: {reason}", file=str(file), hint=hint) from None


def foreign_runs(folder: Path) -> list[str]:
    """Runs of earlier evaluations that lie in the folder and are not in its report, as `suite/adaptation`."""
    of_report = set(run_folders(folder))
    found = sorted(file.parent for file in (folder / _RUNS).glob("*/*/run.json"))
    return [f"{place.parent.name}/{place.name}" for place in found if place not in of_report]


def results_of(
    folder: Path,
    resampling: Resampling,
    *,
    threshold: float | None = None,
    calibration: Calibration | None = None,
    allow_overlap: bool = False,
    command: str = "",
) -> list[dict[str, Any]]:
    """The results of a report's folder, made anew from its rows; another threshold or calibration decides them anew.

    Then rows and records are replaced, after all of them were found to fit.
    """
    runs = [(place, Run.read(place)) for place in run_folders(folder)]
    if threshold is not None or calibration is not None:
        if any(run.second for _, run in runs):
            reason = "the run is of a cascade, whose band hangs on its calibrations and thresholds"
            raise UsageError(reason, hint="choose a band anew: guardrail cascade")
        anew = []
        for place, run in runs:
            rows = tuple(read_scores(place / "scores.jsonl", run.taxonomy, run.rows_sha256))
            if calibration is not None:
                run = _calibrated(run, rows, calibration, allow_overlap)
            if threshold is not None:
                user, assistant = (side.replaced(threshold) for side in (run.policy.user, run.policy.assistant))
                run = replace(run, policy=Policy(user, assistant))
            anew.append((place, replace(run, command=f"{run.command}\n{command}".strip()), rows))
        runs = [(place, _rewritten(place, run, rows)) for place, run, rows in anew]
    return [summarise(place, run, resampling) for place, run in runs]


def _calibrated(run: Run, rows: Sequence[Scored], calibration: Calibration, allow_overlap: bool) -> Run:
    """The run with another calibration; UsageError when it is not for this model, taxonomy or data."""
    if calibration.model not in (None, run.model):
        raise UsageError(f"the calibration was fitted for {calibration.model}, the run is of {run.model}")
    if not allow_overlap:
        _refuse_overlap(calibration, run.suite["id"], {row.digest for row in rows if row.digest})
    fitting = calibration.under(run.taxonomy, run.default_taxonomy)
    policy = Policy(fitting.user.thresholds, fitting.assistant.thresholds)
    policy.check(run.taxonomy)
    return replace(run, calibration=fitting, policy=policy)


def _rewritten(place: Path, run: Run, rows: Sequence[Scored]) -> Run:
    """The run with its rows decided anew, as its folder then holds it."""
    decider = run.decider
    run = replace(run, rows_sha256=write_scores(place / "scores.jsonl", (row.to_dict(decider) for row in rows)))
    run.save(place)
    return run


def by_name(results: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The results by `suite`, and by `suite/adaptation` for other adaptations than `none`."""
    return {_run_name(result["suite"]["id"], result["adaptation"]): result for result in results}


def _run_name(suite: str, adaptation: str) -> str:
    return suite if adaptation == "none" else f"{suite}/{adaptation}"
