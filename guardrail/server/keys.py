"""API keys: the server's file has their hashes alone."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from guardrail.errors import InputError
from guardrail.server.errors import BadRequest, error_response
from guardrail.serving.asgi import Receive, Scope, Send, header

__all__ = ["KEY_NAME", "Keys", "Locked", "new_key"]

KEY_NAME: ContextVar[str] = ContextVar("key_name", default="")
"""Whose key the request has that is being answered."""

# Keys are made here with 256 random bits, so a plain hash of one cannot be searched backwards.
_LINE = re.compile(r"sha256:([0-9a-f]{64})\s+(\S+)")


def new_key(file: Path, name: str) -> str:
    """A new key; its hash is added to the file under this name."""
    key = f"gr-{secrets.token_urlsafe(32)}"
    with file.open("a", encoding="utf-8") as out:
        out.write(f"sha256:{_hash(key)} {name}\n")
    file.chmod(0o600)
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """The keys of a file with lines `sha256:HASH NAME`; empty ones and those that begin with # are left out."""

    def __init__(self, file: Path) -> None:
        self._names: dict[str, str] = {}
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                hint = "add keys with guardrail serve --keys FILE --new-key NAME"
                raise InputError("expected `sha256:HASH NAME`", file=str(file), line=number, hint=hint)
            self._names[match[1]] = match[2]
        if not self._names:
            raise InputError("there is no key in it", file=str(file), hint="add one: --new-key NAME")

    def name(self, headers: Mapping[str, str]) -> str | None:
        """Whose key a request has, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; None when it has none of them.

        Takes the same time for every wrong key.
        """
        kind, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        asked = _hash(key)
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, asked):
                found = name
        return found


class Locked:
    """ASGI: paths for those alone that have a key."""

    def __init__(self, app: Any, keys: Keys, open_paths: Collection[str]) -> None:
        self._app = app
        self._keys = keys
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        headers = {name: header(scope["headers"], name.encode()) for name in ("authorization", "x-api-key")}
        name = self._keys.name(headers)
        if name is None:
            refused = error_response(BadRequest("a valid API key is needed", status=401, code="invalid_api_key"))
            refused.headers["www-authenticate"] = "Bearer"
            await refused(scope, receive, send)
            return
        KEY_NAME.set(name)
        await self._app(scope, receive, send)
