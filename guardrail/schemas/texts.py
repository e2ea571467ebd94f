"""Every text in an answer, wherever the API or a newer version of it puts it.

A list of known fields would let a new one pass unread, so all strings count as text but for those under keys that hold
identifiers, and these only as long as they look like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["strings"]

_IDENTIFIER = re.compile(r"[\w.:/@+=-]{0,128}", re.ASCII)
# Signatures and encrypted reasoning: long, and unreadable for people.
_OPAQUE = re.compile(r"[\w+/=-]*", re.ASCII)
_OPAQUE_KEYS = frozenset({"signature", "encrypted_content", "thoughtSignature", "b64_json"})
# Of what was said already: the tokens of the text beside it.
_REPEATS = frozenset({"logprobs", "usage"})
_NAMES = frozenset(
    {
        "id", "type", "role", "name", "object", "status", "model", "item_id", "call_id", "tool_call_id", "tool_use_id",
        "finish_reason", "stop_reason", "native_finish_reason", "system_fingerprint", "service_tier", "phase", "format",
        "response_id", "sequence_number", "index", "namespace", "provider",
    }
)  # fmt: skip


def strings(value: Any, path: str = "", key: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every string that is not an identifier, in order; a part of a list is named by its `index`."""
    if isinstance(value, str):
        if value and not _skipped(key, value):
            yield path, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _REPEATS:
                yield from strings(inner, f"{path}.{name}" if path else str(name), str(name))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            number = inner.get("index", place) if isinstance(inner, Mapping) else place
            yield from strings(inner, f"{path}.{number}", key)


def _skipped(key: str, value: str) -> bool:
    if key in _NAMES:
        return _IDENTIFIER.fullmatch(value) is not None
    return key in _OPAQUE_KEYS and _OPAQUE.fullmatch(value) is not None
