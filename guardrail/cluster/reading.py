"""The rows of a shard, in the batches in which they are judged."""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import io
import math
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple, cast

from guardrail.batch_rows import BATCH_BYTES, Row, batches, read_row, row_of
from guardrail.cluster.shards import Shard
from guardrail.cluster.storage import open_range
from guardrail.errors import GuardrailError, InputError, MissingExtraError, RowError
from guardrail.jsonl import MAX_LINE_BYTES, Lines

__all__ = ["Batch", "read"]

_PIECE = 1 << 16
_ABSENT = frozenset({"id", "text", "prompt", "response", "messages"})


class Batch(NamedTuple):
    """Rows that are judged together."""

    rows: list[Row]
    blank: int
    """Blank lines before and among them."""


def read(shard: Shard, batch_size: int, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Batch]:
    """Read lazily; `InputError` when the file cannot be read on."""
    with open_range(shard.source, shard.start if shard.kind == "lines" else 0) as file:
        if shard.kind == "parquet":
            yield from _parquet(shard, file, batch_size)
            return
        stream = _Piece(file, shard.end - shard.start) if shard.kind == "lines" else gzip.GzipFile(fileobj=file)
        buffered = io.BufferedReader(cast(io.RawIOBase, stream), _PIECE)
        name = shard.source.name
        lines = Lines(name, buffered, max_line_bytes=max_line_bytes, before=shard.before)
        for batch, blank in batches(lines, batch_size):
            yield Batch([read_row(line, name) for line in batch], blank)


class _Piece(io.RawIOBase):
    """The next bytes of a file, so many of them."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._left)
        data = self._file.read(wanted) if wanted else b""
        if wanted and not data:
            raise OSError("it became shorter")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


def _parquet(shard: Shard, file: IO[bytes], batch_size: int) -> Iterator[Batch]:
    """Rows by their numbers in the file, from 1; only the row groups that hold them are read."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "ray") from None
    rows: list[Row] = []
    size = 0
    try:
        table = parquet.ParquetFile(file)
        chosen, number = _groups(table.metadata, shard)
        for records in table.iter_batches(batch_size=batch_size, row_groups=chosen, use_threads=False):
            for index in range(records.num_rows):
                number += 1
                if shard.start < number <= shard.end:
                    row = _row(records.slice(index, 1), number, shard.source.name)
                    rows.append(row)
                    size += sum(len(message.text) for message in row.conversation.messages) if row.conversation else 0
                    if len(rows) == batch_size or size >= BATCH_BYTES:
                        yield Batch(rows, 0)
                        rows, size = [], 0
    except GuardrailError:
        raise
    except (ArrowException, OSError) as error:
        raise InputError(f"cannot be read as Parquet: {error}", file=shard.source.name) from None
    if rows:
        yield Batch(rows, 0)


def _groups(footer: Any, shard: Shard) -> tuple[list[int], int]:
    """The row groups that hold rows of the shard, and how many rows come before the first of them."""
    chosen: list[int] = []
    before = at = 0
    for index in range(footer.num_row_groups):
        end = at + footer.row_group(index).num_rows
        if at < shard.end and end > shard.start:
            before = before if chosen else at
            chosen.append(index)
        at = end
    return chosen, before


def _row(record: Any, number: int, name: str) -> Row:
    """A row of Parquet has every column: an empty one among those that are judged, and an empty id, count as absent."""
    try:
        (raw,) = record.to_pylist()
    except ValueError as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        return Row(number, number, None, {}, RowError(reason, file=name, line=number))
    given = {key: value for key, value in raw.items() if value is not None or key not in _ABSENT}
    try:
        return row_of({key: _plain(value, key) for key, value in given.items()}, number, name)
    except RowError as error:
        return Row(number, number, None, {}, RowError(error.reason, file=name, line=number, field=error.field))


def _plain(value: Any, field: str) -> Any:
    """As JSON has it: times as ISO 8601, decimals as text, bytes as base64, NaN and infinities as null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): _plain(item, field) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, field) for item in cast("Sequence[Any]", value)]
        case datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal():
            return str(value)
        case bytes():
            return base64.b64encode(value).decode("ascii")
    raise RowError(f"a {type(value).__name__} has no place in JSON", field=field)
