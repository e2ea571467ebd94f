"""What the training of a causal model tells on the way: losses and evaluations, in a file and for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from guardrail.training.llama_validation import BEST, LOG_LOSS

__all__ = ["HistoryCallback", "history", "write_history"]

_NAMES = ("step", "loss", "grad_norm", "learning_rate", BEST, LOG_LOSS)
_TOLD = {
    "loss": "loss {:.4f}",
    "learning_rate": "learning rate {:.2e}",
    BEST: "auprc {:.3f}",
    LOG_LOSS: "log_loss {:.3f}",
}


def history(state: Any) -> tuple[dict[str, float], ...]:
    """The losses and evaluations of a trainer's state, with their `step`."""
    entries = ({name: float(entry[name]) for name in _NAMES if name in entry} for entry in state.log_history)
    return tuple(entry for entry in entries if len(entry) > 1)


def write_history(entries: Iterable[Mapping[str, float]], file: Path) -> None:
    """One line of JSON each."""
    lines = (json.dumps({name: round(value, 6) for name, value in entry.items()}) for entry in entries)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


class HistoryCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Writes the file anew at each entry, so that it tells of a run that was killed; says it on standard error."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an entry was added to the state's."""
        entries = history(state)
        if not state.is_world_process_zero or not entries:
            return
        write_history(entries, self._file)
        if told := [text.format(entries[-1][name]) for name, text in _TOLD.items() if name in state.log_history[-1]]:
            print(f"step {state.global_step}/{state.max_steps} {' '.join(told)}", file=sys.stderr)
