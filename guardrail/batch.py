"""Bulk scoring: a JSONL file in, a JSONL file of decisions out, in constant memory, resumable at any moment.

Input lines are taken in batches of a fixed number of rows, and a run stops and resumes between two batches only. So
every row is judged beside the same neighbours whether the run was interrupted or not, and the output is the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from guardrail.batch_output import Output, open_output
from guardrail.batch_run import Run, Tally, check_target, continued, partial_of, real_path
from guardrail.errors import ConversationError, ResumeError, RowError, UsageError
from guardrail.jsonl import MAX_LINE_BYTES, STDIO, Line, LineReader, encode, parse
from guardrail.types import Conversation, Decision, Message, Role, Verdict

if TYPE_CHECKING:
    from guardrail.guard import Guard

__all__ = ["ENGINES", "OnRowError", "Options", "Row", "check_paths", "read_row", "row_of", "score_file"]

OnRowError = Literal["record", "stop"]
ENGINES = ("local",)

# A classifier needs a few hundred times this memory: token ids, offsets, windows.
_BATCH_BYTES = 1 << 20
_JUDGED = ("text", "prompt", "response", "messages")
_OURS = ("line", "input")
_SHAPES = "give text, or prompt and response, or messages"


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


@dataclass(frozen=True, slots=True)
class Row:
    """One input row, or why it is none."""

    line: int
    id: Any
    conversation: Conversation | None
    carried: dict[str, Any]
    """The keys that are not judged, as they came."""
    error: RowError | None = None


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
            for batch, blank in _batches(lines, options.batch_size):
                _score_batch(guard, batch, blank, lines, output, options)
                if report:
                    report(output.run, lines)
            output.finish()
            return output.run


def check_paths(source: str | os.PathLike[str], target: str, options: Options) -> None:
    """Raise what `score_file` would raise about the two files; for before a large model is loaded."""
    if source != STDIO and (os.path.isfile(source) or os.path.isdir(source) or not os.path.exists(source)):
        LineReader(source).close()
        for path in (Path(target), partial_of(real_path(target))):
            if os.path.isfile(path) and os.path.samefile(source, path):
                raise UsageError(f"-o: {path} is the input", hint="name another file")
    check_target(target, resume=options.resume, overwrite=options.overwrite)


def read_row(line: Line, file: str | None = None) -> Row:
    """Read one of the three shapes; what is wrong with the row is in its `error`."""
    try:
        return row_of(parse(line, file), line.number, file)
    except RowError as error:
        return Row(line.number, line.number, None, {}, error)


def row_of(raw: dict[str, Any], number: int, file: str | None = None) -> Row:
    """The row of an object in one of the three shapes, which stood on line `number`; `raw` is used up."""
    judged = {name: raw.pop(name) for name in _JUDGED if name in raw}
    identity = raw.pop("id", number)
    try:
        return Row(number, identity, _conversation(judged), raw)
    except ConversationError as error:
        wrong = RowError(error.reason, file=file, line=number, field=error.field, hint=error.hint)
        return Row(number, identity, None, raw, wrong)


def _conversation(judged: dict[str, Any]) -> Conversation:
    match tuple(judged):
        case ("text",):
            conversation = Conversation((Message(Role.USER, _string(judged, "text")),))
        case ("prompt", "response"):
            prompt = Message(Role.USER, _string(judged, "prompt"))
            conversation = Conversation((prompt, Message(Role.ASSISTANT, _string(judged, "response"))))
        case ("messages",):
            if not isinstance(judged["messages"], list):
                kind = type(judged["messages"]).__name__
                raise ConversationError(f"expected a list of messages, got {kind}", field="messages")
            conversation = Conversation.parse(judged["messages"])
        case ():
            raise ConversationError("there is nothing to judge", hint=_SHAPES)
        case ("prompt",):
            raise ConversationError("missing", field="response", hint="a prompt by itself goes under the key text")
        case ("response",):
            raise ConversationError("missing", field="prompt", hint=_SHAPES)
        case names:
            raise ConversationError(f"{' and '.join(names)} are in one row: which is meant?", hint=_SHAPES)
    for index, message in enumerate(conversation.messages):
        _check_unicode(message, tuple(judged), index)
    return conversation


def _string(judged: dict[str, Any], name: str) -> str:
    value = judged[name]
    if not isinstance(value, str):
        raise ConversationError(f"expected a string, got {type(value).__name__}", field=name)
    if name != "prompt" and not value.strip():
        raise ConversationError("is empty", field=name, hint="an empty text has no verdict; leave it out")
    return value


def _check_unicode(message: Message, names: Sequence[str], index: int) -> None:
    """Half a surrogate pair is no character: what a classifier would see there, depends on its tokenizer."""
    if message.text.isascii():
        return
    try:
        message.text.encode("utf-8")
    except UnicodeEncodeError as error:
        place = names[index] if len(names) > 1 or names[0] == "text" else "messages"
        code = ord(message.text[error.start])
        raise ConversationError(
            f"half a surrogate pair, \\u{code:04x}, at character {error.start + 1}", field=place
        ) from None


def _batches(lines: Iterable[Line], size: int) -> Iterator[tuple[list[Line], int]]:
    """Up to `size` lines, or as many as make 1 MB, and how many blank lines were among them."""
    batch: list[Line] = []
    blank = total = 0
    for line in lines:
        if line.data is not None and not line.data.strip():
            blank += 1
            continue
        batch.append(line)
        total += len(line.data or b"")
        if len(batch) == size or total >= _BATCH_BYTES:
            yield batch, blank
            batch, blank, total = [], 0, 0
    if batch or blank:
        yield batch, blank


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
    if options.on_error == "stop":
        _stop_at((row.error for row in rows), output)
    # An empty conversation: the guard refuses it, so that its policy says what an error row is.
    items = [row.conversation or () for row in rows]
    decisions = list(guard.check_many(items, batch_size=max(1, len(items))))
    if options.on_error == "stop":
        failures = (
            RowError(decision.error or "", file=lines.name, line=row.line)
            for row, decision in zip(rows, decisions, strict=True)
            if decision.verdict is Verdict.ERROR
        )
        _stop_at(failures, output)
    data = b"".join(encode(_output_row(row, decision)) for row, decision in zip(rows, decisions, strict=True))
    output.append(data, position, _counted(output.run.tally, decisions, blank))


def _stop_at(errors: Iterable[RowError | None], output: Output) -> None:
    error = next((error for error in errors if error), None)
    if error is None:
        return
    again = " and go on with --resume" if output.resumable else ""
    hint = f"correct the row{again}, or give --on-error record"
    raise RowError(
        error.reason,
        file=error.file,
        line=error.line,
        field=error.field,
        hint=f"{error.hint}; {hint}" if error.hint else hint,
    )


def _output_row(row: Row, decision: Decision) -> dict[str, Any]:
    """`id`, the decision, then the input's other keys; those with a name that is taken go under `input`."""
    judged = decision.to_dict()
    result: dict[str, Any] = {"id": row.id}
    if decision.verdict is Verdict.ERROR:
        result["line"] = row.line
        reason = ": ".join(filter(None, (row.error.field, row.error.reason))) if row.error else decision.error
        judged["error"] = f"line {row.line}: {reason}"
    result |= judged
    taken = {name: value for name, value in row.carried.items() if name in judged or name in _OURS}
    result |= {name: value for name, value in row.carried.items() if name not in taken}
    if taken:
        result["input"] = taken
    return result


def _counted(tally: Tally, decisions: Sequence[Decision], blank: int) -> Tally:
    verdicts = [decision.verdict for decision in decisions]
    return Tally(
        tally.rows + len(verdicts),
        tally.safe + verdicts.count(Verdict.SAFE),
        tally.unsafe + verdicts.count(Verdict.UNSAFE),
        tally.errors + verdicts.count(Verdict.ERROR),
        tally.blank + blank,
    )


def _unchanged(run: Run, lines: LineReader) -> Run:
    """A finished run, whose input must still end where it ended."""
    if next(iter(lines), None) is not None:
        raise ResumeError(
            f"{lines.name}: the input has grown since the output was finished",
            hint="score the new rows by themselves, or start again with --overwrite",
        )
    return run
