"""What model servers answer: the most likely tokens of one position, however a server names a token.

Tokens are named by id (`"token_id:123"`, or an `id` beside it), by their bytes, or by their text, and the text of a
token is not the same everywhere: with or without its leading space, or as the vocabulary writes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from guardrail.errors import BackendError
from guardrail.tokens import TextTokenizer

__all__ = ["Entry", "NoLogprobs", "Position", "Surfaces", "generated", "prompt_tokens"]

_TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")
# What some servers write for a probability of zero.
_LEAST: Final = -9999.0
# Rounding may carry the logarithm of a certain token's probability past zero.
_MOST: Final = 0.01
# What rounding may do to the sum of the listed probabilities.
_ROUNDED: Final = 1e-4
_SPACES: Final = (" ", "\u2581", "\u0120")
"""How texts of tokens begin that stand behind a space: as they are, in SentencePiece's and in byte-level writing."""


class NoLogprobs(BackendError):
    """The answer has no logprobs at all."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One token of a list, named in at least one way."""

    logprob: float
    text: str
    id: int | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """One generated token, and the most likely ones there (it is among them)."""

    chosen: Entry
    entries: tuple[Entry, ...]

    @property
    def bound(self) -> float:
        """The upper bound of the logprob of what is not listed: neither above what is, nor more than that leaves."""
        lowest = min(entry.logprob for entry in self.entries)
        left = 1.0 - sum(math.exp(entry.logprob) for entry in self.entries)
        return min(lowest, math.log(left + _ROUNDED)) if left > -_ROUNDED / 2 else lowest


def generated(reply: Any) -> list[Position]:
    """The positions that were generated, in order.

    Raises NoLogprobs when the answer has none, BackendError when it has another shape.
    """
    choice = _choice(reply)
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping):
        raise NoLogprobs("the server's answer has no logprobs")
    if isinstance(logprobs.get("content"), list):
        return [_listed(item) for item in logprobs["content"]]
    if isinstance(logprobs.get("top_logprobs"), list):
        return _keyed(logprobs)
    raise NoLogprobs("the server's answer has no logprobs of other tokens than the one it chose")


def prompt_tokens(reply: Any) -> int | None:
    """How many tokens the server read, where it says so."""
    usage = reply.get("usage") if isinstance(reply, Mapping) else None
    count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None


class Surfaces:
    """Finds the tokens that were asked for in what a server lists. Thread-safe."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, tuple[str, str]] = {}

    def find(self, position: Position, tokens: Sequence[int]) -> list[float | None]:
        """The logprob of each token; None where it is not listed."""
        return self._find(position, position.entries, tokens)

    def chosen(self, position: Position, tokens: Sequence[int]) -> float | None:
        """The logprob of the token that the server chose, if it is one of these."""
        found = self._find(position, (position.chosen,), tokens)
        return next((value for value in found if value is not None), None)

    def _find(self, position: Position, entries: Sequence[Entry], tokens: Sequence[int]) -> list[float | None]:
        by_id = {entry.id: entry.logprob for entry in reversed(entries) if entry.id is not None}
        if by_id:
            return [by_id.get(token) for token in tokens]
        spaced = any(entry.text.startswith(_SPACES) for entry in position.entries)
        names = [self._names(token) for token in tokens]
        bare = [exact.removeprefix(" ") for exact, _ in names]
        found: list[float | None] = []
        for (exact, piece), stripped in zip(names, bare, strict=True):
            # A server that shows no leading spaces at all has stripped them; another token may be meant otherwise.
            loose = not spaced and bare.count(stripped) == 1
            found.append(_named(entries, exact, piece, stripped if loose else exact))
        return found

    def _names(self, token: int) -> tuple[str, str]:
        if token not in self._texts:
            self._texts[token] = (self._tokenizer.inner_text([token]), self._tokenizer.piece(token))
        return self._texts[token]


def _named(entries: Sequence[Entry], exact: str, piece: str, loose: str) -> float | None:
    data = exact.encode()
    for entry in entries:
        if entry.data is not None and entry.data == data:
            return entry.logprob
    for name in (exact, piece, loose):
        if not name:
            continue
        for entry in entries:
            if entry.text == name:
                return entry.logprob
    return None


def _choice(reply: Any) -> Mapping[str, Any]:
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise BackendError("the server's answer has no choices")
    return choices[0]


def _keyed(logprobs: Mapping[str, Any]) -> list[Position]:
    """The older shape: lists of tokens and of logprobs, and for each position a mapping of token to logprob."""
    tokens, chosen, tops = (logprobs.get(key) for key in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(chosen, list) or not isinstance(tops, list):
        raise BackendError("the server's logprobs have another shape than is known")
    if not len(tokens) == len(chosen) == len(tops):
        raise BackendError("the server's logprobs are of different numbers of tokens")
    positions = []
    for token, value, top in zip(tokens, chosen, tops, strict=True):
        if not isinstance(top, Mapping) or not top:
            raise NoLogprobs("the server's answer has no logprobs of other tokens than the one it chose")
        entry = _entry(token, value)
        entries = [_entry(name, number) for name, number in top.items()]
        positions.append(_position(entry, entries))
    return positions


def _listed(item: Any) -> Position:
    """The newer shape: a list of objects."""
    if not isinstance(item, Mapping):
        raise BackendError("the server's logprobs have another shape than is known")
    top = item.get("top_logprobs")
    if not isinstance(top, list) or not top:
        raise NoLogprobs("the server's answer has no logprobs of other tokens than the one it chose")
    entry = _described(item)
    entries = [_described(other) for other in top]
    return _position(entry, entries)


def _position(chosen: Entry, entries: list[Entry]) -> Position:
    """With the chosen token among the entries; it may be named otherwise there."""
    there = any(entry.text == chosen.text and entry.logprob == chosen.logprob for entry in entries)
    return Position(chosen, tuple(entries) if there else (*entries, chosen))


def _described(item: Any) -> Entry:
    if not isinstance(item, Mapping):
        raise BackendError("the server's logprobs have another shape than is known")
    entry = _entry(item.get("token"), item.get("logprob"))
    number, data = item.get("id"), item.get("bytes")
    if isinstance(number, int) and not isinstance(number, bool):
        return Entry(entry.logprob, entry.text, number)
    if isinstance(data, list) and data and all(isinstance(b, int) and 0 <= b < 256 for b in data):
        return Entry(entry.logprob, entry.text, entry.id, bytes(data))
    return entry


def _entry(token: Any, value: Any) -> Entry:
    if not isinstance(token, str):
        raise BackendError("the server named a token with something that is not a text")
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not value <= _MOST:
        raise BackendError("the server gave a logprob that is not the logarithm of a probability")
    number = _TOKEN_ID.fullmatch(token)
    return Entry(max(_LEAST, float(value)), token, int(number[1]) if number else None)
