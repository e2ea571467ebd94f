"""Requests to model servers, and where the served model is found: the parts of OpenAI's API that servers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from guardrail.backends.http import Client, Failure, Service
from guardrail.errors import BackendError, ModelError

__all__ = [
    "CHAT",
    "LOGPROBS_HINT",
    "Served",
    "chat_body",
    "completion_body",
    "explained",
    "name_of",
    "served_model",
    "service",
]

CHAT: Final = "/chat/completions"
LOGPROBS_HINT: Final = (
    "llama-cpp-python: start it with --logits_all true; ollama: version 0.12.11 or later, with prompts='chat'; "
    "TGI: prompts='chat' and top_logprobs=5; a hosted API may not give logprobs at all"
)
# The highest bias that the API allows. It is the same for all tokens that are read, so that their differences stay.
_BIAS: Final = 100


@dataclass(frozen=True, slots=True)
class Served:
    """The model that a server answers with."""

    name: str
    context: int | None = None
    """Its longest sequence in tokens, where the server tells."""


def service(address: str) -> Service:
    """A model server as the client sees it; the key is sent where there is one."""
    return Service(
        name="the model server",
        path="/completions",
        address=address.rstrip("/"),
        address_variable="",
        key_variable="OPENAI_API_KEY",
        header="Authorization",
        prefix="Bearer ",
        needs_key=False,
    )


def name_of(served: str, address: str, version: str | None) -> str:
    """What scores are remembered under: `openai:SERVED@VERSION-PLACE`.

    Without a version the day is in its place, since weights may change behind a name.
    """
    place = address.rstrip("/").partition("://")[2]
    return f"openai:{served}@{version or datetime.now(UTC).date().isoformat()}-{place}"


def served_model(client: Client, name: str | None) -> Served:
    """The named model, or the only one there is. Raises ModelError when that leaves it open, or nobody answers."""
    reply = client.get("/models")
    if isinstance(reply, Failure):
        hint = "is the server running, and does the address end where /models begins, mostly in /v1?"
        raise ModelError(str(reply.error), hint=reply.error.hint or hint)
    listed = reply.get("data") if isinstance(reply, Mapping) else None
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    found = {entry["id"]: entry for entry in entries if isinstance(entry.get("id"), str)}
    names = ", ".join(sorted(found)[:8])
    if name is None:
        if len(found) != 1:
            what = f"serves {len(found)} models" if found else "does not say what it serves"
            known = f"; one of {names}" if found else ""
            raise ModelError(f"the model server {what}", hint=f"name one with served=… or --served-model{known}")
        (name,) = found
    elif found and name not in found:
        raise ModelError(f"the model server does not serve {name!r}", hint=f"it serves {names}")
    length = found[name].get("max_model_len") if name in found else None
    return Served(name, length if isinstance(length, int) and length > 0 else None)


def completion_body(model: str, prompt: Sequence[int] | str, tokens: Sequence[int], top: int) -> dict[str, Any]:
    """A request for the most likely tokens behind a prompt, among which `tokens` are wanted.

    One token is generated, the likeliest of those: a server may give no logprobs of the token that ends an answer.
    """
    return {
        "model": model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": top,
        "logit_bias": {str(token): _BIAS for token in tokens},
        # vLLM: tokens by id, not by a text that two may share. Other servers pass it over.
        "return_tokens_as_token_ids": True,
    }


def chat_body(model: str, messages: Sequence[Mapping[str, str]], longest: int, top: int) -> dict[str, Any]:
    """A request for the beginning of the answer, with its most likely tokens."""
    return {
        "model": model,
        "messages": list(messages),
        "max_tokens": longest,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": top,
    }


def explained(failure: Failure) -> BackendError:
    """The failure's error; with a hint where the server refused to give logprobs."""
    if "logprobs" in str(failure.error) and failure.error.hint is None:
        return BackendError(str(failure.error), hint=LOGPROBS_HINT)
    return failure.error
