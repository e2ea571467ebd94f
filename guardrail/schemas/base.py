"""What the middleware needs to know about a chat API: where its texts are, and how it says no.

An API that is not shipped takes a class with these methods; they see plain JSON values and do no input or output.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from guardrail.sse import Event
from guardrail.types import Message, Role, is_blank

__all__ = ["Answer", "ChatRequest", "Notice", "Piece", "Schema", "SchemaError", "StreamReader", "Text", "merged"]


class SchemaError(Exception):
    """The body is not one of this API, or holds what a text classifier cannot judge.

    `unsupported` tells the second: an image, an audio clip, a prompt of token ids.
    """

    def __init__(self, message: str, *, unsupported: bool = False) -> None:
        super().__init__(message)
        self.unsupported = unsupported


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is asked."""

    contexts: tuple[tuple[Message, ...], ...] = ()
    """For each prompt its user and assistant turns, oldest first, none of them blank, no two of one role in a row."""
    stream: bool = False
    model: str = ""
    choices: int = 1
    """Answers per prompt."""

    def context(self, choice: int) -> tuple[Message, ...]:
        """The turns that this choice of the answer follows."""
        number = choice // self.choices
        return self.contexts[number] if 0 <= number < len(self.contexts) else ()


@dataclass(frozen=True, slots=True)
class Answer:
    """All the text of one choice of a whole response."""

    choice: int
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text in a streamed event."""

    choice: int
    channel: str
    """Texts of one channel are parts of one text; `content` and a tool call's arguments are two channels."""
    text: str
    whole: bool = False
    """Whether nothing follows in its channel."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a streamed event holds."""

    texts: tuple[Text, ...] = ()
    finished: tuple[int, ...] = ()
    """Choices that say nothing more, by what the event says."""
    final: bool = False
    """Whether the API says nothing behind it."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Why something is not passed on."""

    reason: str
    """`unsafe`, or the failure that prevented a judgement."""
    message: str
    """For the caller; also the text of an answer that takes the place of the withheld one."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the answer carries besides under `guardrail`."""

    def to_dict(self) -> dict[str, Any]:
        """The `guardrail` object of refusals and endings."""
        return {"reason": self.reason, **self.details}


class StreamReader(Protocol):
    """Reads one streamed answer, and ends it early where it must."""

    def read(self, event: Event) -> Piece:
        """What the event holds; SchemaError when it is not one of this API."""

    def without(self, event: Event, choices: Collection[int]) -> bytes:
        """The event without these choices, which were cut before; empty when nothing is left."""

    def ending(self, choices: Sequence[int], notice: Notice) -> bytes:
        """Events that end these choices as the API ends filtered ones."""

    def closing(self) -> bytes:
        """Events that end the stream when all choices were cut."""

    def refusal(self, notice: Notice) -> bytes:
        """A whole stream that says the notice's message and nothing else."""


class Schema(Protocol):
    """One chat API."""

    name: str

    def request(self, body: Any) -> ChatRequest:
        """Read a request's body; SchemaError when it is not one of this API."""

    def answers(self, body: Any) -> list[Answer]:
        """The choices of a whole response's body; SchemaError when it is not one of this API."""

    def refusal(self, request: ChatRequest, notice: Notice) -> dict[str, Any]:
        """A whole response that says the notice's message and nothing else."""

    def redacted(self, body: Any, choices: Collection[int], notice: Notice) -> dict[str, Any]:
        """The response with these choices replaced by the notice's message."""

    def error(self, status: int, notice: Notice) -> dict[str, Any]:
        """The body of an error response."""

    def reader(self, request: ChatRequest) -> StreamReader:
        """For one streamed answer to this request."""


def merged(turns: Sequence[tuple[Role, str]]) -> tuple[Message, ...]:
    """Messages without blank ones, those of one role in a row joined by a newline: all that was said last is judged."""
    found: list[Message] = []
    for role, text in turns:
        if is_blank(text):
            continue
        if found and found[-1].role is role:
            found[-1] = Message(role, f"{found[-1].text}\n{text}")
        else:
            found.append(Message(role, text))
    return tuple(found)
