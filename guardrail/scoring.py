"""Logits to probabilities: pure arithmetic on Python floats, the same for every classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Logits", "Scores", "highest", "scores", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Logits:
    """What a classifier says about one conversation, before calibration.

    `safe` and `unsafe` are the logits of the two verdicts at the position where the verdict is read. `categories`
    follows the prompt's taxonomy and is empty when it was not asked for. With the form `binary` each is the logit of
    that category alone; with `first` each is log P(this code comes first | the verdict is unsafe), so that their
    exponentials sum to one.
    """

    safe: float
    unsafe: float
    categories: tuple[float, ...] = ()
    form: Literal["binary", "first"] = "binary"


@dataclass(frozen=True, slots=True)
class Scores:
    """Probabilities in [0, 1]: of the verdict unsafe, and of each category in taxonomy order."""

    unsafe: float
    categories: tuple[float, ...]


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow for any finite or infinite argument."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    odds = math.exp(logit)
    return odds / (1.0 + odds)


def scores(logits: Logits, temperature: float = 1.0) -> Scores:
    """P(unsafe) is the softmax over the two verdict logits only (Llama Guard paper, section 3.3), here as a sigmoid
    of their difference; a category's probability is its own sigmoid (`binary`) or P(unsafe) P(code | unsafe) (`first`).

    `temperature` divides the logits before the sigmoid (Guo et al. 2017, section 4.2).
    """
    if math.isnan(logits.safe) or math.isnan(logits.unsafe) or any(map(math.isnan, logits.categories)):
        raise ValueError("the classifier returned NaN")
    unsafe = sigmoid((logits.unsafe - logits.safe) / temperature)
    if logits.form == "binary":
        return Scores(unsafe, tuple(sigmoid(value / temperature) for value in logits.categories))
    return Scores(unsafe, tuple(unsafe * math.exp(value) for value in logits.categories))


def highest(windows: Sequence[Scores]) -> Scores:
    """The scores of a text that was judged in several windows: the maximum over the windows, each score by itself."""
    if len(windows) == 1:
        return windows[0]
    return Scores(
        max(window.unsafe for window in windows),
        tuple(map(max, zip(*(window.categories for window in windows), strict=True))),
    )
