"""Errors on their way from a worker to the command, as plain values: Ray would wrap them, and retry them."""

from __future__ import annotations

import json
from typing import Any

from guardrail import errors
from guardrail.errors import GuardrailError, InputError, MissingExtraError

__all__ = ["decode", "encode"]


def encode(error: Exception, worker: str) -> str:
    """The error as JSON; what is none of this package's becomes one line that names the worker."""
    if not isinstance(error, GuardrailError):
        error = GuardrailError(f"worker {worker}: {type(error).__name__}: {error}")
    raw: dict[str, Any] = {"kind": type(error).__name__, "message": str(error), "hint": error.hint}
    if isinstance(error, InputError):
        raw |= {"message": error.reason, "file": error.file, "line": error.line, "field": error.field}
    if isinstance(error, MissingExtraError):
        raw |= {"package": error.package, "extra": error.extra}
    return json.dumps({"failure": raw})


def decode(text: str) -> GuardrailError | None:
    """The error; None when the text is something else."""
    raw = json.loads(text).get("failure")
    if raw is None:
        return None
    kind = getattr(errors, raw.pop("kind"), GuardrailError)
    if kind is MissingExtraError:
        return MissingExtraError(raw["package"], raw["extra"])
    found: GuardrailError = kind(raw.pop("message"), **raw)
    return found
