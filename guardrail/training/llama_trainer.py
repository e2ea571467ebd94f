"""Fine-tunes a causal language model into a guard: transformers' training loop over packs of rows."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments

from guardrail.prompting import Template
from guardrail.tokens import TextTokenizer, verdict_tokens
from guardrail.training.answers import Placement
from guardrail.training.llama_data import PackStream
from guardrail.training.llama_feed import Feed
from guardrail.training.llama_history import HistoryCallback, history
from guardrail.training.llama_hyper import LlamaHyper
from guardrail.training.llama_loop import GuardTrainer
from guardrail.training.llama_validation import BEST, GOAL, Validation
from guardrail.training.llama_view import Format
from guardrail.training.policies import PolicySampler, TrainingPolicy
from guardrail.training.rows import Row
from guardrail.training.teacher import Teacher, Teaching
from guardrail.training.tree_attention import tree_attention

__all__ = ["Result", "fine_tune", "last_checkpoint"]

_STATE = "trainer_state.json"
_MOST_LOGS = 50  # steps between two lines of the history


@dataclass(frozen=True, slots=True)
class Result:
    """What training came to; the model has the best or the last weights, as `keep` says."""

    step: int
    """The step whose weights these are."""
    steps: int
    """How many steps were made, early stopping considered."""
    metrics: dict[str, float]
    """Of the evaluation at that step."""
    history: tuple[dict[str, float], ...]
    """Losses (mean over the tokens learnt, by their weights) and evaluations, with their `step`."""
    counts: dict[str, int]
    """What became of the rows; see PackStream."""


class _Saving(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Checkpoints between evaluations."""

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's step."""
        control.should_save |= state.global_step % self._every == 0


def fine_tune(
    model: Any,
    tokenizer: TextTokenizer,
    template: Template,
    rows_of_pass: Callable[[int], Sequence[Row]],
    validation_rows: Sequence[Row],
    sampler: PolicySampler,
    judged_by: TrainingPolicy,
    hyper: LlamaHyper,
    folder: Path,
    *,
    resume: bool = False,
    explanation: Placement = "none",
    teacher: Teacher | None = None,
    metrics: Path | None = None,
) -> Result:
    """Train `model` (see llama_model) and give it the weights that `hyper.keep` says.

    `rows_of_pass(n)` gives the rows of pass n, always the same ones; validation rows are shown under `judged_by`.
    Checkpoints are written to `folder`; with `resume` the last whole one is gone on from, and without it earlier ones
    are deleted. A run that was killed and resumed sees the same packs and ends with the same weights. Without
    validation rows the last weights are the result. `hyper.teacher_share` and `vector_weight` are
    about the `teacher`. The history is written to `metrics` as it grows.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", hyper.pack_tokens)
    format = Format(tokenizer, template, hyper.pack_tokens, min(hyper.pack_tokens, positions), explanation)
    validation = Validation.make(format, validation_rows, judged_by)
    arguments = _arguments(hyper, folder, bool(validation.packs))
    share = hyper.packs_per_device
    per_step = share * hyper.accumulation * arguments.world_size
    teaching = None if teacher is None else Teaching(teacher, hyper.teacher_share, hyper.vector_weight > 0)
    stream = PackStream(format, rows_of_pass, sampler, seed=hyper.seed, teaching=teaching)
    arguments.max_steps = hyper.steps or _steps(stream, hyper.epochs or 1.0, per_step)

    def feed(rank: int, processes: int) -> Feed:
        return Feed(stream, share=share, rank=rank, processes=processes)

    trainer = GuardTrainer(model, arguments, feed, verdict_tokens(tokenizer, template), validation, hyper)
    trainer.remove_callback(PrinterCallback)  # it writes dictionaries
    if metrics is not None:
        trainer.add_callback(HistoryCallback(metrics))
    if hyper.save_every is not None:
        trainer.add_callback(_Saving(hyper.save_every))
    if validation.packs and hyper.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(hyper.patience))
    with tree_attention(model):
        _run(trainer, folder, per_step, resume)
    return _result(trainer, stream)


def _steps(stream: PackStream, epochs: float, per_step: int) -> int:
    """The steps that show the packs of the first pass so many times."""
    packs = sum(1 for _ in stream.drafts(0))
    stream.counts.clear()
    return max(1, math.ceil(epochs * packs / per_step))


def _run(trainer: GuardTrainer, folder: Path, per_step: int, resume: bool) -> None:
    with trainer.accelerator.main_process_first():
        checkpoint = last_checkpoint(folder, clean=trainer.accelerator.is_main_process, keep=resume)
    if checkpoint is None:
        trainer.train()
    else:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        trainer.feed.start = state["global_step"] * per_step
        if not _finished(state, trainer.args.max_steps):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        else:
            _take_over(trainer, state, checkpoint)
    if trainer.average is not None:
        trainer.average.apply()


def _finished(state: Any, steps: int) -> bool:
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    return bool(state["global_step"] >= steps or control.get("should_training_stop"))


def _take_over(trainer: GuardTrainer, state: Any, checkpoint: Path) -> None:
    """The result of a run that was killed after its last step."""
    trainer.state = type(trainer.state).load_from_json(str(checkpoint / _STATE))
    if trainer.hyper.keep == "last" or not state["best_model_checkpoint"]:
        trainer.state.best_model_checkpoint = str(checkpoint)
    trainer._load_best_model()


def last_checkpoint(folder: Path, *, clean: bool = False, keep: bool = True) -> Path | None:
    """The newest whole checkpoint; with `clean` those are deleted that are not, or all of them unless `keep`."""
    found = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if keep and _whole(path):
            found = path
        elif clean:
            shutil.rmtree(path)
    return found


def _whole(checkpoint: Path) -> bool:
    try:
        return "global_step" in json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _arguments(hyper: LlamaHyper, folder: Path, evaluated: bool) -> TrainingArguments:
    every = hyper.evaluate_every
    # No checkpoint lies between two lines of the history: a resumed run would lack the losses since the last one.
    together = math.gcd(every, hyper.save_every or every)
    logs = max(step for step in range(1, _MOST_LOGS + 1) if together % step == 0)
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=hyper.steps or 1,
        learning_rate=hyper.learning_rate,
        lr_scheduler_type="constant_with_warmup" if hyper.schedule == "constant" else hyper.schedule,
        warmup_steps=hyper.warmup,
        weight_decay=hyper.weight_decay,
        max_grad_norm=hyper.clip,
        optim="adamw_torch_fused",
        per_device_train_batch_size=hyper.packs_per_device,
        gradient_accumulation_steps=hyper.accumulation,
        bf16=hyper.dtype == "bfloat16",
        use_cpu=not accelerated,
        seed=hyper.seed,
        eval_strategy="steps" if evaluated else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=evaluated and hyper.keep == "best",
        metric_for_best_model=GOAL if evaluated else None,
        greater_is_better=True if evaluated else None,
        logging_steps=logs,
        ignore_data_skip=True,
        ddp_find_unused_parameters=False,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


def _result(trainer: GuardTrainer, stream: PackStream) -> Result:
    state = trainer.state
    best = (trainer.hyper.keep == "best" and state.best_global_step) or state.global_step
    entries = history(state)
    metrics = next((entry for entry in entries if entry["step"] == best and BEST in entry), {})
    return Result(best, state.global_step, metrics, entries, dict(stream.counts))
