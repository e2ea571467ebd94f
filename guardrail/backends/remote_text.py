"""Prompts as text, for servers that take no token ids: what they parse as control tokens is ours alone.

Such a server reads every control token that it finds in the text. One that stands in a message is broken up by a
space, so that it stays text there too; the score of such a message differs a little from the one by token ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from guardrail.errors import BackendError
from guardrail.tokens import TextTokenizer

__all__ = ["Writer", "Written"]


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt as text."""

    text: str
    tokens: int
    """How many tokens it has, without the control token at the start if that was left out."""


class Writer:
    """Writes token ids as the text that gives them. Thread-safe."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = tokenizer.control
        names = {tokenizer.piece(token) for token in self._control}
        if tokenizer.unknown is not None:
            names.add(tokenizer.piece(tokenizer.unknown))
        longest_first = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        self._literals = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def write(self, ids: Sequence[int], *, start: bool) -> Written:
        """The text; without `start` the control token that the ids begin with is left out.

        Raises BackendError for ids that no text gives.
        """
        first = 0 if start or not ids or ids[0] not in self._control else 1
        parts: list[str] = []
        count = 0
        wanted: list[str] = []
        for run in _runs(ids[first:], self._control):
            if run[0] in self._control:
                parts += [name := self._tokenizer.piece(run[0])]
                wanted.append(name)
                count += 1
                continue
            text = self.defused(self._tokenizer.inner_text(run))
            parts.append(text)
            count += len(self._tokenizer.encode_text(text))
        whole = "".join(parts)
        if self._literals.findall(whole) != wanted:
            raise BackendError("the prompt cannot be written as text: its control tokens would be others")
        return Written(whole, count)

    def defused(self, text: str) -> str:
        """The text with a space inside of every control token that it names."""
        while found := self._literals.search(text):
            cut = found.start() + 1
            text = f"{text[:cut]} {text[cut:]}"
        return text


def _runs(ids: Sequence[int], control: frozenset[int]) -> list[list[int]]:
    """The ids cut into runs of text, each control token by itself."""
    runs: list[list[int]] = []
    inside = False
    for token in ids:
        if token in control or not inside:
            runs.append([token])
        else:
            runs[-1].append(token)
        inside = token not in control
    return runs
