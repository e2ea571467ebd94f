"""One training run, from its configuration to a calibrated, compared and described model; both kinds.

    OUT/config.yaml      what was asked for; `guardrail train OUT/config.yaml` asks for it again
    OUT/checks.json      what the checks of the data found
    OUT/metrics.jsonl    one line for each evaluation and each logged step
    OUT/checkpoints/     what a killed run goes on from
    OUT/model/           the result, for `guardrail.load`
    OUT/report/          validation rows as suites, evaluation reports before/ and after/, summary.json
    OUT/MODEL_CARD.md    also in OUT/model

Each part is written when it is complete; summary.json is the last one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from guardrail.batch_output import failures
from guardrail.errors import ResumeError, UsageError
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import load_items
from guardrail.jsonl import encode
from guardrail.taxonomy_yaml import dump, read
from guardrail.training.config import TrainingConfig
from guardrail.training.data import Training, load_data
from guardrail.training.labelled import LabelSpace, line_of
from guardrail.training.outcome import Outcome, Say, Trained
from guardrail.training.processes import is_main
from guardrail.training.quiet import quiet
from guardrail.training.result import SUMMARY, finish, write_json

__all__ = ["train"]


def train(
    config: TrainingConfig,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    suites: Sequence[str] = (),
    suite_data: Path | None = None,
    say: Say = print,
) -> Outcome | None:
    """Train, and write everything into `output`; `say` is told in lines what happens.

    `suites` are evaluation suites to compare on besides the validation rows, `suite_data` the folder of their files.
    With `resume` a killed run goes on, with the same result as if it had not been killed, and a complete one is only
    read; with `overwrite` an earlier run is deleted first. Of several processes (`accelerate launch`) only the main one
    has an outcome.

    Raises UsageError for a folder that is there without `resume`, ResumeError when configuration or data are not those
    of the run in it, and whatever is wrong with the data.
    """
    if resume and (summary := output / SUMMARY).is_file():
        _check_same(config, output)
        return Outcome.from_dict(json.loads(summary.read_text(encoding="utf-8"))) if is_main() else None
    if is_main():
        if overwrite and not resume:
            _clear(output)
        _check_place(output, resume)
        if resume and output.exists():
            _check_same(config, output)
    extra = [load_items(Suite.load(name), suite_data) for name in suites]
    data = load_data(config)
    if is_main():
        for line in data.checks.lines():
            say(line)
        _begin(config, data, output)
    with quiet():
        trained = _trained(config, data, output, resume, say)
        return finish(config, data, extra, output, trained, say) if is_main() else None


def _trained(config: TrainingConfig, data: Training, output: Path, resume: bool, say: Say) -> Trained:
    # Each kind brings its own libraries along.
    if config.kind == "llama":
        from guardrail.training.llama_run import train_llama

        return train_llama(config, data, output, resume=resume, say=say)
    from guardrail.training.encoder_run import train_encoder

    return train_encoder(config, data, output, resume)


def _clear(output: Path) -> None:
    """Delete an earlier run, and nothing else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not all((output / name).is_file() for name in ("config.yaml", "checks.json")):
        raise UsageError(f"--overwrite: {output} is no training run", hint="name another folder")
    with failures(str(output)):
        shutil.rmtree(output)


def _check_place(output: Path, resume: bool) -> None:
    if output.is_dir() and any(output.iterdir()) and not resume:
        hint = "go on with --resume, replace it with --overwrite, or name another folder"
        raise UsageError(f"-o: {output} is there already", hint=hint)
    if output.exists() and not output.is_dir():
        raise UsageError(f"-o: {output} is not a folder", hint="name a folder for the run")


def _check_same(config: TrainingConfig, output: Path) -> None:
    """Refuse to go on with another configuration: the result would be of neither."""
    file = output / "config.yaml"
    if not file.is_file():
        if (output / "checkpoints").exists() or (output / "model").exists():
            raise ResumeError(f"{output}: there is no config.yaml", hint="the folder is of no training run")
        return
    before, now = read(file).data, config.raw
    if differing := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        raise ResumeError(
            f"{file}: the run was started with another {', '.join(differing)}",
            hint=f"resume with that file, or start anew with --overwrite: guardrail train {file}",
        )


def _begin(config: TrainingConfig, data: Training, output: Path) -> None:
    """Write config.yaml and checks.json; ResumeError when the folder's run had other rows."""
    found = {
        "rows_sha256": _rows_digest(data, config.space),
        "training_rows": len(data.rows),
        "validation_rows": len(data.validation),
        "training": data.checks.to_dict(),
        "validation": data.validation_checks.to_dict() if data.validation_checks else None,
    }
    file = output / "checks.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["rows_sha256"] != found["rows_sha256"]:
        raise ResumeError(f"{file}: the run was started with other rows", hint="start anew with --overwrite")
    with failures(str(output)):
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(dump(dict(config.raw)), encoding="utf-8")
        write_json(file, found)


def _rows_digest(data: Training, space: LabelSpace) -> str:
    digest = hashlib.sha256()
    for part in (data.rows, data.validation):
        for row in part:
            digest.update(encode(line_of(row, space)))
        digest.update(b"\n")
    return digest.hexdigest()
