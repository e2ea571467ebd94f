"""Files on a disk or behind an address (`s3://`, `gs://`, whatever fsspec opens): listing, reading, writing whole."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from guardrail.batch_output import failures
from guardrail.errors import GuardrailError, InputError, MissingExtraError, UsageError

__all__ = ["Folder", "Source", "expand", "find", "is_url", "open_range"]

_ENDINGS = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".parquet")
# What file systems call the state of a file's content, the strongest first.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "generation",
    "checksum",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "modify",
)
_PIECE = 1 << 20
_ARROW = frozenset({"s3", "s3a", "gs", "gcs"})


@dataclass(frozen=True, slots=True)
class Source:
    """An input file, as it was when it was listed."""

    name: str
    """As the caller wrote it, for messages."""
    url: str
    """An address, or an absolute path."""
    size: int
    """In bytes."""
    version: str
    """Its ETag or time of change; empty where the storage tells neither."""


def is_url(path: str) -> bool:
    """Whether it is an address and not a path."""
    return "://" in path


def expand(source: str) -> list[Source]:
    """The files that a path, an address, a folder or a pattern with `*` stands for, sorted by name.

    `InputError` when there is none, or when a folder holds a file that is neither JSON Lines nor Parquet.
    """
    names = _listed_remote(source) if is_url(source) else _listed(source)
    if not names:
        raise InputError("no file matches", file=source)
    return [find(name) for name in sorted(names)]


def find(name: str) -> Source:
    """One file as it is now; `InputError` when it is not there."""
    url = name if is_url(name) else os.path.abspath(name)
    system, path = _open(url)
    try:
        info = system.info(path)
    except (OSError, ValueError) as error:
        raise _unreadable(error, name) from None
    if info.get("type") != "file" or info.get("size") is None:
        raise InputError("this is no file with a size", file=name, hint="the ray engine reads files in pieces")
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return Source(name, url, int(info["size"]), version)


def _listed(source: str) -> list[str]:
    if os.path.isdir(source):
        found = [path for path in Path(source).rglob("*") if path.is_file()]
        return _readable(source, [str(path) for path in found], [str(path.relative_to(source)) for path in found])
    if os.path.exists(source) or not glob.has_magic(source):
        return [source]
    return [path for path in glob.glob(source, recursive=True) if not os.path.isdir(path)]


def _listed_remote(source: str) -> list[str]:
    system, path = _open(source)
    system.invalidate_cache()
    try:
        if glob.has_magic(path):
            return [system.unstrip_protocol(name) for name in system.glob(path)]
        if not source.endswith("/") and not system.isdir(path):
            return [source]
        root = path.rstrip("/") + "/"
        found = [str(name) for name in system.find(path)]
    except (OSError, ValueError) as error:
        raise _unreadable(error, source) from None
    return _readable(
        source, [system.unstrip_protocol(name) for name in found], [name.removeprefix(root) for name in found]
    )


def _readable(folder: str, paths: Sequence[str], inner: Sequence[str]) -> list[str]:
    """The data files of a folder; names that start with a dot or an underscore are notes of whoever wrote it."""
    chosen = []
    for path, name in zip(paths, inner, strict=True):
        if any(piece[:1] in {".", "_"} for piece in name.split("/")):
            continue
        if not name.endswith(_ENDINGS):
            hint = f"give a pattern, such as {folder.rstrip('/')}/*.jsonl"
            raise InputError("neither JSON Lines nor Parquet by its name", file=path, hint=hint)
        chosen.append(path)
    return chosen


@contextmanager
def open_range(source: Source, start: int = 0) -> Iterator[IO[bytes]]:
    """The file from the byte `start` on, read in pieces; `InputError` when it cannot be opened."""
    system, path = _open(source.url)
    try:
        file = system.open(path, "rb", block_size=_PIECE, cache_type="readahead")
    except (OSError, ValueError) as error:
        raise _unreadable(error, source.name) from None
    with file:
        file.seek(start)
        yield file


class Folder:
    """A folder that is written to, where files appear whole or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url if is_url(url) else os.path.abspath(url)
        self.local = not is_url(self.url)
        self._system, self._path = _open(self.url)

    def path(self, name: str) -> str:
        """Where the file of a name is."""
        return f"{self.url.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """All files, by their names in the folder, in bytes; empty when there is no such folder."""
        self._system.invalidate_cache()
        root = self._path.rstrip("/") + "/"
        with self._reading(self.url):
            found: Mapping[str, Mapping[str, Any]] = self._system.find(self._path, detail=True)
            return {name.removeprefix(root): int(info["size"] or 0) for name, info in found.items()}

    def read(self, name: str) -> bytes | None:
        """A small file; None when there is none."""
        with self._reading(self.path(name)):
            try:
                return cast(bytes, self._system.cat_file(self._inner(name)))
            except FileNotFoundError:
                return None

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Small files, many at a time where the storage is far away."""
        if not names:
            return {}
        with self._reading(self.url):
            found = self._system.cat([self._inner(name) for name in names], on_error="return")
        inner = {self._inner(name): name for name in names}
        return {inner[path]: data for path, data in found.items() if isinstance(data, bytes)}

    def write(self, name: str, data: bytes) -> None:
        """Put a small file in its place."""
        with self.writing(name) as file:
            file.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file that takes its place when the block ends well, and of which nothing stays when it does not."""
        with failures(self.path(name)), _cleaned() as undo:
            if self.local:
                target = Path(self._inner(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                new = target.with_name(f"{target.name}.tmp-{socket.gethostname()}-{os.getpid()}")
                undo(lambda: new.unlink(missing_ok=True))
                with new.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(target)
                return
            descriptor, spool = tempfile.mkstemp(prefix="guardrail-part-")
            undo(lambda: os.unlink(spool))
            with os.fdopen(descriptor, "wb") as file:
                yield file
            self._system.put_file(spool, self._inner(name))

    def remove(self, names: Sequence[str]) -> None:
        """Delete files; those that are gone already are no error."""
        for name in names:
            with failures(self.path(name)), suppress(FileNotFoundError):
                self._system.rm_file(self._inner(name))

    def remove_all(self) -> None:
        """Delete a folder on this machine with all that is in it."""
        with failures(self.url), suppress(FileNotFoundError):
            shutil.rmtree(self._path)

    def _inner(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise GuardrailError(f"{name}: cannot be read: {_reason(error)}") from None


@contextmanager
def _cleaned() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Runs what was registered at the end, however it comes."""
    undone: list[Callable[[], None]] = []
    try:
        yield undone.append
    finally:
        for undo in undone:
            with suppress(OSError):
                undo()


def _open(url: str) -> tuple[Any, str]:
    """The file system and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtraError("fsspec", "ray") from None
    try:
        return cast("tuple[Any, str]", url_to_fs(url if is_url(url) else f"file://{os.path.abspath(url)}"))
    except ImportError as error:
        scheme, _, path = url.partition("://")
        if scheme not in _ARROW:
            raise UsageError(f"{url}: {error}") from None
        return _arrow(f"{scheme}://{path.partition('/')[0]}"), path
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from None


@cache
def _arrow(bucket: str) -> Any:
    """The client inside pyarrow, for where fsspec's own (s3fs, gcsfs) is not installed."""
    try:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem
    except ImportError:
        raise MissingExtraError("pyarrow", "ray") from None
    try:
        system = ArrowFSWrapper(FileSystem.from_uri(bucket)[0])
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be opened: {error}", file=bucket) from None

    def put_file(local: str, path: str) -> None:
        with open(local, "rb") as source, system.open(path, "wb") as target:
            shutil.copyfileobj(source, target, _PIECE)

    # Its own one makes folders first, for which the right to write objects is not enough.
    system.put_file = put_file
    return system


def _unreadable(error: Exception, name: str) -> InputError:
    return InputError(f"cannot be read: {_reason(error)}", file=name)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "No such file or directory"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
