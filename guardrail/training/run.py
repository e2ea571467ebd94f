"""One training run, from its configuration to a calibrated, compared and described model; both kinds.

    OUT/config.yaml      what was asked for; `guardrail train OUT/config.yaml` asks for it again
    OUT/checks.json      what the checks of the data found, and digests of rows, taxonomies, template
    OUT/metrics.jsonl    one line for each evaluation and each logged step
    OUT/checkpoints/     what a killed run goes on from
    OUT/model/           the result, for `guardrail.load`
    OUT/report/          validation rows as suites, evaluation reports before/ and after/, summary.json
    OUT/MODEL_CARD.md    also in OUT/model

Each part is written when it is complete; summary.json is the last one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from guardrail.batch_output import failures
from guardrail.errors import UsageError
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import load_items
from guardrail.training.config import TrainingConfig
from guardrail.training.data import Training, load_data
from guardrail.training.outcome import Outcome, Say, Trained
from guardrail.training.processes import is_main
from guardrail.training.quiet import quiet
from guardrail.training.result import SUMMARY, finish
from guardrail.training.run_inputs import check_launch, check_rows, check_same, check_suites, is_run, keep

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

    `suites` are evaluation suites to compare on besides the validation rows, `suite_data` the folder of their files;
    rows that are, or nearly are, texts of theirs are left out. With `resume` a killed run goes on, with the same result
    as if it had not been killed, and a complete one is only read; with `overwrite` an earlier run is deleted, once
    suites and rows were read and the base was found. Of several processes (`accelerate launch`) only the main one has
    an outcome.

    Raises ModelError for a base that cannot be opened, before anything is written or deleted; UsageError for a folder
    that is there without `resume`, and for a suite that a complete run was not compared on; ResumeError when the
    configuration, the content of a file that it names, or the rows are not those of the run in the folder, or the
    number of processes, or, for a run that goes on, the suites; and whatever is wrong with the data.
    """
    complete = resume and (output / SUMMARY).is_file()
    if is_main():
        _check_place(output, resume, overwrite)
        if resume:
            check_same(config, output)
    if complete:
        return _outcome(config, output, suites) if is_main() else None
    extra = [load_items(Suite.load(name), suite_data) for name in suites]
    data = load_data(config, extra)
    if is_main():
        for line in data.checks.lines():
            say(line)
        with quiet():
            _check_base(config)
        if resume:
            check_launch(extra, output)
            check_rows(data, output)
        elif overwrite:
            _clear(output)
        keep(config, data, extra, output)
    with quiet():
        trained = _trained(config, data, output, resume, say)
        return finish(config, data, extra, output, trained, say) if is_main() else None


def _outcome(config: TrainingConfig, output: Path, suites: Sequence[str]) -> Outcome:
    """What a complete run came to, where the same is asked for."""
    outcome = Outcome.from_dict(json.loads((output / SUMMARY).read_text(encoding="utf-8")))
    check_suites(suites, outcome)
    check_rows(load_data(config), output)
    return outcome


def _trained(config: TrainingConfig, data: Training, output: Path, resume: bool, say: Say) -> Trained:
    # Each kind brings its own libraries along.
    if config.kind == "llama":
        from guardrail.training.llama_run import train_llama

        return train_llama(config, data, output, resume=resume, say=say)
    from guardrail.training.encoder_run import train_encoder

    return train_encoder(config, data, output, resume)


def _check_base(config: TrainingConfig) -> None:
    """ModelError when what training starts from is not there, or no model of this kind."""
    if config.base is None:
        return
    if config.kind == "llama":
        from guardrail.backends.llama_loading import check_checkpoint

        check_checkpoint(config.base)
    else:
        from guardrail.training.encoder_run import open_start

        open_start(config.base)


def _check_place(output: Path, resume: bool, overwrite: bool) -> None:
    """UsageError for what cannot become, or go on as, the folder of a run; nothing but a run is deleted."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"-o: {output} is not a folder", hint="name a folder for the run")
    if resume or not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        hint = "go on with --resume, replace it with --overwrite, or name another folder"
        raise UsageError(f"-o: {output} is there already", hint=hint)
    if not is_run(output):
        raise UsageError(f"--overwrite: {output} is no training run", hint="name another folder")


def _clear(output: Path) -> None:
    """Delete an earlier run; `_check_place` has seen that it is one."""
    if output.is_dir() and any(output.iterdir()):
        with failures(str(output)):
            shutil.rmtree(output)
