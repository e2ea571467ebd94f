"""The chat APIs that the middleware reads: OpenAI's three and Anthropic's."""

from __future__ import annotations

from guardrail.errors import UsageError, suggestion
from guardrail.schemas.anthropic import Messages
from guardrail.schemas.base import Schema
from guardrail.schemas.openai import ChatCompletions, Completions
from guardrail.schemas.openai_responses import Responses

__all__ = ["schema"]

_SHIPPED: tuple[Schema, ...] = (ChatCompletions(), Completions(), Responses(), Messages())


def schema(name: str | Schema) -> Schema:
    """A shipped schema by its name; a schema as it is."""
    if not isinstance(name, str):
        return name
    for one in _SHIPPED:
        if one.name == name:
            return one
    known = [one.name for one in _SHIPPED]
    raise UsageError(
        f"schema: no schema is called {name!r}", hint=suggestion(name, known, f"shipped: {', '.join(known)}")
    )
