"""The record of a scoring run: how far it is, what it depends on, and where it is kept."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from guardrail.errors import ResumeError, UsageError
from guardrail.jsonl import STDIO, Position

__all__ = [
    "Run",
    "Tally",
    "check_place",
    "check_record",
    "check_target",
    "continued",
    "files_of",
    "is_stream",
    "partial_of",
    "real_path",
    "refuse_existing",
    "save",
]

_FORMAT = 1
_AGAIN = "start again with --overwrite"


@dataclass(frozen=True, slots=True)
class Tally:
    """What came out: rows by verdict, and the blank lines that were skipped."""

    rows: int = 0
    safe: int = 0
    unsafe: int = 0
    errors: int = 0
    blank: int = 0

    def __add__(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Tally)))


@dataclass(frozen=True, slots=True)
class Run:
    """How far a run is, and what it depends on."""

    guard: str
    """The guard's fingerprint."""
    max_line_bytes: int
    """A longer line is an error row, so that the output depends on it."""
    input: Position = field(default_factory=Position)
    output_bytes: int = 0
    tally: Tally = field(default_factory=Tally)
    done: bool = False

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps({"format": _FORMAT, **asdict(self), "input": self.input._asdict()}, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Run | None:
        """The record in a file; None when there is none. A `ResumeError` when the file is something else."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw.pop("format") != _FORMAT:
                raise ValueError("another format")
            return cls(**{**raw, "input": Position(**raw["input"]), "tally": Tally(**raw["tally"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ResumeError(f"{path}: this is not the record of a run", hint=_AGAIN) from None
        except OSError as error:
            raise ResumeError(f"{path}: cannot be read: {error.strerror}", hint=_AGAIN) from None


def check_target(target: str, *, resume: bool, overwrite: bool) -> None:
    """A `UsageError` when nothing can be written there, or when something is there and neither flag was given."""
    check_place(target, resume=resume, overwrite=overwrite)
    if not resume and not overwrite:
        refuse_existing(target)


def check_place(target: str, *, resume: bool, overwrite: bool) -> None:
    """A `UsageError` when nothing can be written there with these flags, whatever is there."""
    if not target:
        raise UsageError("-o: the name is empty", hint="name a file, or leave -o out: then the rows go to stdout")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if is_stream(target):
        if resume:
            raise UsageError(f"--resume: {target} cannot be continued", hint="write to a file: -o FILE")
        return
    path = real_path(target)
    if os.path.isdir(path):
        raise UsageError(f"-o: {target} is a folder", hint="name a file in it")
    if not os.path.isdir(path.parent):
        raise UsageError(f"-o: there is no folder {path.parent}")


def continued(name: str, run: Run) -> Run:
    """The unfinished or finished run of a target; `run`, which is at its start, when there is none.

    A `ResumeError` when it belongs to another guard or to other options than those of `run`.
    """
    target = real_path(name)
    earlier = Run.read(_record(target))
    partial = partial_of(target)
    if earlier is None:
        # An empty partial file is from a run that was killed before it wrote its record.
        if partial.stat().st_size if os.path.exists(partial) else os.path.exists(target):
            raise ResumeError(f"{target}: there is no record of the run that wrote it", hint=_AGAIN)
        return run
    if os.path.exists(partial):
        if partial.stat().st_size >= earlier.output_bytes:
            # When it was done, only the renaming is missing.
            return replace(_same(target, earlier, run), done=False)
        if not earlier.done:
            raise ResumeError(f"{partial}: shorter than its record says", hint=_AGAIN)
        return run  # the record is the one of a finished run, which a new one had just begun to overwrite
    if earlier.done and os.path.exists(target):
        return _same(target, earlier, run)
    if earlier.output_bytes:
        raise ResumeError(f"{partial}: the file is gone", hint=_AGAIN)
    return run


def _same(target: Path, earlier: Run, run: Run) -> Run:
    """The earlier run, when this one has its guard and options."""
    for name, then, now in (
        ("guard", earlier.guard, run.guard),
        ("--max-line-bytes", earlier.max_line_bytes, run.max_line_bytes),
    ):
        if then != now:
            raise ResumeError(
                f"{target}: {name}: the earlier run had {then}, this one has {now}",
                hint="give the same model, taxonomy, threshold and options, or start again with --overwrite",
            )
    return earlier


def is_stream(target: str) -> bool:
    """Whether rows go out at once: stdout, a pipe or a device."""
    return target == STDIO or (os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target))


def real_path(target: str) -> Path:
    """The file behind a link: renaming onto the link would replace the link."""
    path = Path(target)
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def partial_of(target: Path) -> Path:
    """Where the rows are until the run is done."""
    return target.with_name(f"{target.name}.partial")


def files_of(target: str) -> tuple[Path, ...]:
    """Every file that a run with this target writes; of a stream, the stream."""
    if is_stream(target):
        return (Path(target),)
    path = real_path(target)
    return (path, partial_of(path), _record(path), _new(_record(path)))


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.run.json")


def _new(record: Path) -> Path:
    """Where a record is written before it takes the place of the last one."""
    return record.with_name(f"{record.name}.new")


def refuse_existing(target: str) -> None:
    """A `UsageError` when a run that starts anew would replace an output, finished or not."""
    if is_stream(target):
        return
    path = real_path(target)
    if os.path.exists(partial_of(path)):
        raise UsageError(
            f"-o: {partial_of(path)} is there: an earlier run did not come to its end",
            hint="go on with --resume, or start again with --overwrite",
        )
    if os.path.exists(path):
        raise UsageError(f"-o: {path} is there already", hint="name another file, or replace it with --overwrite")


def check_record(target: str) -> None:
    """A `UsageError` when what has the name of the run's record is no record, which would be replaced."""
    if is_stream(target):
        return
    path = real_path(target)
    try:
        Run.read(_record(path))
    except ResumeError:
        raise UsageError(
            f"-o: {_record(path)} is there and is not the record of a run",
            hint="name another file, or replace it with --overwrite",
        ) from None


def save(run: Run, target: Path) -> None:
    """Replace the record in one step."""
    path = _record(target)
    new = _new(path)
    with new.open("w", encoding="utf-8") as file:
        file.write(run.to_json())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
