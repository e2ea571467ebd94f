"""What a run was started with, kept in its folder: it is gone on with under the same, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from guardrail import taxonomy_yaml
from guardrail.backends.weights import sampled_digest
from guardrail.batch_output import failures
from guardrail.errors import ResumeError, UsageError
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import LoadedSuite
from guardrail.prompting import Template
from guardrail.resources import digest, folder
from guardrail.taxonomy import Taxonomy
from guardrail.training import processes
from guardrail.training.config import EMBEDDED, TrainingConfig
from guardrail.training.data import Training
from guardrail.training.outcome import Outcome
from guardrail.training.policies import MADE_UP, OWN
from guardrail.training.result import write_json

__all__ = ["check_launch", "check_rows", "check_same", "check_suites", "is_run", "keep"]

_CONFIG: Final = "config.yaml"
_CHECKS: Final = "checks.json"
_ANEW = "start anew with --overwrite"
# What a checkpoint is made of; other files of its folder, a card or a calibration, may change.
_WEIGHTS = ("*.safetensors", "*.bin", "*.onnx", "config.json", "tokenizer.json", "tokenizer.model")


def is_run(output: Path) -> bool:
    """Whether the folder is one of a training run."""
    return all((output / name).is_file() for name in (_CONFIG, _CHECKS))


def keep(config: TrainingConfig, data: Training, suites: Sequence[LoadedSuite], output: Path) -> None:
    """Write config.yaml and checks.json."""
    found = {
        "rows_sha256": data.digest,
        "processes": processes.count(),
        "suites": _digests(suites),
        "inputs": {key: content for key, _, content in _inputs(config)},
        "training_rows": len(data.rows),
        "validation_rows": len(data.validation),
        "training": data.checks.to_dict(),
        "validation": data.validation_checks.to_dict() if data.validation_checks else None,
    }
    with failures(str(output)):
        output.mkdir(parents=True, exist_ok=True)
        (output / _CONFIG).write_text(taxonomy_yaml.dump(dict(config.raw)), encoding="utf-8")
        write_json(output / _CHECKS, found)


def check_same(config: TrainingConfig, output: Path) -> None:
    """Refuse to go on with another configuration, or with a file of it whose content has changed.

    The result would be of neither. Raises ResumeError that names the file; also where the folder does not say what its
    run was started with.
    """
    file = output / _CONFIG
    if not _there(file):
        return
    before, now = taxonomy_yaml.read(file).data, config.raw
    if differing := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        raise ResumeError(
            f"{file}: the run was started with another {', '.join(differing)}",
            hint=f"resume with that file, or {_ANEW}: guardrail train {file}",
        )
    if not _there(output / _CHECKS):
        return
    kept = _kept(output).get("inputs", {})
    for key, name, content in _inputs(config):
        if key not in kept:
            raise ResumeError(f"{output / _CHECKS}: does not say what {key} the run was started with", hint=_ANEW)
        if kept[key] != content:
            raise ResumeError(
                f"{name}: {key}: has changed since the run in {output} was started",
                hint=f"undo the change, or {_ANEW}: guardrail train {file}",
            )


def check_launch(suites: Sequence[LoadedSuite], output: Path) -> None:
    """Refuse to go on with more or fewer processes, whose batches would be others, or without texts of other suites.

    Raises ResumeError.
    """
    file = output / _CHECKS
    if not file.is_file():
        return
    kept, count = _kept(output), processes.count()
    if kept.get("processes") != count:
        raise ResumeError(
            f"{file}: processes: the run was started with {kept.get('processes')}, not with {count}",
            hint=f"start as many, or {_ANEW}",
        )
    if kept.get("suites") != _digests(suites):
        raise ResumeError(f"--suite: the run in {output} was started with other suites", hint=f"name them, or {_ANEW}")


def check_rows(data: Training, output: Path) -> None:
    """Refuse to go on with other rows: a ResumeError."""
    file = output / _CHECKS
    if file.is_file() and _kept(output).get("rows_sha256") != data.digest:
        raise ResumeError(f"{file}: the run was started with other rows", hint=_ANEW)


def check_suites(suites: Sequence[str], outcome: Outcome) -> None:
    """Refuse a suite that a complete run was not compared on: a UsageError."""
    compared = {entry["run"] for entry in outcome.comparison}
    for name in suites:
        if (suite := Suite.load(name).id) not in compared:
            raise UsageError(
                f"--suite: the run in {outcome.folder} is complete, and was not compared on {suite}",
                hint=f"guardrail eval {name} --model {outcome.model} measures it",
            )


def _digests(suites: Sequence[LoadedSuite]) -> dict[str, str]:
    return {loaded.suite.id: loaded.sha256 for loaded in suites}


def _there(file: Path) -> bool:
    """Whether the file is there; ResumeError where it is not, but something was trained."""
    if file.is_file():
        return True
    if any((file.parent / name).exists() for name in ("checkpoints", "model")):
        raise ResumeError(f"{file.parent}: there is no {file.name}", hint="the folder is of no training run")
    return False


def _kept(output: Path) -> dict[str, Any]:
    file = output / _CHECKS
    try:
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(f"{file}: cannot be read: {error}", hint=_ANEW) from None
    return kept


def _inputs(config: TrainingConfig) -> Iterator[tuple[str, str, str]]:
    """Key, name and digest of what the configuration names: taxonomies, template, related labels, and weights.

    A shipped one may be another with the next release, and is among them. Weights with a hub name are not: their files
    may not be there yet.
    """
    yield "taxonomy", str(config.raw["taxonomy"]), config.taxonomy.digest
    if config.result_taxonomy is not None:
        yield "result_taxonomy", str(config.raw["result_taxonomy"]), config.result_taxonomy.digest
    for name, share in config.policies.items():
        if share and name not in (OWN, MADE_UP):
            yield f"policies.{name}", name, Taxonomy.load(name).digest
    if config.template is not None:
        yield "template", config.template, Template.load(config.template).digest
    if (related := config.data.related) is not None:
        yield "data.related", str(related), digest(json.dumps(taxonomy_yaml.read(related).data, sort_keys=True))
    places = {"base": config.base}
    if config.scratch is not None:
        places |= {f"scratch.{key}": getattr(config.scratch, key) for key in ("words_from", "vectors_from")}
    for key, place in places.items():
        if place is not None and (files := _weights(place)):
            yield key, place, sampled_digest(files)


def _weights(place: str) -> list[Path]:
    """The files of a checkpoint's folder, of the shipped model's for `embedded`; none for a hub name."""
    where = folder("model") if place == EMBEDDED else Path(place).expanduser()
    return sorted(file for pattern in _WEIGHTS for file in where.glob(pattern))
