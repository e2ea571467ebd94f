"""Every text in an answer, wherever the API or a newer version of it puts it.

A list of known fields would let a new one pass unread, so all strings count as text but for those under keys that hold
identifiers, and these only as long as they look like one. What a tool is called with is the model's own JSON: there
every string counts, whatever its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from guardrail.chat_text import IDENTIFIER
from guardrail.schemas.base import SchemaError

__all__ = ["strings"]

_KEY = re.compile(r"[\w.$@:/-]{0,64}", re.ASCII)
# Signatures and encrypted reasoning: long, and unreadable for people.
_OPAQUE = re.compile(r"[\w+/=-]*", re.ASCII)
_OPAQUE_KEYS = frozenset({"signature", "encrypted_content", "thoughtSignature"})
# Of what was said already: the tokens of the text beside it.
_REPEATS = "logprobs"
_FREE = frozenset({"input", "arguments", "args"})
_NAMES = frozenset(
    {
        "id", "type", "role", "name", "object", "status", "model", "item_id", "call_id", "tool_call_id", "tool_use_id",
        "finish_reason", "stop_reason", "native_finish_reason", "system_fingerprint", "service_tier", "phase", "format",
        "response_id", "sequence_number", "index", "namespace", "provider", "reason",
    }
)  # fmt: skip
_MEDIA = re.compile(r"data:(?:image|audio|video)/")


def strings(value: Any, path: str = "", key: str = "", *, free: bool = False) -> Iterator[tuple[str, str]]:
    """(path, text) of every string that is not an identifier, in order; a part of a list is named by its `index`.

    `free`: within what a tool is called with. SchemaError, `unsupported`, for images and sound outside of that.
    """
    if not free and value and _is_media(key, value):
        raise SchemaError(f"{path or key} is not text", unsupported=True)
    if isinstance(value, str):
        if value and (free or not _skipped(key, value)):
            yield path, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            where = f"{path}.{name}" if path else str(name)
            if not _KEY.fullmatch(str(name)):
                yield f"{where} key", str(name)
            if free or name != _REPEATS:
                yield from strings(inner, where, str(name), free=free or name in _FREE)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            number = inner.get("index", place) if isinstance(inner, Mapping) else place
            yield from strings(inner, f"{path}.{number}", key, free=free)


def _is_media(key: str, value: Any) -> bool:
    """Whether this is an image or sound, or where one is."""
    if isinstance(value, str):
        return key == "b64_json" or _MEDIA.match(value) is not None
    if not isinstance(value, Mapping):
        return False
    held = {"audio": "data", "input_audio": "data"}.get(key)
    made = value.get("type") == "image_generation_call" and value.get("result")
    return key == "image_url" or bool(made) or (held is not None and bool(value.get(held)))


def _skipped(key: str, value: str) -> bool:
    if key in _NAMES:
        return IDENTIFIER.fullmatch(value) is not None
    return key in _OPAQUE_KEYS and _OPAQUE.fullmatch(value) is not None
