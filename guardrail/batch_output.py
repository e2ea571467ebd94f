"""Where scored rows go: a file that a killed run can continue, or a stream.

While a run is under way the rows are in `OUT.partial`, and `OUT.run.json` says how many of its bytes are whole rows and
how much of the input they stand for. At the end the partial file is renamed to `OUT`, in one step, and the record
stays beside it. Bytes beyond the record are from a batch that was cut off: they are removed and scored again.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from guardrail.batch_run import Run, Tally, is_stream, partial_of, real_path, save
from guardrail.errors import GuardrailError, ResumeError
from guardrail.jsonl import STDIO, Position

__all__ = [
    "FileOutput",
    "Output",
    "StreamOutput",
    "failures",
    "locked",
    "member",
    "open_output",
    "packed",
    "sync_folder",
]

_LEVEL = 6
_ROOM = "the rows so far are kept: when there is room again, go on with --resume"


class FileOutput:
    """A file that is written in whole batches; `run` says how far it is."""

    resumable = True

    def __init__(self, target: Path, run: Run, *, sync_seconds: float) -> None:
        self.name = str(target)
        self.run = run
        self._target = target
        self._sync_seconds = sync_seconds
        self._synced_at = time.monotonic()
        self._synced: Run | None = None
        with failures(str(partial_of(target))):
            self._file = locked(partial_of(target), new=not run.output_bytes)
            save(run, target)
            self._file.truncate(run.output_bytes)
            self._file.seek(run.output_bytes)

    def append(self, data: bytes, position: Position, tally: Tally) -> None:
        """Write a batch; at most `sync_seconds` later it is safe against a loss of power too."""
        content = packed(data, self._target.name)
        with failures(str(partial_of(self._target)), _ROOM):
            _write(self._file, content)
            written = self.run.output_bytes + len(content)
            self.run = replace(self.run, input=position, output_bytes=written, tally=tally)
            if time.monotonic() - self._synced_at >= self._sync_seconds:
                self._sync()

    def finish(self) -> None:
        """Give the file its name."""
        with failures(self.name, _ROOM):
            if not self.run.output_bytes and self._target.suffix == ".gz":
                _write(self._file, member(b""))
                self.run = replace(self.run, output_bytes=len(member(b"")))
            self.run = replace(self.run, done=True)
            self._sync()
            partial_of(self._target).replace(self._target)
            sync_folder(self._target.parent)

    def _sync(self) -> None:
        """The rows first, then the record that vouches for them."""
        if self.run is not self._synced:
            os.fsync(self._file.fileno())
            save(self.run, self._target)
            self._synced = self.run
        self._synced_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            if kind is not None and not self.run.done:
                self._sync()
        with suppress(OSError):
            self._file.close()


class StreamOutput:
    """stdout, a pipe or a device: rows go out at once, and there is nothing to resume."""

    resumable = False

    def __init__(self, target: str, run: Run) -> None:
        self.name = "stdout" if target == STDIO else target
        self.run = run
        with failures(self.name):
            # Not through sys.stdout: what its buffer could not write would fail once more when Python exits.
            stdout = target == STDIO
            self._file = io.FileIO(sys.stdout.fileno() if stdout else target, "w", closefd=not stdout)

    def append(self, data: bytes, position: Position, tally: Tally) -> None:
        """Write a batch; a `BrokenPipeError` when nobody reads any more."""
        with failures(self.name):
            _write(self._file, packed(data, self.name))
        self.run = replace(self.run, input=position, tally=tally)

    def finish(self) -> None:
        """All rows are out already."""
        self.run = replace(self.run, done=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._file.close()


Output = FileOutput | StreamOutput


def open_output(target: str, run: Run, *, sync_seconds: float = 1.0) -> Output:
    """The place for the rows that follow after `run`."""
    if is_stream(target):
        return StreamOutput(target, run)
    return FileOutput(real_path(target), run, sync_seconds=sync_seconds)


def locked(path: Path, *, new: bool) -> io.FileIO:
    """The file, opened for one process at a time."""
    if new:
        path.touch()
    file = io.FileIO(path, "r+")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The process that held the lock may have renamed the file between the two calls.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except ImportError:  # no such locks on Windows
        return file
    except BlockingIOError:
        pass
    file.close()
    raise ResumeError(f"{path}: another process is writing it", hint="wait for it, or write to another file")


def _write(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def packed(data: bytes, name: str) -> bytes:
    """As it stands in a file of that name: compressed when the name ends in .gz."""
    return member(data) if data and name.endswith(".gz") else data


def member(data: bytes) -> bytes:
    """A gzip file of its own: concatenated, they are one gzip file, which can be cut and continued between them."""
    return gzip.compress(data, _LEVEL, mtime=0)


def sync_folder(folder: Path) -> None:
    """Make the renaming last; a folder can be opened for that on POSIX only."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def failures(name: str, hint: str | None = None) -> Iterator[None]:
    """A full disk and the like as one line."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GuardrailError(f"{name}: cannot be written: {error.strerror or error}", hint=hint) from None
