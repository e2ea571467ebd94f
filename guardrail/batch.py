"""Bulk scoring: a JSONL file in, a JSONL file of decisions out, in constant memory, resumable at any moment.

Input lines are taken in batches of a fixed number of rows, and a run stops and resumes between two batches only. So
every row is judged beside the same neighbours whether the run was interrupted or not, and the output is the same.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO, get_args

from guardrail.batch_output import Output, open_output
from guardrail.batch_rows import Row, batches, judged, read_row, row_of
from guardrail.batch_run import Run, Tally, check_place, check_record, continued, files_of, refuse_existing
from guardrail.errors import ResumeError, UsageError
from guardrail.jsonl import MAX_LINE_BYTES, STDIO, Line, LineReader

if TYPE_CHECKING:
    from guardrail.guard import Guard

__all__ = ["ENGINES", "OnRowError", "Options", "Row", "check_paths", "read_row", "row_of", "score_file"]

OnRowError = Literal["record", "stop"]
ENGINES = ("local", "ray")


@dataclass(frozen=True, slots=True)
class Options:
    """How to score a file."""

    batch_size: int = 64
    on_error: OnRowError = "record"
    """What a row that cannot be judged does: become an error row, or end the run."""
    resume: bool = False
    overwrite: bool = False
    engine: str = "local"
    max_line_bytes: int = MAX_LINE_BYTES
    sync_seconds: float = 1.0
    """The most work, in seconds, that a killed run loses."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(
                f"--engine is {self.engine!r}, which does not exist", hint=f"engines: {', '.join(ENGINES)}"
            )
        if self.on_error not in get_args(OnRowError):
            known = ", ".join(get_args(OnRowError))
            raise UsageError(f"--on-error is {self.on_error!r}, which is not known", hint=f"known: {known}")
        for flag, value in (("--batch-size", self.batch_size), ("--max-line-bytes", self.max_line_bytes)):
            if value < 1:
                raise UsageError(f"{flag} is {value}", hint="give a number from 1")


def score_file(
    guard: Guard,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: Options = Options(),
    *,
    report: Callable[[Run, LineReader], None] | None = None,
) -> Run:
    """Score `source` into `target` (`-`: stdin, stdout); the result says how many rows came out how.

    `report` is called at the start and after every batch. Errors: `InputError` when the input cannot be read,
    `RowError` for a bad row with `on_error="stop"`, `ResumeError`, `UsageError`, and `BrokenPipeError` when the reader
    of stdout has gone. After an error or an interrupt the output can be resumed.
    """
    if guard.policy.on_error == "raise":
        raise UsageError("on_error: a guard that raises cannot write error rows", hint='use "closed" or "open"')
    if options.engine != "local":
        raise UsageError(f"engine {options.engine!r}: this is the local one", hint="use guardrail.cluster.engine.score")
    goal = os.fspath(target)
    check_paths(source, goal, options)
    run = Run(guard.fingerprint, options.max_line_bytes)
    if options.resume:
        run = continued(goal, run)
    with LineReader(source, max_line_bytes=options.max_line_bytes) as lines:
        lines.skip(run.input)
        if run.done:
            return _unchanged(run, lines)
        with open_output(goal, run, sync_seconds=options.sync_seconds) as output:
            if report:
                report(output.run, lines)
            for batch, blank in batches(lines, options.batch_size):
                _score_batch(guard, batch, blank, lines, output, options)
                if report:
                    report(output.run, lines)
            output.finish()
            return output.run


def check_paths(source: str | os.PathLike[str], target: str, options: Options) -> None:
    """Raise what `score_file` would raise about the two files; for before a large model is loaded."""
    check_place(target, resume=options.resume, overwrite=options.overwrite)
    if source != STDIO and (os.path.isfile(source) or os.path.isdir(source) or not os.path.exists(source)):
        LineReader(source).close()
    _check_apart(source, target)
    if not options.resume and not options.overwrite:
        refuse_existing(target)
        check_record(target)


def _check_apart(source: str | os.PathLike[str], target: str) -> None:
    """A `UsageError` when the run would write to the file that it reads."""
    read = _status(sys.stdin if source == STDIO else source)
    written = {"stdout": sys.stdout} if target == STDIO else {str(path): path for path in files_of(target)}
    for name, file in written.items():
        found = _status(file)
        if read is not None and found is not None and os.path.samestat(read, found):
            raise UsageError(f"-o: {name} is the input", hint="name another file")


def _status(file: str | os.PathLike[str] | TextIO) -> os.stat_result | None:
    """Of a regular file; None of anything else, such as a pipe or a stream without a file behind it."""
    try:
        found = os.stat(file if isinstance(file, str | os.PathLike) else file.fileno())
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _score_batch(
    guard: Guard,
    batch: Sequence[Line],
    blank: int,
    lines: LineReader,
    output: Output,
    options: Options,
) -> None:
    position = lines.position
    rows = [read_row(line, lines.name) for line in batch]
    data, tally = judged(guard, rows, lines.name, stop=_hint(output) if options.on_error == "stop" else None)
    output.append(data, position, output.run.tally + tally + Tally(blank=blank))


def _hint(output: Output) -> str:
    again = " and go on with --resume" if output.resumable else ""
    return f"correct the row{again}, or give --on-error record"


def _unchanged(run: Run, lines: LineReader) -> Run:
    """A finished run, whose input must still end where it ended."""
    if next(iter(lines), None) is not None:
        raise ResumeError(
            f"{lines.name}: the input has grown since the output was finished",
            hint="score the new rows by themselves, or start again with --overwrite",
        )
    return run
