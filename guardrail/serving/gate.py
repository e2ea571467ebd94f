"""What of a streamed answer may leave: events wait until the windows that their texts lie in are judged.

No input or output, no clock: `StreamGate` is fed events and verdicts, and gives windows to judge and bytes to send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guardrail.schemas.base import ChatRequest, Notice, Piece, StreamReader
from guardrail.serving.failures import JudgeFailure, Reason
from guardrail.serving.routes import Mode
from guardrail.serving.windowing import TextWindows, Window, Windowing
from guardrail.sse import Event

__all__ = ["Due", "StreamGate"]

_Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Due:
    """A window to judge."""

    choice: int
    channel: str
    window: Window
    text: str


@dataclass(slots=True)
class _Held:
    """An event, and for each channel that it adds to the position up to which it must be cleared."""

    event: Event
    ends: Mapping[_Key, int] | None = None
    """None before it was read."""


class StreamGate:
    """One stream. Events leave in their order; each choice is cut on its own."""

    def __init__(
        self, reader: StreamReader, request: ChatRequest, windowing: Windowing | None, *, most_bytes: int, mode: Mode
    ) -> None:
        """`windowing` None: each text is one window."""
        self._reader = reader
        self._windowing = windowing
        self._most = most_bytes
        self._mode = mode
        self._held: deque[_Held] = deque()
        self._unread: deque[_Held] = deque()
        self._bytes = 0
        self._texts: dict[_Key, TextWindows] = {}
        self._cleared: dict[_Key, int] = {}
        self._grown: set[_Key] = set()
        """Channels that went on since the clock was last asked."""
        self._left_off: set[_Key] = set()
        """Channels behind which another one goes on."""
        self._resumed: set[_Key] = set()
        """Channels that went on after all: they take turns with another one."""
        self._over: set[_Key] = set()
        """Channels of which all was said at once."""
        self._answered = False
        self._ended = False
        self._choices: set[int] = set(range(request.choices * len(request.contexts)))
        self.cut: set[int] = set()
        """Choices that were ended."""

    @property
    def waiting(self) -> bool:
        """Whether anything is held back."""
        return bool(self._held) or (self._mode == "rewind" and any(one.last() for _, one in self._open()))

    @property
    def closed(self) -> bool:
        """Whether all choices were cut: nothing more will leave."""
        return bool(self._choices) and self._choices <= self.cut

    def hold(self, event: Event) -> None:
        """The next event of the stream, not yet read."""
        held = _Held(event)
        self._held.append(held)
        self._unread.append(held)
        self._bytes += len(event.raw)
        if self._bytes > self._most:
            raise JudgeFailure(Reason.TOO_LARGE, f"more than {self._most} bytes of the stream wait for a judgement")

    def read(self, piece: Piece) -> None:
        """What the first held event that was not read has in it."""
        ends: dict[_Key, int] = {}
        for text in piece.texts:
            self._choices.add(text.choice)
            if text.choice in self.cut:
                continue
            key = (text.choice, text.channel)
            windows = self._texts.setdefault(key, TextWindows(self._windowing))
            windows.add(text.text)
            ends[key] = windows.length
            if text.whole:
                self._over.add(key)
            else:
                self._goes_on(key)
        now = {key for key in ends if key not in self._over}
        self._leave_off({choice for choice, _ in now}, now)
        # Not over: some servers give a reason with every event.
        self._leave_off(set(piece.finished), set())
        self._unread.popleft().ends = ends
        self._ended = self._ended or piece.final

    def _goes_on(self, key: _Key) -> None:
        self._grown.add(key)
        if key in self._left_off:
            self._left_off.remove(key)
            self._resumed.add(key)

    def _leave_off(self, choices: set[int], now: set[_Key]) -> None:
        """What these choices said in other channels than now has come to an end, it seems: thoughts before content."""
        self._left_off.update(key for key in self._texts if key[0] in choices and key not in now | self._resumed)

    def _silent(self) -> None:
        """Called with the clock: channels that said nothing for a while, as others did, have left off too."""
        if self._grown:
            self._left_off.update(key for key in self._texts if key not in self._grown)
            self._grown.clear()

    def end(self) -> None:
        """Nothing follows."""
        self._ended = True

    def due(self, *, early: bool = False) -> Iterator[Due]:
        """Windows to judge, one at a time: the next one is found when the last one was answered.

        `early`: the clock asks; also those that are not full.
        """
        if self._mode == "end" and not self._ended:
            return
        if early:
            self._silent()
        for key, windows in list(self._open()):
            while key[0] not in self.cut:
                window = windows.full() or (windows.early() if early else None) or self._end_of(key, windows)
                if window is None:
                    break
                self._answered = False
                yield Due(*key, window, windows.text(window))
                if not self._answered and key[0] not in self.cut:
                    return

    def _end_of(self, key: _Key, windows: TextWindows) -> Window | None:
        if self._ended or key in self._over:
            return windows.last()
        return windows.tail() if key in self._left_off else None

    def _open(self) -> Iterator[tuple[_Key, TextWindows]]:
        return ((key, windows) for key, windows in self._texts.items() if key[0] not in self.cut)

    def safe(self, due: Due) -> None:
        """The window may leave, as far as no other window has a part of it."""
        key = (due.choice, due.channel)
        self._texts[key].judged(due.window)
        self._cleared[key] = due.window.cleared
        self._answered = True

    def stop(self, choice: int, notice: Notice) -> bytes:
        """Cut a choice: what it holds back never leaves. Returns the events that end it."""
        if choice in self.cut:
            return b""
        self.cut.add(choice)
        ending = self._reader.ending([choice], notice)
        return ending + self._reader.closing() if self.closed else ending

    def stop_all(self, notice: Notice) -> bytes:
        """Cut all choices that are not cut yet."""
        choices = sorted((self._choices or {0}) - self.cut)
        self.cut.update(choices)
        self._held.clear()
        return self._reader.ending(choices, notice) + self._reader.closing() if choices else b""

    def release(self) -> bytes:
        """The events that may leave now."""
        if self.closed:
            self._held.clear()
            return b""
        released: list[bytes] = []
        while self._held and self._free(self._held[0]):
            held = self._held.popleft()
            self._bytes -= len(held.event.raw)
            released.append(self._reader.without(held.event, self.cut))
        return b"".join(released)

    def rest(self) -> bytes:
        """All that is held back, as it came."""
        held = b"".join(held.event.raw for held in self._held)
        self._held.clear()
        return held

    def _free(self, held: _Held) -> bool:
        if held.ends is None:
            return False
        if self._mode == "rewind":
            return True
        if self._mode == "end" and (not self._ended or any(one.last() for _, one in self._open())):
            return False
        return all(key[0] in self.cut or self._cleared.get(key, 0) >= end for key, end in held.ends.items())
