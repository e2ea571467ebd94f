"""Why something was not judged: never the same as unsafe, and never safe."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["JudgeFailure", "Reason"]


class Reason(StrEnum):
    """What kept a text from its way."""

    UNSAFE = "unsafe"
    """The only one that is a judgement."""
    TIMEOUT = "timeout"
    """The classifier took too long."""
    BACKEND = "backend_error"
    """The classifier failed."""
    OVERLOADED = "overloaded"
    """Too much waits for the classifier."""
    CIRCUIT_OPEN = "circuit_open"
    """The classifier failed too often in a row and is left alone for a while."""
    UNSUPPORTED = "unsupported_content"
    """A part that is not text, an image for example, or a conversation that the classifier cannot be shown."""
    UNPARSABLE = "unparsable"
    """The body or the stream is not what its route says."""
    TOO_LARGE = "too_large"
    """The body, or what a stream withholds, is over the limit."""
    ENCODING = "unsupported_encoding"
    """A content encoding that is not undone here."""


class JudgeFailure(Exception):
    """There is no judgement."""

    def __init__(self, reason: Reason, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after
        """Seconds after which trying again may help."""
