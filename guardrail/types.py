"""What flows through the package: conversations in, decisions out. Frozen standard-library dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from unicodedata import category

from guardrail.chat_text import message_text
from guardrail.errors import ConversationError
from guardrail.hidden import is_hidden_letter, spelled_out

__all__ = ["CategoryScore", "Conversation", "Decision", "Message", "Role", "Verdict", "is_blank"]

# Policy and plumbing: never part of what is judged, and never shown to the classifier as if somebody had said it.
_LEFT_OUT = frozenset({"system", "developer", "tool", "function"})
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "agent": "assistant", "model": "assistant"}
_INVISIBLE = frozenset({"Cc", "Cf"})


class Role(StrEnum):
    """Who wrote a message; the role of the last message decides what is judged."""

    USER = "user"
    ASSISTANT = "assistant"


class Verdict(StrEnum):
    """The judgement. `ERROR` means that there is none: it is neither safe nor unsafe."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str

    def __post_init__(self) -> None:
        if self.role not in Role.__members__.values():
            raise ConversationError(f"unknown role {self.role!r}", field="role", hint="known: user, assistant")
        object.__setattr__(self, "role", Role(self.role))
        if not isinstance(self.text, str):
            raise ConversationError(f"expected a string, got {type(self.text).__name__}", field="text")


@dataclass(frozen=True, slots=True)
class Conversation:
    """User and assistant turns, oldest first; the last one is judged, the others are its context."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))
        if not self.messages:
            raise ConversationError("there is no message to judge", field="messages")
        if is_blank(self.judged.text):
            raise ConversationError("the message to judge is empty", hint="an empty text has no verdict; leave it out")

    @property
    def judged(self) -> Message:
        """The message that the verdict is about."""
        return self.messages[-1]

    @property
    def role(self) -> Role:
        """The role of the judged message."""
        return self.judged.role

    def spelled_out(self) -> Conversation:
        """What a classifier is shown of it: tag characters and letters on black as the letters that they spell."""
        texts = [spelled_out(message.text) for message in self.messages]
        if texts == [message.text for message in self.messages]:
            return self
        return Conversation(
            tuple(Message(message.role, text) for message, text in zip(self.messages, texts, strict=True))
        )

    @classmethod
    def parse(cls, value: Conversation | str | Sequence[Mapping[str, Any]]) -> Conversation:
        """Read what callers pass: a conversation, a user prompt, or chat messages in the OpenAI shape.

        System, developer and tool messages are left out (a guard judges what user and assistant say to each other);
        when such a message comes last there is nothing to judge, which is an error. Text parts of a message and the
        arguments of its calls are joined with newlines; any other part, an image for example, is an error, and so is a
        message that says nothing at all.
        """
        if isinstance(value, Conversation):
            return value
        if isinstance(value, str):
            return cls((Message(Role.USER, value),))
        if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray):
            raise ConversationError(f"expected a text or a list of messages, got {type(value).__name__}")
        if not value:
            raise ConversationError("there is no message to judge", field="messages")
        raw: Sequence[Any] = value
        parsed = [_message(message, index) for index, message in enumerate(raw)]
        if parsed[-1] is None:
            raise ConversationError(
                f"the last message has the role {raw[-1]['role']!r}, which is not judged",
                field=f"messages[{len(value) - 1}].role",
                hint="end the list with the user or assistant message to judge",
            )
        return cls(tuple(message for message in parsed if message is not None))


def is_blank(text: str) -> bool:
    """Whether there is nothing to read: white space, and control and format characters such as zero-width ones.

    Tag characters are something to read, for models.
    """
    return all(char.isspace() or (_is_invisible(char) and not is_hidden_letter(char)) for char in text)


def _is_invisible(char: str) -> bool:
    return not char.isprintable() and category(char) in _INVISIBLE


def _message(raw: Any, index: int) -> Message | None:
    """The message, or None when its role is left out of the conversation."""
    place = f"messages[{index}]"
    if not isinstance(raw, Mapping):
        raise ConversationError(f"expected an object with role and content, got {type(raw).__name__}", field=place)
    role = raw.get("role")
    if isinstance(role, str) and role in _LEFT_OUT:
        return None
    if not isinstance(role, str) or role not in _ROLES:
        raise ConversationError(
            f"unknown role {role!r}",
            field=f"{place}.role",
            hint="known roles: user, assistant; system, developer, tool and function are left out",
        )
    return Message(Role(_ROLES[role]), message_text(raw, place))


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """One category's score in [0, 1] under the taxonomy that was used."""

    code: str
    name: str
    score: float
    flagged: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome for one conversation."""

    verdict: Verdict
    flagged: bool
    """Whether to act on it: unsafe, or could not be judged while failing closed."""
    score: float | None
    """P(unsafe) in [0, 1]; None when there is no judgement."""
    categories: tuple[CategoryScore, ...]
    """In taxonomy order; empty when there is no judgement."""
    role: Role | None
    """Whose message was judged; None when the input could not be read."""
    model: str
    """Classifier, as `id@digest`."""
    taxonomy: str
    """Taxonomy, as `id@digest`."""
    template: str
    """Prompt template, as `id@digest`."""
    truncated: bool = False
    """Whether any text was left out of what the classifier saw."""
    markers: tuple[str, ...] = ()
    """Prompt markers and control tokens that the conversation's own text contains: a sign of an injection attempt."""
    error: str | None = None
    """Why there is no judgement."""

    @property
    def violated(self) -> tuple[CategoryScore, ...]:
        """The flagged categories, highest score first."""
        return tuple(sorted((c for c in self.categories if c.flagged), key=lambda c: -c.score))

    def to_dict(self) -> dict[str, Any]:
        """The decision as plain JSON values, in the order in which the command line and the server print it."""
        return {
            "verdict": self.verdict.value,
            "flagged": self.flagged,
            "score": self.score,
            "categories": [
                {"code": c.code, "name": c.name, "score": c.score, "flagged": c.flagged} for c in self.categories
            ],
            "role": None if self.role is None else self.role.value,
            "model": self.model,
            "taxonomy": self.taxonomy,
            "template": self.template,
            "truncated": self.truncated,
            "markers": list(self.markers),
            "error": self.error,
        }
