"""The rows of bulk scoring: what a line of input becomes, how rows are judged together, and what is written for each.

Shared by every engine, so that the same rows give the same output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardrail.batch_run import Tally
from guardrail.errors import ConversationError, RowError
from guardrail.jsonl import Line, encode, parse
from guardrail.types import Conversation, Decision, Message, Role, Verdict

if TYPE_CHECKING:
    from guardrail.guard import Guard

__all__ = ["BATCH_BYTES", "Row", "batches", "judged", "read_row", "row_of"]

# A classifier needs a few hundred times this memory: token ids, offsets, windows.
BATCH_BYTES = 1 << 20
"""A batch ends with the row that makes it so large."""

_JUDGED = ("text", "prompt", "response", "messages")
_OURS = ("line", "input")
_SHAPES = "give text, or prompt and response, or messages"


@dataclass(frozen=True, slots=True)
class Row:
    """One input row, or why it is none."""

    line: int
    id: Any
    conversation: Conversation | None
    carried: dict[str, Any]
    """The keys that are not judged, as they came."""
    error: RowError | None = None


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


def batches(lines: Iterable[Line], size: int) -> Iterator[tuple[list[Line], int]]:
    """Up to `size` lines, or as many as make 1 MB, and how many blank lines were among them."""
    batch: list[Line] = []
    blank = total = 0
    for line in lines:
        if line.data is not None and not line.data.strip():
            blank += 1
            continue
        batch.append(line)
        total += len(line.data or b"")
        if len(batch) == size or total >= BATCH_BYTES:
            yield batch, blank
            batch, blank, total = [], 0, 0
    if batch or blank:
        yield batch, blank


def judged(guard: Guard, rows: Sequence[Row], name: str, *, stop: str | None = None) -> tuple[bytes, Tally]:
    """The output rows as lines of JSON, and how many came out how.

    With `stop` the first row of the file `name` that cannot be judged is a `RowError` with that hint.
    """
    if stop is not None:
        _stop_at((row.error for row in rows), stop)
    # An empty conversation: the guard refuses it, so that its policy says what an error row is.
    items = [row.conversation or () for row in rows]
    decisions = list(guard.check_many(items, batch_size=max(1, len(items))))
    if stop is not None:
        failures = (
            RowError(decision.error or "", file=name, line=row.line)
            for row, decision in zip(rows, decisions, strict=True)
            if decision.verdict is Verdict.ERROR
        )
        _stop_at(failures, stop)
    data = b"".join(encode(_output_row(row, decision)) for row, decision in zip(rows, decisions, strict=True))
    verdicts = [decision.verdict for decision in decisions]
    counts = (verdicts.count(verdict) for verdict in (Verdict.SAFE, Verdict.UNSAFE, Verdict.ERROR))
    return data, Tally(len(verdicts), *counts)


def _stop_at(errors: Iterable[RowError | None], hint: str) -> None:
    error = next((error for error in errors if error), None)
    if error is None:
        return
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
