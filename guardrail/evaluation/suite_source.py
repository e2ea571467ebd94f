"""Reads a suite's records from local files or through `datasets`, and keeps the digest of what was read."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from guardrail import jsonl
from guardrail.errors import InputError, MissingExtraError, RowError, suggestion
from guardrail.evaluation.suite_record import Record
from guardrail.evaluation.suite_spec import DataFile, Hub, Source

__all__ = ["Reader"]

_FOLDERS = ("", "eval")
# A field of a CSV file: as long as a line of a JSON Lines file may be.
_FIELD_SIZE = jsonl.MAX_LINE_BYTES
_BATCH = 512
_PIECE = 1 << 20

Rows = Iterator[tuple[int | None, Mapping[str, Any]]]
"""The line of each row, for formats that have lines, and its columns."""


class Reader:
    """The records of a suite's source, in order; can be iterated once.

    Files below the folder `data` come first; without them the hub is asked, where the source has one. Raises InputError
    when it is created if neither is possible, and while it is iterated if one cannot be read.
    """

    def __init__(self, source: Source, data: Path | None) -> None:
        self._source = source
        self._files = _locate(source, data) if data is not None else []
        if data is None and source.hub is None:
            raise InputError("the data is read from files", hint=_advice(source, "give their folder with --data"))
        self._digest = hashlib.sha256()
        self.number = 0
        """How many records were read so far."""
        self.columns: set[str] = set()
        """The names of the columns that were seen so far."""

    @property
    def name(self) -> str:
        """What is read, for messages."""
        if self._files:
            return ", ".join(str(path) for path, _ in self._files)
        return self._source.hub.ref if self._source.hub else ""

    @property
    def origin(self) -> str:
        """The files without their folders, or the data set on the hub: for a report that others read."""
        return ", ".join(path.name for path, _ in self._files) or self.name

    @property
    def sha256(self) -> str:
        """Hex digest of what was read so far: of the files as they are, one after the other, or of the hub's rows."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[Record]:
        for path, file in self._files:
            with _named_errors(path):
                _hash_file(path, self._digest)
                yield from self._records(_read_file(path, file, self._source.records), str(path), file.columns)
        if not self._files and self._source.hub:
            for split in self._source.hub.splits:
                columns = {"split": split} if len(self._source.hub.splits) > 1 else {}
                yield from self._records(self._hashed(_read_hub(self._source.hub, split)), self.name, columns)

    def _records(self, rows: Rows, file: str, columns: Mapping[str, str]) -> Iterator[Record]:
        for row, (line, values) in enumerate(rows, 1):
            self.number += 1
            record = Record({**values, **columns}, self.number, file, line, row)
            self.columns.update(record.values)
            yield record

    def _hashed(self, rows: Rows) -> Rows:
        for line, values in rows:
            self._digest.update(json.dumps(values, sort_keys=True, default=str).encode() + b"\n")
            yield line, values


def _locate(source: Source, data: Path) -> list[tuple[Path, DataFile]]:
    """The paths of the files below the data folder or its folder `eval`; none when the hub has to be asked.

    Raises InputError when some files are there and others are not, or when none is and there is no hub.
    """
    paths = [_find(file, data) for file in source.files]
    if source.hub and not any(paths):
        return []
    for file, path in zip(source.files, paths, strict=True):
        if path is None:
            looked = " nor ".join(str(data / folder / file.path) for folder in _FOLDERS)
            raise InputError(f"there is no {looked}", hint=_advice(source, ""))
    return [(path, replace(file, path=path.name)) for file, path in zip(source.files, paths, strict=True) if path]


def _find(file: DataFile, data: Path) -> Path | None:
    """Where a file is, packed or not."""
    names = (file.path, file.path.removesuffix(".gz") if file.path.endswith(".gz") else f"{file.path}.gz")
    tried = (data / folder / name for folder in _FOLDERS for name in names)
    return next((path for path in tried if path.is_file()), None)


def _advice(source: Source, first: str) -> str:
    return "; ".join(filter(None, (first, f"the files are from {source.home}" if source.home else "")))


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Give the errors of reading a file its name."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: byte 0x{error.object[error.start]:02x}", file=str(path)) from None
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot be read: {reason}", file=str(path)) from None


def _hash_file(path: Path, digest: hashlib._Hash) -> None:
    with path.open("rb") as raw:
        while piece := raw.read(_PIECE):
            digest.update(piece)


def _read_file(path: Path, file: DataFile, records: str | None) -> Rows:
    readers: dict[str, Callable[[], Rows]] = {
        ".csv": lambda: _read_csv(path, ","),
        ".tsv": lambda: _read_csv(path, "\t"),
        ".json": lambda: _read_json(path, records),
        ".jsonl": lambda: jsonl.read(path),
        ".parquet": lambda: _read_parquet(path),
    }
    return readers[file.format]()


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_csv(path: Path, delimiter: str) -> Rows:
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_SIZE))
    with _open(path) as file:
        # Strict, or a file that was cut inside a quoted text would end with that text.
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        line, header = 1, None
        try:
            for row in rows:
                if header is None:
                    header = _header(row, path)
                elif row and len(row) != len(header):
                    reason = f"{len(row)} columns, but the header has {len(header)}"
                    raise RowError(reason, file=str(path), line=line)
                elif row:
                    yield line, dict(zip(header, row, strict=True))
                line = rows.line_num + 1
        except csv.Error as error:
            raise RowError(f"not CSV: {error}", file=str(path), line=line) from None


def _header(row: list[str], path: Path) -> list[str]:
    twice = next((name for name in row if row.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two columns have the name {twice!r}", file=str(path), line=1)
    return row


def _read_json(path: Path, key: str | None) -> Rows:
    with _open(path) as file:
        try:
            value = json.load(file)
        except json.JSONDecodeError as error:
            raise InputError(f"not JSON: {error.msg}", file=str(path), line=error.lineno) from None
    for name, records in _lists(value, key, path):
        for number, record in enumerate(records, 1):
            if not isinstance(record, dict):
                place = f"{name}[{number - 1}]" if name else f"record {number}"
                reason = f"expected an object, got {type(record).__name__}"
                raise RowError(reason, file=str(path), field=place)
            yield None, {**record, "key": name} if key == "*" else record


def _lists(value: Any, key: str | None, path: Path) -> Iterator[tuple[str, list[Any]]]:
    """The lists of records in a JSON file, each with the key under which it is."""
    if key is None:
        lists: dict[str, Any] = {"": value}
    elif not isinstance(value, dict):
        raise InputError(f"expected an object, got {type(value).__name__}", file=str(path))
    elif key == "*":
        lists = value
    elif key in value:
        lists = {key: value[key]}
    else:
        hint = suggestion(key, list(value), f"keys: {', '.join(map(str, value))}")
        raise InputError(f"there is no key {key!r}", file=str(path), hint=hint)
    for name, records in lists.items():
        if not isinstance(records, list):
            advice = "source.records in the suite file names the key of the list" if isinstance(records, dict) else None
            reason = f"expected a list of records, got {type(records).__name__}"
            raise InputError(reason, file=str(path), field=name or None, hint=advice)
        yield name, records


def _read_parquet(path: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "eval") from None
    with path.open("rb") as raw:
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
        try:
            for batch in parquet.ParquetFile(file).iter_batches(_BATCH):
                for values in batch.to_pylist():
                    yield None, values
        except pyarrow.ArrowException as error:
            raise InputError(f"not Parquet: {error}", file=str(path)) from None


def _read_hub(hub: Hub, split: str) -> Rows:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "eval") from None
    try:
        rows = datasets.load_dataset(hub.id, name=hub.config, split=split, revision=hub.revision)
    except Exception as error:  # The library's errors are of many kinds, its network client's among them.
        reason = str(error).partition("\n")[0] or type(error).__name__
        hint = "see whether access to it has to be asked for, or put its files into a folder and name that with --data"
        raise InputError(f"cannot be loaded: {reason}", file=hub.ref, hint=hint) from None
    for values in rows:
        yield None, values
