"""Bodies of HTTP messages: content encodings undone within a limit, and JSON that every reader reads alike."""

from __future__ import annotations

import json
import zlib
from typing import Any

from guardrail.serving.failures import JudgeFailure, Reason

__all__ = ["Decoder", "json_body"]

_ZLIB_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_PLAIN = ("", "identity")


class Decoder:
    """Undoes one content encoding, chunk by chunk."""

    def __init__(self, encoding: str, most_bytes: int) -> None:
        """Raises JudgeFailure for an encoding other than gzip and deflate."""
        name = encoding.strip().lower()
        if name not in _PLAIN and name not in _ZLIB_BITS:
            raise JudgeFailure(Reason.ENCODING, f"the content encoding {name!r} cannot be read; send gzip or none")
        self.plain = name in _PLAIN
        self._most = most_bytes
        self._inflater = None if self.plain else zlib.decompressobj(_ZLIB_BITS[name])

    def feed(self, chunk: bytes) -> bytes:
        """What the chunk holds; never more than the limit at once, so that a small body cannot fill the memory."""
        if self._inflater is None:
            return chunk
        try:
            found = self._inflater.decompress(chunk, self._most + 1)
        except zlib.error as error:
            raise JudgeFailure(Reason.UNPARSABLE, f"the body is not what its content encoding says: {error}") from None
        if len(found) > self._most:
            raise JudgeFailure(Reason.TOO_LARGE, f"the body has more than {self._most} bytes")
        if self._inflater.unused_data:
            raise JudgeFailure(Reason.UNPARSABLE, "something follows the compressed body")
        return found

    def end(self) -> None:
        """Raises JudgeFailure when the body was cut off."""
        if self._inflater is not None and not self._inflater.eof:
            raise JudgeFailure(Reason.UNPARSABLE, "the compressed body is cut off")


def json_body(body: bytes) -> Any:
    """The body's value; JudgeFailure when it is none, or when readers may differ about it."""
    try:
        return json.loads(body.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise JudgeFailure(Reason.UNPARSABLE, f"the body is not JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One reader would take the first of two values under one key, another one the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found
