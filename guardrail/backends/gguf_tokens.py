"""Prompts to tokens with the vocabulary inside a GGUF file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from guardrail.backends.gguf_model import GgufModel
from guardrail.errors import ModelError
from guardrail.tokens import TextTokenizer, encodable

__all__ = ["GgufTokenizer"]

# A character that is in no merge: SentencePiece vocabularies put a space before the first text only.
_ANCHOR = "\x01"


class GgufTokenizer(TextTokenizer):
    """Encodes prompts by llama.cpp. Thread-safe, as the vocabulary is only read.

    Text cannot become a control token: llama.cpp looks for none, and where merges alone would lead to one, the text
    is cut inside of its name.
    """

    def __init__(self, model: GgufModel) -> None:
        """Raises ModelError for a vocabulary in which text cannot be encoded behind other text."""
        self._model = model
        self._control = model.control
        self._names = {number: token for token, number in self._control.items()}
        self._ordinary = None
        self._anchor = model.encode(_ANCHOR.encode())
        if model.encode(f"{_ANCHOR}a".encode())[: len(self._anchor)] != self._anchor:
            raise ModelError("the GGUF file's vocabulary cannot be read behind other text")

    def encode_text(self, text: str, *, inside: bool = True) -> list[int]:
        """The ids of a text: as it stands inside a prompt, behind a token, or at the very start of one."""
        text = encodable(text)
        ids = self._ids(text, inside)
        if self.control.isdisjoint(ids):
            return ids
        parts = self._cut(text)
        return [token for at, part in enumerate(parts) for token in self._ids(part, inside or at > 0)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `encode_text(text)` begins and ends in the text, in characters."""
        text = encodable(text)
        ends = list(accumulate(len(self._model.piece(token)) for token in self.encode_text(text)))
        if (ends[-1] if ends else 0) != len(text.encode()):
            raise ModelError("the GGUF file's vocabulary does not give back the text that it encodes")
        if text.isascii():
            return list(zip([0, *ends], ends, strict=False))
        # The character in which each token's first and last byte lie.
        begins = [0, *accumulate(len(char.encode()) for char in text)]
        return [
            (bisect_right(begins, start) - 1, bisect_right(begins, end - 1))
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, control tokens visible; for people, not for encoding again."""
        return b"".join(map(self._model.piece, ids)).decode(errors="replace")

    def piece(self, token: int) -> str:
        """A token as the vocabulary writes it."""
        return self._model.piece(token).decode(errors="replace")

    def _ids(self, text: str, inside: bool) -> list[int]:
        if not text:
            return []
        if not inside:
            return self._model.encode(text.encode())
        return self._model.encode((_ANCHOR + text).encode())[len(self._anchor) :]

    def _cut(self, text: str) -> list[str]:
        """The text in parts, cut behind the first character of every control token's name."""
        parts = [text]
        for name in self._control:
            parts = [piece for part in parts for piece in _split(part, name)]
        return parts


def _split(text: str, name: str) -> list[str]:
    first, *rest = text.split(name)
    parts = [first]
    for part in rest:
        parts[-1] += name[:1]
        parts.append(name[1:] + part)
    return parts
