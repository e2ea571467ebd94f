"""LangChain's messages → turns of a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guardrail.errors import MissingExtraError
from guardrail.schemas.base import SchemaError, merged
from guardrail.schemas.messages import content_text
from guardrail.schemas.texts import strings
from guardrail.serving.failures import JudgeFailure, Reason
from guardrail.types import Message, Role

try:
    from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, convert_to_messages
    from langchain_core.prompt_values import PromptValue
except ImportError as error:
    raise MissingExtraError("langchain", "langchain") from error

__all__ = ["conversation", "turns"]

# The application's own, and orders to the state's reducer.
_LEFT_OUT = frozenset({"system", "developer", "remove"})
_ROLES = {
    "human": Role.USER, "user": Role.USER, "tool": Role.USER, "function": Role.USER,
    "ai": Role.ASSISTANT, "assistant": Role.ASSISTANT,
}  # fmt: skip
_NO_TEXT = frozenset(
    {
        "audio", "file", "image", "image_generation_call", "image_url", "input_audio", "input_file", "input_image",
        "media", "video",
    }
)  # fmt: skip


def conversation(value: Any, role: Role) -> tuple[Message, ...]:
    """The turns of what chains hand on; plain text is the role's. JudgeFailure when it is something else."""
    if isinstance(value, str):
        return merged([(role, value)])
    if isinstance(value, PromptValue):
        return turns(value.to_messages())
    if isinstance(value, Mapping) and isinstance(value.get("messages"), Sequence) and "role" not in value:
        value = value["messages"]
    several = isinstance(value, Sequence) and not isinstance(value, tuple | bytes)
    try:
        return turns(convert_to_messages(value if several else [value]))
    except (ValueError, TypeError, NotImplementedError, KeyError) as error:
        raise JudgeFailure(Reason.UNSUPPORTED, f"{type(value).__name__} is not read as messages: {error}") from None


def turns(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """What user, tools and model said; JudgeFailure when a part is not text."""
    found: list[tuple[Role, str]] = []
    for at, message in enumerate(messages):
        kind = message.role if isinstance(message, ChatMessage) else message.type.removesuffix("MessageChunk").lower()
        if kind in _LEFT_OUT:
            continue
        if kind not in _ROLES:
            raise JudgeFailure(Reason.UNSUPPORTED, f"messages[{at}] has the role {kind!r}, which is not known")
        try:
            role = _ROLES[kind]
            found.append((role, "\n".join(_said(message, f"messages[{at}].content"))))
        except SchemaError as error:
            raise JudgeFailure(Reason.UNSUPPORTED, str(error)) from None
    return merged(found)


def _said(message: BaseMessage, place: str) -> Iterator[str]:
    if not isinstance(message, AIMessage):
        yield content_text(message.content, place)
        return
    for part in [message.content] if isinstance(message.content, str) else message.content:
        if isinstance(part, Mapping) and part.get("type") in _NO_TEXT:
            raise SchemaError(f"{place} has a part of type {part['type']!r}, which is not text", unsupported=True)
        yield from (text for _, text in strings(part))
    for call in (*message.tool_calls, *message.invalid_tool_calls):
        if call["args"]:
            yield call["args"] if isinstance(call["args"], str) else json.dumps(call["args"], ensure_ascii=False)
    # What a provider says besides: reasoning, refusals, function calls of the old kind.
    yield from (text for _, text in strings({k: v for k, v in message.additional_kwargs.items() if k[:2] != "__"}))
