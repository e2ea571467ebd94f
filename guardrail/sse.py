"""Server-sent events as they come over a wire: chunks of bytes in, whole events out, no byte lost.

The format is that of the HTML standard, section 9.2.6 ("Interpreting an event stream").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Event", "EventParser", "StreamError", "event_bytes"]

_BOM = b"\xef\xbb\xbf"
_IGNORED = frozenset({"", "id", "retry"})
"""Fields that say nothing about the event; a comment is a line whose field has no name."""
MOST_BYTES = 1 << 20
"""Of one event; a stream that never ends its event must not fill the memory."""


class StreamError(Exception):
    """The bytes are no event stream, or one event is too large."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `raw` of all events, in order, are the bytes of the stream."""

    raw: bytes
    """As received, with the empty line that ends it."""
    data: str | None = None
    """Its `data` lines, joined with newlines; None where there is none, as in a comment."""
    name: str = ""
    """Its `event` field."""
    stray: str | None = None
    """The first line that is no field of the standard and no comment: clients skip it, unless they read no events."""

    def json(self) -> Any:
        """The data as JSON; StreamError when it is none."""
        try:
            return json.loads(self.data or "")
        except ValueError as error:
            raise StreamError(f"an event's data is not JSON: {error}") from None


class EventParser:
    """Cuts a stream into events, wherever the chunks begin and end: within a line, a line end or a character."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._raw = bytearray()
        """Of the event that has not ended."""
        self._line = 0
        """Where its last, unfinished line begins."""
        self._scanned = 0
        self._after_cr = False
        self._first = True
        self._data: list[str] = []
        self._name = ""
        self._stray: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end within this chunk."""
        self._raw += chunk
        events: list[Event] = []
        while (end := self._line_end()) is not None:
            event = self._take(end)
            if event is not None:
                events.append(event)
        if len(self._raw) > self._most:
            raise StreamError(f"an event is longer than {self._most} bytes")
        return events

    def rest(self) -> bytes:
        """Take what came behind the last whole event; by the standard it is no event, since no empty line ended it."""
        rest = bytes(self._raw)
        self._raw.clear()
        self._line = self._scanned = 0
        return rest

    def _line_end(self) -> int | None:
        """Where the next line's text ends; None when its end has not come."""
        if self._after_cr and self._line < len(self._raw):
            # The line feed of a CRLF that was cut in two belongs to the line before.
            if self._raw[self._line] == 0x0A:
                self._line += 1
            self._after_cr = False
        start = max(self._line, self._scanned)
        found = [at for at in (self._raw.find(b"\n", start), self._raw.find(b"\r", start)) if at >= 0]
        self._scanned = min(found, default=len(self._raw))
        return min(found, default=None)

    def _take(self, end: int) -> Event | None:
        """Read the line that ends here; the event, when the line is empty."""
        line = bytes(self._raw[self._line : end])
        after = end + 1
        if self._raw[end] == 0x0D:
            if after == len(self._raw):
                self._after_cr = True
            elif self._raw[after] == 0x0A:
                after += 1
        self._line = self._scanned = after
        if self._first:
            self._first, line = False, line.removeprefix(_BOM)
        if line:
            self._field(line)
            return None
        data = "\n".join(self._data) if self._data else None
        event = Event(bytes(self._raw[:after]), data, self._name, self._stray)
        del self._raw[:after]
        self._line = self._scanned = 0
        self._data, self._name, self._stray = [], "", None
        return event

    def _field(self, line: bytes) -> None:
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise StreamError(f"a line is not UTF-8: {error.reason}") from None
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name not in _IGNORED and self._stray is None:
            self._stray = text


def event_bytes(data: Mapping[str, Any] | str, name: str = "") -> bytes:
    """An event with this data, as JSON unless it is a string."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    lines = "".join(f"data: {line}\n" for line in text.split("\n"))
    return f"{head}{lines}\n".encode()
