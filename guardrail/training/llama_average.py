"""An exponential average of a model's weights, kept beside them while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

__all__ = ["FILE", "Average", "AverageCallback", "set_weights"]

FILE = "average.safetensors"
"""Its name inside of a checkpoint's folder."""

# Passing over all weights takes time on a CPU: they are averaged every so many steps, with the decay of as many.
_EVERY = 4
_WARMUP = 10


class Average:
    """The average of the weights that are trained."""

    def __init__(self, model: Any, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._values = {name: value.detach().clone() for name, value in self._trained()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, from 1; early steps count more, so that the start is forgotten."""
        if step % _EVERY:
            return
        keep = min(self._decay, (1 + step) / (_WARMUP + step)) ** _EVERY
        torch._foreach_lerp_(list(self._values.values()), [value.detach() for _, value in self._trained()], 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights, for the time of a `with` block."""
        own = {name: value.detach().clone() for name, value in self._trained()}
        self.apply()
        try:
            yield
        finally:
            set_weights(self._model, own)

    def apply(self) -> None:
        """Give the model the averaged weights."""
        set_weights(self._model, self._values)

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint's folder."""
        save_file({name: value.contiguous() for name, value in self._values.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read the average from a checkpoint's folder."""
        stored = load_file(folder / FILE)
        for name, value in self._values.items():
            value.copy_(stored[name])

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, value) for name, value in self._model.named_parameters() if value.requires_grad)


@torch.no_grad()
def set_weights(model: Any, values: dict[str, Tensor]) -> None:
    """Give the model's parameters these values, by name; it has all of the names, and may have more."""
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)


class AverageCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Updates the average after each step."""

    def __init__(self, average: Average) -> None:
        self._average = average

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's step, before an evaluation."""
        self._average.update(state.global_step)
