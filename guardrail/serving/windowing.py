"""Windows over a text that is still being written: what is judged together, and what may leave afterwards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from guardrail.errors import UsageError

__all__ = ["TextWindows", "Unit", "Window", "Windowing", "windows_of"]

Unit = Literal["tokens", "sentences"]

# Words, numbers, single punctuation marks; scripts without spaces by the character. Words of a text are about as many
# as three quarters of a language model's tokens.
_DENSE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKENS = re.compile(rf"[{_DENSE}]|[^\W{_DENSE}]{{1,32}}|[^\w\s]")
_SENTENCES = re.compile(r"""[.!?…]+["')\]»”’]*(?=\s)|[。！？]+|\n""")
# A sentence may never end, in code or in a list of words.
_LONGEST_SENTENCE = 400


@dataclass(frozen=True, slots=True)
class Windowing:
    """How a streamed text is cut into windows."""

    size: int = 40
    """Units of a window."""
    overlap: int = 12
    """Units of a window that the next one has as well; they leave when both are safe."""
    unit: Unit = "tokens"
    """Tokens are words and punctuation marks."""
    first: int | None = 16
    """Units of the first window, so that something leaves soon; None for as many as the others have."""
    max_delay: float = 1.0
    """Seconds after which a window that is not full is judged all the same."""

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise UsageError(f"unit is {self.unit!r}", hint=f"known: {', '.join(get_args(Unit))}")
        if not 0 <= self.overlap < self.size:
            raise UsageError(
                f"overlap is {self.overlap}, size is {self.size}", hint="give a size above 0 and a smaller overlap"
            )
        if self.first is not None and self.first < 1:
            raise UsageError(f"first is {self.first}", hint="give 1 or more, or None")
        if not self.max_delay > 0:
            raise UsageError(f"max_delay is {self.max_delay!r}", hint="give seconds above 0")


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text; positions count characters."""

    start: int
    end: int
    cleared: int
    """Up to here the text may leave when this window and those before it are safe."""
    next: int
    """Where the next window begins; before `cleared` where what has left is judged again with what follows it."""


def windows_of(text: str, windowing: Windowing | None) -> list[str]:
    """The windows of a text that is there already."""
    windows = TextWindows(windowing)
    windows.add(text)
    found: list[str] = []
    while (window := windows.full() or windows.last()) is not None:
        found.append(windows.text(window))
        windows.judged(window)
    return found


class TextWindows:
    """The windows of one growing text; with `windowing` None, the whole text is one."""

    def __init__(self, windowing: Windowing | None) -> None:
        self._windowing = windowing
        self._parts: list[str] = []
        """The text from `start` on."""
        self.start = 0
        """Where the next window begins."""
        self.length = 0
        """Characters so far."""
        self._offered = 0
        """Where the last window ended."""
        self._cleared = 0
        self._units: list[int] | None = None

    def add(self, text: str) -> None:
        """The text goes on."""
        self._parts.append(text)
        self.length += len(text)
        self._units = None

    def text(self, window: Window) -> str:
        """What a window holds; only of windows from `start` on."""
        return self._text()[window.start - self.start : window.end - self.start]

    def full(self) -> Window | None:
        """The next full window."""
        if self._windowing is None:
            return None
        ends = self._ends()
        size, overlap = self._windowing.size, self._windowing.overlap
        if self._offered == 0 and self._windowing.first is not None:
            size = min(size, max(overlap + 1, self._windowing.first))
        if len(ends) < size:
            return None
        return self._window(ends[size - 1], ends[size - overlap - 1])

    def early(self) -> Window | None:
        """A window of all units so far, where judging it lets something leave."""
        if self._windowing is None:
            return None
        ends = self._ends()
        count = len(ends) - self._windowing.overlap
        if count < 1 or self.start + ends[-1] <= self._offered:
            return None
        return self._window(ends[-1], ends[count - 1])

    def _window(self, end: int, cleared: int) -> Window:
        after = self.start + cleared
        return Window(self.start, self.start + end, max(after, self._cleared), after)

    def last(self) -> Window | None:
        """All that is left of a text that has ended; None when every character was in a window that nothing follows."""
        if self._cleared == self.length:
            return None
        return Window(self.start, self.length, self.length, self.length)

    def tail(self) -> Window | None:
        """As `last`, of a text that may go on; what follows is judged with the units before it."""
        if self._windowing is None or self._cleared == self.length:
            return None
        ends, overlap = self._ends(), self._windowing.overlap
        kept = ends[-overlap] if 0 < overlap <= len(ends) else 0 if overlap else self.length - self.start
        return Window(self.start, self.length, self.length, self.start + kept)

    def judged(self, window: Window) -> None:
        """Go on behind a safe window."""
        rest = self._text()[window.next - self.start :]
        self._parts, self.start, self._offered, self._cleared = [rest], window.next, window.end, window.cleared
        self._units = None

    def _text(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def _ends(self) -> list[int]:
        """Where the units end that something follows, white space behind a unit belonging to it."""
        if self._units is None:
            assert self._windowing is not None
            text = self._text()
            self._units = _token_ends(text) if self._windowing.unit == "tokens" else _sentence_ends(text)
        return self._units


def _token_ends(text: str) -> list[int]:
    return [match.start() for match in _TOKENS.finditer(text)][1:]


def _sentence_ends(text: str) -> list[int]:
    ends: list[int] = []
    for match in _SENTENCES.finditer(text):
        _bounded(ends, match.end())
    _bounded(ends, len(text), last=True)
    return ends


def _bounded(ends: list[int], end: int, *, last: bool = False) -> None:
    """Append the end, and before it those that keep every sentence from being too long."""
    start = ends[-1] if ends else 0
    while end - start > _LONGEST_SENTENCE:
        start += _LONGEST_SENTENCE
        ends.append(start)
    if not last:
        ends.append(end)
