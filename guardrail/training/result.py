"""The end of a training run, the same for both kinds: calibration, comparison with the start, card, summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from guardrail.batch_output import failures
from guardrail.errors import InputError
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.calibrate import calibrate
from guardrail.evaluation.suite_rows import LoadedSuite
from guardrail.loading import load
from guardrail.training.comparison import comparisons, measure
from guardrail.training.config import EMBEDDED, TrainingConfig
from guardrail.training.data import Training
from guardrail.training.outcome import Outcome, Say, Trained
from guardrail.training.tuned_card import CARD, tuned_card
from guardrail.training.validation_suite import validation_suites

__all__ = ["SUMMARY", "finish", "write_json"]

SUMMARY: Final = Path("report") / "summary.json"
"""Below a run's folder; it is there when the run is complete."""


def finish(
    config: TrainingConfig, data: Training, extra: Sequence[LoadedSuite], output: Path, trained: Trained, say: Say
) -> Outcome:
    """Calibrate OUT/model on the validation rows, compare it with the start on them and on more suites, describe it."""
    report, folder = output / "report", output / "model"
    with failures(str(report)):
        (output / SUMMARY).unlink(missing_ok=True)
        (folder / "calibration.json").unlink(missing_ok=True)
        own = validation_suites(data.validation, config.result, report)
    with Cache(report) as cache:
        say("fitting the calibration")
        name, lines, notes = _calibrate(config, own, folder, cache)
        say("comparing with the model before")
        before, entries, more = _compare(config, [*own, *extra], folder, report, cache)
    outcome = Outcome(output, folder, name, trained, before, entries, lines, (*notes, *more))
    with failures(str(output)):
        card = tuned_card(config, data, outcome)
        for place in (folder, output):
            (place / CARD).write_text(card, encoding="utf-8")
        write_json(output / SUMMARY, outcome.to_dict())
    return outcome


def _calibrate(
    config: TrainingConfig, suites: Sequence[LoadedSuite], folder: Path, cache: Cache
) -> tuple[str, list[dict[str, Any]], list[str]]:
    """The model's name, what was fitted and written as calibration.json, and why nothing was."""
    with load(_named(config, folder), taxonomy=config.result.taxonomy) as guard:
        try:
            calibration, lines = calibrate(guard, suites, config.calibration, cache)
        except InputError as error:
            return guard.backend.name, [], [f"there is no calibration: {error.reason}"]
        write_json(folder / "calibration.json", calibration.to_dict())
        return guard.backend.name, lines, []


def _compare(
    config: TrainingConfig, suites: Sequence[LoadedSuite], folder: Path, report: Path, cache: Cache
) -> tuple[str | None, list[dict[str, Any]], list[str]]:
    taxonomy = config.result.taxonomy
    start = None if config.base is None else _named(config, config.base)

    def before(place: Path) -> str:
        return measure(str(start), suites, taxonomy, place, cache, template=config.template)

    measure(_named(config, folder), suites, taxonomy, report / "after", cache)
    return comparisons(suites, report, before if start else None)


def _named(config: TrainingConfig, model: str | Path) -> str:
    """The model as `guardrail.load` takes it."""
    return f"encoder:{model}" if config.kind == "encoder" and model != EMBEDDED else str(model)


def write_json(file: Path, value: object) -> None:
    """Write a value as JSON, whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(file)
