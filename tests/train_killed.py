"""A training run of its own process, to be killed: `python -m tests.train_killed FOLDER KILL_AT`; 0: not killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from guardrail.training import llama_trainer
from guardrail.training.llama_hyper import LlamaHyper
from guardrail.training.llama_loop import GuardTrainer
from tests.training_material import TEMPLATE, own_policy, rows, sampler, text_tokenizer, tiny_model

HYPER = LlamaHyper(
    learning_rate=3e-3,
    steps=12,
    pack_tokens=300,
    accumulation=2,
    dtype="float32",
    evaluate_every=3,
    average=0.9,
    verdict_weight=2.0,
)


class Killer(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """SIGKILL, as the system's memory guard sends it, after a step's forward pass."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the step is done."""
        if self._step and state.global_step + 1 == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Trains, and saves the result beside the checkpoints."""
    folder, kill = Path(sys.argv[1]), int(sys.argv[2])

    class Trainer(GuardTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Killer(kill))

    pytest.MonkeyPatch().setattr(llama_trainer, "GuardTrainer", Trainer)
    model = tiny_model(attention_dropout=0.1)
    result = llama_trainer.fine_tune(
        model,
        text_tokenizer(),
        TEMPLATE,
        lambda number: rows(40, number),
        rows(20, 99),
        sampler(),
        own_policy(),
        HYPER,
        folder,
        resume=True,
    )
    model.save_pretrained(folder / "result")
    (folder / "result" / "result.json").write_text(json.dumps(asdict(result)), encoding="utf-8")


if __name__ == "__main__":
    main()
