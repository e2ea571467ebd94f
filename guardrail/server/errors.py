"""Errors of the server's own endpoints, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from guardrail.schemas.base import Notice
from guardrail.schemas.openai import openai_error
from guardrail.serving.bodies import Decoder, json_body
from guardrail.serving.failures import JudgeFailure, Reason

__all__ = ["BadRequest", "error_response", "failure_response", "json_object"]

_STATUS = {Reason.UNSUPPORTED: 400, Reason.UNPARSABLE: 400, Reason.TOO_LARGE: 413, Reason.ENCODING: 415}


class BadRequest(Exception):
    """The request cannot be answered; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code or "invalid_value"


def error_response(error: BadRequest) -> JSONResponse:
    """The error as OpenAI's clients expect it."""
    notice = Notice(error.code, str(error), {"param": error.param})
    return JSONResponse({"error": openai_error(error.status, notice)["error"]}, error.status)


def failure_response(failure: JudgeFailure) -> JSONResponse:
    """There is no judgement: never an answer that could be read as safe."""
    status = _STATUS.get(failure.reason, 503)
    headers = {} if failure.retry_after is None else {"retry-after": str(max(1, round(failure.retry_after)))}
    notice = Notice(failure.reason, str(failure))
    return JSONResponse({"error": openai_error(status, notice)["error"]}, status, headers)


async def json_object(request: Request, most_bytes: int) -> dict[str, Any]:
    """The request's body; JudgeFailure when it is too large or not JSON, BadRequest when it is no object."""
    decoder = Decoder(request.headers.get("content-encoding", ""), most_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += decoder.feed(chunk)
        if len(body) > most_bytes:
            raise JudgeFailure(Reason.TOO_LARGE, f"the body has more than {most_bytes} bytes")
    decoder.end()
    value = json_body(bytes(body))
    if not isinstance(value, dict):
        raise BadRequest("the body is no JSON object")
    return value
