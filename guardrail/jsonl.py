"""JSON Lines: a strict, bounded reader that names the line in every error, and the encoder of output rows.

A line ends with LF (a CR before it is white space to JSON). A byte-order mark at the start of the file is skipped.
Gzip is recognised by its first bytes, not by the file's name, so that it may come from stdin too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, cast

from guardrail.errors import InputError, ResumeError, RowError

__all__ = [
    "GZIP",
    "MAX_LINE_BYTES",
    "STDIO",
    "Line",
    "LineReader",
    "Lines",
    "Position",
    "check_format",
    "encode",
    "parse",
    "read",
]

STDIO = "-"
"""Stands for stdin and stdout."""
MAX_LINE_BYTES = 10_000_000

GZIP = b"\x1f\x8b"
"""How gzip data starts."""

_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 16
# Levels of nesting: far above any data, and below where the JSON encoder would run out of stack.
_MAX_DEPTH = 200
_MAX_DIGITS = 308
_SHOWN = 40
_OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"\xfd7zXZ": "xz data",
    b"BZh": "bzip2 data",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file",
}


class Line(NamedTuple):
    """One line of the input."""

    number: int
    """From 1."""
    data: bytes | None
    """With its line end; None when the line is longer than the limit."""


class Position(NamedTuple):
    """How far the input was read, and what was there."""

    bytes: int = 0
    """After decompression."""
    lines: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class Lines:
    """The lines of a binary stream, one at a time, in memory bounded by `max_line_bytes`.

    A longer line is read past and given without its data. The first line has the number after `before`; a byte-order
    mark is skipped in line 1. A stream that cannot be read on is an `InputError`.
    """

    def __init__(
        self, name: str, stream: io.BufferedIOBase, *, max_line_bytes: int = MAX_LINE_BYTES, before: int = 0
    ) -> None:
        self.name = name
        self._stream = stream
        self._limit = max_line_bytes
        self._lines = before
        self._bytes = 0
        self._hash = hashlib.sha256()

    @property
    def position(self) -> Position:
        """The end of the last line that was given out."""
        return Position(self._bytes, self._lines, self._hash.hexdigest())

    def __iter__(self) -> Iterator[Line]:
        limit = self._limit
        while data := self._readline(limit + 1):
            self._lines += 1
            if len(data) > limit:
                while not data.endswith(b"\n") and (data := self._readline(_PIECE)):
                    pass
                yield Line(self._lines, None)
            elif self._lines == 1:
                yield Line(1, data.removeprefix(_BOM))
            else:
                yield Line(self._lines, data)

    def _readline(self, limit: int) -> bytes:
        try:
            data = self._stream.readline(limit)
        except (OSError, EOFError, zlib.error) as error:
            self._fail(error)
        self._count(data)
        return data

    def _count(self, data: bytes) -> None:
        self._hash.update(data)
        self._bytes += len(data)

    def _fail(self, error: Exception) -> NoReturn:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        after = f" after line {self._lines}" if self._lines else ""
        raise InputError(f"cannot be read{after}: {reason}", file=self.name) from None


class LineReader(Lines):
    """The lines of a file or of stdin (`-`), which may be compressed with gzip.

    What cannot be read at all (no such file, broken compression) is an `InputError`.
    """

    def __init__(self, source: str | os.PathLike[str], *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        name = "stdin" if source == STDIO else os.fspath(source)
        super().__init__(name, io.BytesIO(), max_line_bytes=max_line_bytes)
        try:
            self._raw = cast(io.BufferedReader, sys.stdin.buffer if source == STDIO else Path(source).open("rb"))  # noqa: SIM115
            try:
                self.size = _size(self._raw)
                self._stream = self._decompressed()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            self._fail(error)

    @property
    def offset(self) -> int:
        """How many of the file's `size` bytes were read, compressed as they are, some of them ahead of time."""
        return self._raw.tell()

    def skip(self, position: Position) -> None:
        """Go on after `position`; a `ResumeError` when what comes before it is not what was there then."""
        left = position.bytes
        try:
            while left and (data := self._stream.read(min(left, _PIECE))):
                self._count(data)
                left -= len(data)
        except (OSError, EOFError, zlib.error) as error:
            self._fail(error)
        if self._hash.hexdigest() != position.sha256:
            raise ResumeError(
                f"{self.name}: the first {position.lines} lines are not those that were scored before",
                hint="give the same input, or start again with --overwrite",
            )
        self._lines = position.lines

    def close(self) -> None:
        """Close the file; stdin stays open."""
        if self._raw is not sys.stdin.buffer:
            self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _decompressed(self) -> io.BufferedReader:
        head = self._raw.peek(8)
        check_format(head, self.name)
        if head.startswith(GZIP):
            return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=self._raw)), _PIECE)
        return self._raw


def check_format(head: bytes, name: str) -> None:
    """An `InputError` when a file that starts so holds no lines."""
    for magic, kind in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise InputError(f"this is {kind}", file=name, hint="unpack it, and pipe it in: … | guardrail score -")


def _size(raw: io.BufferedReader) -> int | None:
    """In bytes; None for what is no regular file and has no size."""
    status = os.fstat(raw.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def parse(line: Line, file: str | None = None) -> dict[str, Any]:
    """The JSON object on a line; a `RowError` when there is none, or when it has more than one meaning.

    Duplicate keys, NaN, infinities, numbers beyond a double and nesting beyond 200 levels are refused: readers
    disagree about them, and what one of them judges another one may not see.
    """
    number, data = line
    if data is None:
        raise RowError("the line is longer than --max-line-bytes", file=file, line=number)
    try:
        value = _DECODER.decode(data.decode("utf-8").rstrip("\r\n"))
        if not isinstance(value, dict):
            raise ValueError(f"expected an object, got {type(value).__name__}")
        _check_depth(value, data)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{data[error.start]:02x} at position {error.start + 1}"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg.rstrip(': ').removesuffix(' at')} at column {error.pos + 1}"
    except RecursionError:
        reason = f"nested more than {_MAX_DEPTH} levels deep"
    except ValueError as error:
        reason = str(error)
    else:
        return value
    raise RowError(reason, file=file, line=number)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:_SHOWN]!r} occurs twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:_SHOWN]} is out of range")
    return value


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"the number {text[:_SHOWN]}… is out of range")
    return int(text)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_int=_integer, parse_constant=_refuse)


def _check_depth(value: Any, data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") <= _MAX_DEPTH:
        return
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for node in level
            for item in (node.values() if isinstance(node, dict) else node)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise RecursionError


def read(
    source: str | os.PathLike[str], *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a whole file, lazily; blank lines are left out, the first bad one is a `RowError`."""
    with LineReader(source, max_line_bytes=max_line_bytes) as lines:
        for line in lines:
            if line.data is None or line.data.strip():
                yield line.number, parse(line, lines.name)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)
_ASCII = json.JSONEncoder(allow_nan=False, check_circular=False)


def encode(row: dict[str, Any]) -> bytes:
    """The row as one line of UTF-8, with its line end.

    Half surrogate pairs and the characters that some readers take for a line end are written as escapes.
    """
    text = _ENCODER.encode(row)
    if not text.isascii() and ("\u2028" in text or "\u2029" in text or "\x85" in text):
        text = _ASCII.encode(row)
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return _ASCII.encode(row).encode("ascii") + b"\n"
