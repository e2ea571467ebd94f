"""An encoder that is a guard already, as a teacher: what it says of a text, which is more than a label does."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guardrail.backends.encoder import EncoderBackend
from guardrail.prompting import PromptBuilder
from guardrail.taxonomy import Taxonomy
from guardrail.training.rows import Row
from guardrail.types import Conversation
from guardrail.windows import fit

__all__ = ["LONGEST", "Teacher", "Teaching"]

LONGEST = 160
"""The most tokens of a text that the teacher is shown."""
# Texts whose mean vector is taken from all vectors: what all texts have in common says nothing about any.
_CENTRE = 512


class Teacher:
    """An encoder's vectors of conversations, the mean of the token states less that of other texts; and its verdicts.

    Not to be used by two threads at once.
    """

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        """`name` is `embedded` or an encoder's folder; what vectors have in common comes from `rows`, as shown."""
        self._encoder = EncoderBackend.load("" if name == "embedded" else name, threads=1)
        self._builder = PromptBuilder(self._encoder.template, self._encoder.default_taxonomy)
        self._shown = self._builder
        self.dimension = self._encoder.dimension
        some = random.Random(0).sample(rows, min(_CENTRE, len(rows)))
        self._centre = np.zeros(self.dimension, dtype=np.float32)
        self._centre = self.vectors([self.window(row.conversation) for row in some]).mean(axis=0)

    def window(self, conversation: Conversation) -> Conversation:
        """The conversation, or of a long one the first window."""
        return fit(conversation, LONGEST, self._builder, self._encoder.tokenizer).conversations[0]

    def vectors(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """(N, `dimension`) of conversations that are windows."""
        _, found = self._encoder.verdicts_and_vectors([self._builder.build(each) for each in conversations])
        return found - self._centre

    def judge(self, conversation: Conversation, taxonomy: Taxonomy) -> tuple[float, NDArray[np.float32]]:
        """P(unsafe) of a window under a taxonomy, as the encoder was trained, not calibrated; and its vector."""
        if self._shown.taxonomy is not taxonomy:
            self._shown = PromptBuilder(self._encoder.template, taxonomy)
        (logit,), (vector,) = self._encoder.verdicts_and_vectors([self._shown.build(conversation)])
        return 1 / (1 + math.exp(-float(logit))), vector - self._centre

    def sees_whole(self, conversation: Conversation) -> bool:
        """Whether its first window is the conversation."""
        return self.window(conversation) is conversation

    def close(self) -> None:
        """Let go of the encoder."""
        self._encoder.close()


@dataclass(frozen=True, slots=True)
class Teaching:
    """What a teacher has to say in the training of a guard."""

    teacher: Teacher
    share: float
    """Of its P(unsafe) in a verdict's target; the rest is the label's."""
    vectors: bool
    """Whether its vectors are learnt as well."""

    def mixed(self, verdict: float, unsafe: float) -> float:
        """P(unsafe) to learn, from the label's and the teacher's."""
        return (1 - self.share) * verdict + self.share * unsafe
