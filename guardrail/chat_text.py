"""The text of a chat message in the OpenAI shape: what it says, and what it calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guardrail.errors import ConversationError

__all__ = ["IDENTIFIER", "message_text"]

_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
# Kinds of tool calls, and where the text of each is.
_CALLED = {"function": "arguments", "custom": "input"}
IDENTIFIER = re.compile(r"[\w.:/@+=-]{0,128}", re.ASCII)
"""What names something and says nothing, such as the name of a tool."""
_CONTENT = (
    "the text of a message goes under content; it may be missing beside tool_calls, function_call or refusal only"
)


def message_text(raw: Mapping[str, Any], place: str) -> str:
    """Content, refusal and the arguments of calls, joined with newlines.

    Raises ConversationError for a message that has none of them, and for what is not text.
    """
    refusal = raw.get("refusal")
    others = [*([refusal] if isinstance(refusal, str) else []), *_calls(raw, place)]
    content = raw.get("content")
    if content is None and not others:
        raise ConversationError("missing", field=f"{place}.content", hint=_CONTENT)
    said = "" if content is None else _content(content, f"{place}.content")
    return "\n".join(filter(None, [said, *others]))


def _content(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    parts = _list(content, place, "text or a list of parts")
    return "\n".join(_part(part, f"{place}[{index}]") for index, part in enumerate(parts))


def _part(part: Any, place: str) -> str:
    kind = _mapping(part, place, "a content part").get("type")
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise ConversationError(
            f"content of type {kind!r} cannot be judged",
            field=place,
            hint="only text parts are read; judge images with a vision model",
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise ConversationError(f"expected a string, got {type(text).__name__}", field=f"{place}.text")
    return text


def _calls(raw: Mapping[str, Any], place: str) -> Iterator[str]:
    """What tool calls, and a function call of the old kind, say."""
    calls = raw.get("tool_calls")
    for index, call in enumerate(() if calls is None else _list(calls, f"{place}.tool_calls", "a list of calls")):
        where = f"{place}.tool_calls[{index}]"
        kind = "custom" if "custom" in _mapping(call, where, "a call") else "function"
        yield from _call(call.get(kind), _CALLED[kind], f"{where}.{kind}")
    if raw.get("function_call") is not None:
        yield from _call(raw["function_call"], "arguments", f"{place}.function_call")


def _call(call: Any, key: str, place: str) -> Iterator[str]:
    """The arguments, and the name where it is more than an identifier."""
    if call is None:
        raise ConversationError("missing", field=place, hint="a call has a name and arguments")
    name, arguments = _mapping(call, place, "a call").get("name"), call.get(key)
    if arguments is None:
        raise ConversationError("missing", field=f"{place}.{key}", hint='a call without any has "{}"')
    if isinstance(name, str) and not IDENTIFIER.fullmatch(name):
        yield name
    yield arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)


def _mapping(value: Any, place: str, wanted: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConversationError(f"expected {wanted}, got {type(value).__name__}", field=place)
    return value


def _list(value: Any, place: str, wanted: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise ConversationError(f"expected {wanted}, got {type(value).__name__}", field=place)
    return value
