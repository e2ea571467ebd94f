"""What `guardrail score` says on stderr: a bar while it runs, and a line at its end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from guardrail.errors import GuardrailError

if TYPE_CHECKING:
    from guardrail.batch_run import Tally

__all__ = ["Report", "Watch", "alone", "counts", "interrupted", "number", "progress", "say"]

Report = Callable[["Tally", int, "int | None"], None]
"""Is told how the rows came out so far, and how much of how much is done: bytes, or parts."""

_INTERRUPTED = 130


class Watch:
    """What happened since the start, for the summary."""

    def __init__(self) -> None:
        self.tally: Tally | None = None
        self._earlier = 0
        self._started = time.monotonic()

    def __call__(self, tally: Tally, done: int, total: int | None) -> None:
        if self.tally is None:
            self._earlier = tally.rows
            self._started = time.monotonic()
        self.tally = tally

    @property
    def rate(self) -> float:
        """Rows per second in this run."""
        rows = self.tally.rows - self._earlier if self.tally else 0
        return rows / max(time.monotonic() - self._started, 1e-9)

    def summary(self) -> str:
        """Rows, verdicts, time and rate."""
        if self.tally is None:
            return "no row was scored"
        earlier = f", {self._earlier} of them in an earlier run" if self._earlier else ""
        seconds = time.monotonic() - self._started
        return f"{counts(self.tally)}{earlier}; {seconds:.1f} s, {self.rate:.0f} rows/s"


def counts(tally: Tally) -> str:
    """Rows by verdict, in words."""
    blank = f", {number(tally.blank, 'blank line')} skipped" if tally.blank else ""
    verdicts = f"{tally.safe} safe, {tally.unsafe} unsafe, {number(tally.errors, 'error')}"
    return f"{number(tally.rows, 'row')}: {verdicts}{blank}"


def number(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def say(line: str) -> None:
    """Print to stderr."""
    print(line, file=sys.stderr)


def interrupted(watch: Watch, *, resumable: bool) -> GuardrailError:
    """The error that Ctrl-C becomes."""
    hint = "the same command with --resume goes on from there" if resumable else None
    error = GuardrailError(f"interrupted; {watch.summary()}", hint=hint)
    error.exit_status = _INTERRUPTED
    return error


@contextmanager
def alone() -> Iterator[None]:
    """Keep what a library prints off stdout, and off stderr what does not come from Python.

    The log of a library in C++ writes to the descriptor itself; Ray keeps the same lines in its log files.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with (
            os.fdopen(nowhere, "w") as lost,
            open(kept, "w", buffering=1, errors="backslashreplace", closefd=False) as stderr,
            redirect_stdout(lost),
            redirect_stderr(stderr),
        ):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def progress(watch: Watch) -> Iterator[Report]:
    """A bar, when somebody watches."""
    if not sys.stderr.isatty():
        yield watch
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.fields[rows]} rows"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:.0f} rows/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rows=0, rate=0.0)

        def report(tally: Tally, done: int, total: int | None) -> None:
            watch(tally, done, total)
            bar.update(task, total=total, completed=done, rows=tally.rows, rate=watch.rate)

        yield report
