"""Chat messages of the APIs' requests → turns of a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from guardrail.schemas.base import SchemaError
from guardrail.schemas.texts import strings
from guardrail.types import Role

__all__ = ["content_text", "mapping", "turns"]

# Policy and plumbing of the application: not said by the user or the model.
_LEFT_OUT = frozenset({"system", "developer"})
# What tools return is text from outside, which the model reads as it reads the user.
_ROLES = {"user": Role.USER, "tool": Role.USER, "function": Role.USER, "assistant": Role.ASSISTANT}
_TEXT = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal"})
# Parts whose strings are what the model or a tool said: calls, results, thoughts.
_SPOKEN = frozenset({"tool_use", "tool_result", "thinking", "redacted_thinking", "server_tool_use"})


def turns(messages: Any, place: str) -> Iterator[tuple[Role, str]]:
    """(role, text) of each message that user, assistant or a tool said."""
    if not isinstance(messages, list):
        raise SchemaError(f"{place} is no list")
    for index, message in enumerate(messages):
        where = f"{place}[{index}]"
        role = mapping(message, where).get("role")
        if role in _LEFT_OUT:
            continue
        if not isinstance(role, str) or role not in _ROLES:
            raise SchemaError(f"{where}.role is {role!r}, which is not known")
        text = content_text(message.get("content"), f"{where}.content")
        said = {key: value for key, value in message.items() if key not in ("role", "content", "name")}
        yield _ROLES[role], "\n".join([text, *(each for _, each in strings(said))])


def content_text(content: Any, place: str) -> str:
    """The text of a message's content; SchemaError, `unsupported`, where a part is not text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        raise SchemaError(f"{place} is neither text nor a list of parts")
    return "\n".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = mapping(part, place).get("type")
    if kind in _TEXT:
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise SchemaError(f"{place}.text is no string")
        return text
    if kind == "tool_result" and isinstance(part.get("content"), list):
        return content_text(part["content"], f"{place}.content")
    if kind in _SPOKEN:
        return "\n".join(text for _, text in strings(part))
    raise SchemaError(f"{place} is of type {kind!r}, which is not text", unsupported=True)


def mapping(value: Any, place: str) -> Mapping[str, Any]:
    """The value; SchemaError when it is no JSON object."""
    if not isinstance(value, Mapping):
        raise SchemaError(f"{place} is no object")
    return value
