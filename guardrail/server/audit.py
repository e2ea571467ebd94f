"""The audit log: one line of JSON per judgement, with the text's hash in the text's place."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from typing import Any

from guardrail.serving.exchange import Record

__all__ = ["Audit", "Redact"]

Redact = Callable[[str], str]
"""What of a judged text is written; without one, nothing."""

_KEPT = 10


class Audit:
    """Writes to a file, and begins a new one when it is full: FILE.1 is the one before."""

    def __init__(self, file: str, most_bytes: int, redact: Redact | None = None) -> None:
        self._redact = redact
        self._handler = RotatingFileHandler(file, maxBytes=most_bytes, backupCount=_KEPT, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(message)s"))

    def write(self, record: Record, key: str = "") -> None:
        """One judgement; `key` is the name of the API key that it was asked with."""
        said = record.conversation
        text = "" if said is None else said.judged.text
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": record.request_id,
            "path": record.path,
            "key": key,
            "side": record.side,
            "choice": record.choice,
            "sha256": None if said is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
            "reason": record.reason,
            "action": record.action,
            "decision": None if record.decision is None else record.decision.to_dict(),
        }
        if self._redact is not None:
            line["text"] = self._redact(text)
        message = json.dumps(line, ensure_ascii=False)
        self._handler.emit(logging.LogRecord("audit", logging.INFO, "", 0, message, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()
