"""What the lessons of a new Llama, before it learns to judge, have in common: the trainer's arguments and progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from guardrail.training.precision import has_bfloat16

__all__ = ["fixed_words", "phase_arguments", "run_phase"]


def phase_arguments(folder: Path, *, steps: int, rate: float, batch: int, seed: int) -> TrainingArguments:
    """A short run on its own: a cosine to zero, nothing saved; `batch` is each process's."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        # With a rate that rises faster the vectors were learnt worse.
        warmup_steps=max(1, steps // 10),
        weight_decay=0.01,
        adam_beta2=0.98,
        optim="adamw_torch_fused",
        bf16=torch.cuda.is_available() or has_bfloat16(),
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=20,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        seed=seed,
        remove_unused_columns=False,
    )


@contextmanager
def fixed_words(model: LlamaForCausalLM) -> Iterator[None]:
    """The word vectors stay as they are: a word that the texts lack keeps its place beside those that they have."""
    words = model.get_input_embeddings()
    words.requires_grad_(False)
    try:
        yield
    finally:
        words.requires_grad_(True)


def run_phase(trainer: Trainer, name: str) -> float:
    """Train, with the loss on standard error now and then; returns the mean loss of all steps and processes."""
    trainer.remove_callback(PrinterCallback)  # it writes to standard output
    trainer.add_callback(_Progress(name))
    # The trainer adds up this process's own losses since its last log: those of its part of the texts.
    own = torch.tensor(float(trainer.train().training_loss), device=trainer.args.device)
    return float(trainer.accelerator.reduce(own, reduction="mean"))


class _Progress(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """The loss now and then, for people."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            loss = float(logs["loss"])
            print(f"{self._name} step {state.global_step}/{state.max_steps} loss {loss:.3f}", file=sys.stderr)
