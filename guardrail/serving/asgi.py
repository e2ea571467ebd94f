"""ASGI's values, as far as the middleware touches them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

__all__ = ["OF_THE_BODY", "Headers", "Message", "Receive", "Scope", "Send", "has_body", "header", "plain_scope"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

OF_THE_BODY = frozenset(
    {b"content-length", b"content-encoding", b"etag", b"content-md5", b"digest", b"content-digest", b"repr-digest"}
)
"""Headers that do not hold for another body."""


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """The header's value, several joined by a comma; empty when it is not there."""
    return ", ".join(value.decode("latin-1") for key, value in headers if key.lower() == name)


def has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request with these headers announces a body."""
    headers = list(headers)
    return header(headers, b"content-length") not in ("", "0") or header(headers, b"transfer-encoding") != ""


def plain_scope(scope: Scope) -> Scope:
    """The scope of an application whose answer is read: it compresses nothing, and sends all bytes as messages."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
    return {**scope, "headers": headers, "extensions": {}}
