"""From the evaluations of two models to the file of their cascade."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guardrail import __version__
from guardrail.backends import EMBEDDED
from guardrail.batch_output import failures
from guardrail.cascade import Band
from guardrail.cascade_file import CascadeFile, Model, relative
from guardrail.errors import UsageError
from guardrail.evaluation.cascade_report import Aim, Pair
from guardrail.evaluation.runner import Run
from guardrail.types import Role

__all__ = ["calibration_files", "check_output", "write_cascade"]

_RECORDED = ("share", "first", "second", "cascade", "lost_to_second")


def calibration_files(output: Path) -> tuple[Path, Path]:
    """Where the calibrations of the two models are kept, beside the cascade's file."""
    return output.with_name(f"{output.stem}.first.json"), output.with_name(f"{output.stem}.second.json")


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise UsageError for what can be wrong with the name of the file."""
    if output.is_dir():
        raise UsageError(f"-o: {output} is a folder", hint="name a file in it")
    if not output.parent.is_dir():
        raise UsageError(f"-o: there is no folder {output.parent}", hint="make it, or name another place")
    for file in (output, *calibration_files(output)):
        if file.exists() and not overwrite:
            raise UsageError(f"-o: {file} is there already", hint="name another file, or replace it with --overwrite")


def write_cascade(
    output: Path, pair: Pair, aim: Aim, results: Sequence[Mapping[str, Any]], models: tuple[str | None, str | None]
) -> None:
    """Write the cascade and both calibrations; `models` take the place of the names in the runs.

    Raises UsageError when a run does not say how its model was loaded.
    """
    runs, files = (pair.first, pair.second), calibration_files(output)
    first, second = (
        _model(run, name, file, ("first", "second")[at])
        for at, (run, name, file) in enumerate(zip(runs, models, files, strict=True))
    )
    bands = {Role(found["role"]): Band(*found["band"]) for found in results if found["band"]}
    chosen = {
        "for": str(aim),
        "date": datetime.now(UTC).date().isoformat(),
        "guardrail": __version__,
        "on": [{name: suite[name] for name in ("id", "sha256", "items")} for suite in pair.suites],
        **{found["role"]: {name: found[name] for name in _RECORDED} for found in results},
    }
    with failures(str(output)):
        for run, file in zip(runs, files, strict=True):
            new = file.with_name(f"{file.name}.new")
            new.write_text(json.dumps(run.calibration.to_dict(), indent=2) + "\n", encoding="utf-8")
            new.replace(file)
        # numpy's numbers are floats for JSON, and nothing that YAML knows.
        CascadeFile(first, second, bands, pair.first.taxonomy, json.loads(json.dumps(chosen))).write(output)


def _model(run: Run, named: str | None, calibration: Path, place: str) -> Model:
    loading = dict(run.loading)
    name = named or loading.pop("model", None)
    loading.pop("model", None)
    if name is None:
        raise UsageError(f"the {place} evaluation does not say how its model is loaded", hint=f"give --{place}-model")
    folder = calibration.parent
    options = {key: _portable(value, folder) for key, value in loading.items()}
    return Model(
        model=_portable_model(str(name), folder),
        weights=run.model,
        calibration=calibration,
        threshold=_threshold(run),
        template=options.pop("template", None),
        category_scores=options.pop("category_scores", "first"),
        options=options,
    )


def _portable_model(name: str, folder: Path) -> str:
    scheme, separator, rest = name.partition(":")
    if name == EMBEDDED or (separator and not Path(rest).exists()):
        return name
    return f"{scheme}:{_portable(rest, folder)}" if separator else str(_portable(name, folder))


def _portable(value: Any, folder: Path) -> Any:
    """The name of something on this disk as a path relative to the folder, everything else as it is."""
    found = isinstance(value, str) and value and Path(value).exists()
    return relative(Path(value), folder) if found else value


def _threshold(run: Run) -> float | None:
    """The one that was given in place of the calibrated ones; None when those are in use."""
    calibrated = [side.thresholds for side in (run.calibration.user, run.calibration.assistant)]
    used = [run.policy.user, run.policy.assistant]
    for given in (None, run.policy.user.verdict):
        if [side.replaced(given).to_dict() for side in calibrated] == [side.to_dict() for side in used]:
            return given
    raise UsageError(f"the thresholds of {run.model} are no single one", hint="evaluate with --threshold or without")
