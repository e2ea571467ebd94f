"""The model server behind the guard: requests handed on, and answers streamed back as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from guardrail.schemas.base import Notice
from guardrail.schemas.openai import openai_error

__all__ = ["Upstream"]

_UP = frozenset({".", ".."})
# Of one connection, not of the message: RFC 9110, section 7.6.1. The length is told anew.
_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "host", "content-length"}
)


class Upstream:
    """One model server."""

    def __init__(self, url: str, timeout: float, *, own_keys: bool) -> None:
        """`timeout`: seconds without a byte. `own_keys`: the client's key is the guard's, and not handed on."""
        self._url = url.rstrip("/")
        self._hidden = _HOP | ({"authorization", "x-api-key"} if own_keys else frozenset())
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(timeout, connect=10.0), limits=limits)

    async def hand_on(self, request: Request) -> Response:
        """Starlette's endpoint. HTTPException 404 for a path that leads up again: it was judged as another."""
        if _UP.intersection(request.url.path.split("/")):
            raise HTTPException(404)
        headers = [(name, value) for name, value in request.headers.raw if name.decode("latin-1") not in self._hidden]
        if not any(name == b"accept-encoding" for name, _ in headers):
            headers.append((b"accept-encoding", b"identity"))
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        asked = self._client.build_request(
            request.method, self._url + path, headers=headers, content=await request.body()
        )
        try:
            answered = await self._client.send(asked, stream=True)
        except httpx2.HTTPError as error:
            return _unreachable(error)
        kept = [(name, value) for name, value in answered.headers.raw if name.decode("latin-1").lower() not in _HOP]
        response = StreamingResponse(_bytes(answered), answered.status_code)
        response.raw_headers = kept
        return response

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()


async def _bytes(answered: Any) -> AsyncIterator[bytes]:
    """The answer's body as it comes, in its own encoding; its connection is closed also when nobody reads on."""
    try:
        async for chunk in answered.aiter_raw():
            yield chunk
    finally:
        await answered.aclose()


def _unreachable(error: Exception) -> Response:
    slow = isinstance(error, httpx2.TimeoutException)
    message = "the model server took too long" if slow else "the model server cannot be reached"
    status = 504 if slow else 502
    return JSONResponse({"error": openai_error(status, Notice("upstream_error", message))["error"]}, status)
