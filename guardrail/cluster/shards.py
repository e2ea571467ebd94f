"""Cutting the input into shards: the same files and the same size give the same shards, wherever they are read.

Plain JSON Lines are cut at the line ends nearest to multiples of the size; a line belongs to the range in which it
starts. A line's number needs the count of the lines before it, so that such files are read once to be cut. A gzip file
is one shard, because it can be read from its start only. Parquet is cut between row groups, or within one that is
much larger than the size, by rows; its footer has all that is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import IO, Literal, NamedTuple

from guardrail.cluster.storage import Source, open_range
from guardrail.errors import GuardrailError, InputError, MissingExtraError
from guardrail.jsonl import GZIP, check_format

__all__ = [
    "Kind",
    "LineCount",
    "Range",
    "Shard",
    "count",
    "count_lines",
    "kind_of",
    "line_shards",
    "parquet_shards",
    "ranges",
]

Kind = Literal["lines", "gzip", "parquet"]

_PARQUET = b"PAR1"
_PIECE = 1 << 20
# A row group is read again for each of its shards.
_GROUP_PIECES = 8


@dataclass(frozen=True, slots=True)
class Shard:
    """A piece of a file, which becomes one part of the output."""

    index: int
    """From 0, in the order of the input."""
    kind: Kind
    source: Source
    start: int
    """In bytes, for Parquet in rows."""
    end: int
    before: int
    """The lines, or rows, before it in its file."""

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Shard:
        """What `to_json` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, "source": Source(**raw["source"])})


class Range(NamedTuple):
    """A piece of a file of lines, before it is cut at line ends."""

    source: Source
    start: int
    end: int


class LineCount(NamedTuple):
    """The lines that start in a range."""

    lines: int
    first: int
    """Where the first one starts; the range's end when none does."""


def kind_of(source: Source) -> Kind:
    """By the first bytes, not by the name; an `InputError` for a file in another format."""
    with open_range(source) as file:
        head = file.read(8)
    if head.startswith(_PARQUET):
        return "parquet"
    check_format(head, source.name)
    return "gzip" if head.startswith(GZIP) else "lines"


def ranges(source: Source, size: int) -> Iterator[Range]:
    """Ranges of `size` bytes; the last one is what is left."""
    for start in range(0, source.size, size):
        yield Range(source, start, min(start + size, source.size))


def count(piece: Range) -> LineCount:
    """Count the lines of a range; `InputError` when it cannot be read."""
    with open_range(piece.source, max(0, piece.start - 1)) as file:
        try:
            return count_lines(file, piece.start, piece.end)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", file=piece.source.name) from None


def count_lines(file: IO[bytes], start: int, end: int) -> LineCount:
    """The same for an open file that stands one byte before `start`, or at 0."""
    lines, first, at = (0, end, start) if start else (1 if end else 0, 0, 1)
    # A line starts behind each line end: those from one byte before the range to two before its end.
    while at < end:
        data = file.read(min(_PIECE, end - at))
        if not data:
            raise OSError("it became shorter")
        found = data.count(b"\n")
        if found and not lines:
            first = at + data.index(b"\n")
        lines += found
        at += len(data)
    return LineCount(lines, first)


def line_shards(source: Source, counts: Sequence[LineCount], index: int) -> Iterator[Shard]:
    """The shards of a file from the counts of all of its ranges; a range inside a line goes to the shard before it."""
    starting = [found for found in counts if found.lines]
    ends = [*(found.first for found in starting[1:]), source.size]
    before = 0
    for found, end in zip(starting, ends, strict=False):
        yield Shard(index, "lines", source, found.first, end, before)
        index += 1
        before += found.lines


def parquet_shards(source: Source, size: int, index: int) -> Iterator[Shard]:
    """Runs of rows of about `size` bytes uncompressed; `InputError` when the file cannot be read as Parquet."""
    start = 0
    for rows in _runs(_groups(source), size):
        yield Shard(index, "parquet", source, start, start + rows, start)
        index += 1
        start += rows


def _groups(source: Source) -> list[tuple[int, int]]:
    """Rows and bytes of each row group."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "ray") from None
    try:
        with open_range(source) as file:
            footer = parquet.read_metadata(file)
            groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
            return [(group.num_rows, group.total_byte_size) for group in groups]
    except GuardrailError:
        raise
    except (ArrowException, OSError) as error:
        raise InputError(f"cannot be read as Parquet: {error}", file=source.name) from None


def _runs(groups: Sequence[tuple[int, int]], size: int) -> Iterator[int]:
    """How many rows each shard has: small groups together, a large one in equal pieces."""
    rows = gathered = 0
    for group_rows, group_bytes in groups:
        pieces = min(_GROUP_PIECES, -(-group_bytes // size), group_rows)
        if pieces > 1:
            if rows:
                yield rows
            bounds = [group_rows * piece // pieces for piece in range(pieces + 1)]
            yield from (end - start for start, end in pairwise(bounds))
            rows = gathered = 0
            continue
        rows, gathered = rows + group_rows, gathered + group_bytes
        if gathered >= size:
            yield rows
            rows = gathered = 0
    if rows:
        yield rows
