"""One labelled text for training, and how its label reads under a given taxonomy."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from guardrail.types import Conversation, Message, Role, is_blank

__all__ = ["UNKNOWN", "Hazards", "Row", "clean", "conversation", "normalise", "targets"]

Hazards = frozenset[str]
UNKNOWN = -1.0
"""The target of a category, or of the verdict, that the row says nothing about."""

# A row whose category is unknown counts as unsafe under a taxonomy that leaves out at most this share of the hazards
# that it may violate.
_MISSING = 0.25

_SPACES = re.compile(r"[ \t\u00a0]+")
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_BLANK_LINES = re.compile(r"\n\s*\n\s*")


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation and what is known about its last message."""

    source: str
    conversation: Conversation
    unsafe: float
    """Probability that the message violates some category of a complete taxonomy; UNKNOWN when not labelled."""
    violated: Hazards = frozenset()
    """Hazards that it violates."""
    possible: Hazards = frozenset()
    """Hazards of which nothing is known; all others are not violated."""
    weight: float = 1.0
    explanation: str | None = None
    """Why the label is what it is, in words; for guards that answer with an explanation."""
    id: str = ""
    """Whatever the data calls it; plays no part in training."""

    @property
    def text(self) -> str:
        """The judged text."""
        return self.conversation.judged.text


def targets(row: Row, taxonomy: Sequence[Hazards]) -> tuple[float, list[float]]:
    """The verdict's target and one target per category, UNKNOWN where the label does not reach.

    A category is violated when it covers a violated hazard. The verdict of an unsafe row becomes safe when no category
    that is left covers a violated or possible hazard, which is how a guard learns to obey the taxonomy (the second
    augmentation of Llama Guard's fine-tuning formatter).
    """
    if row.unsafe < 0:
        return UNKNOWN, [UNKNOWN if hazards & row.possible else 0.0 for hazards in taxonomy]
    if not row.violated and not row.possible:
        return row.unsafe, [0.0] * len(taxonomy)
    values = [_target(row, hazards) for hazards in taxonomy]
    covered: Hazards = frozenset().union(*taxonomy)
    if any(value > 0 for value in values):
        verdict = row.unsafe
    elif all(value == 0.0 for value in values):
        verdict = 0.0
    elif not row.violated and len(row.possible - covered) <= _MISSING * len(row.possible):
        verdict = row.unsafe
    else:
        verdict = UNKNOWN
    return verdict, values


def _target(row: Row, hazards: Hazards) -> float:
    if hazards & row.violated:
        return row.unsafe
    return UNKNOWN if hazards & row.possible else 0.0


def clean(text: str) -> str:
    """The text with invisible noise of the file formats removed; its wording stays."""
    text = text.replace("\r\n", "\n").replace("\ufeff", "").replace("<|endoftext|>", "")
    return _BLANK_LINES.sub("\n\n", _SPACES.sub(" ", text)).strip()


def normalise(text: str) -> str:
    """Lower-case letters and digits separated by single spaces: two texts with the same result are the same text."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _BETWEEN_WORDS.sub(" ", folded).strip()


def conversation(turns: Iterable[tuple[str, str]]) -> Conversation | None:
    """The conversation of (role, text) pairs, or None when nothing is left of the judged text."""
    messages = tuple(Message(Role(role), clean(text)) for role, text in turns)
    if not messages or is_blank(messages[-1].text):
        return None
    return Conversation(messages)
