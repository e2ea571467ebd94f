"""Judgements that were made before, in one SQLite file: a run that was killed goes on, and one with another threshold
or other suites runs the classifier on what is new only.

A key is a digest of everything that a judgement depends on: model, taxonomy, template (`Guard.classifier`) and the
conversation. No text is stored, and no failure: what failed is tried again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from guardrail.errors import GuardrailError
from guardrail.judgement import Judgement
from guardrail.scoring import Margins
from guardrail.types import Conversation, Role

__all__ = ["Cache", "default_folder", "key"]

_FILE = "judgements-1.sqlite"
_ASKED = 500  # SQLite's limit on the variables of a query is 999 in old versions


def default_folder() -> Path:
    """`$GUARDRAIL_CACHE`, else `guardrail` in the user's cache folder."""
    if named := os.environ.get("GUARDRAIL_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "guardrail"


def key(classifier: str, conversation: Conversation) -> bytes:
    """16 bytes that name one judgement."""
    turns = [[message.role.value, message.text] for message in conversation.messages]
    text = json.dumps([classifier, turns])
    return hashlib.sha256(text.encode("ascii")).digest()[:16]


class Cache:
    """The cache in a folder, or with None one that forgets everything when it is closed."""

    def __init__(self, folder: Path | None) -> None:
        self._file = ":memory:" if folder is None else str(folder / _FILE)
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._file, timeout=60)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS judgements (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise self._failure(error) from None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Judgement]:
        """The judgements that are there, by key."""
        found: dict[bytes, Judgement] = {}
        try:
            for start in range(0, len(keys), _ASKED):
                part = keys[start : start + _ASKED]
                marks = ",".join("?" * len(part))
                rows = self._database.execute(f"SELECT key, value FROM judgements WHERE key IN ({marks})", part)
                decoded = ((name, _decode(value)) for name, value in rows)
                found.update((name, judgement) for name, judgement in decoded if judgement is not None)
        except sqlite3.Error as error:
            raise self._failure(error) from None
        return found

    def put(self, judgements: Mapping[bytes, Judgement]) -> None:
        """Keep those that did not fail; they are on disk when this returns."""
        rows: Iterable[tuple[bytes, str]] = (
            (name, _encode(judgement)) for name, judgement in judgements.items() if judgement.margins is not None
        )
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO judgements VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> GuardrailError:
        return GuardrailError(
            f"the cache {self._file}: {error}", hint="name another one with --cache, or use --no-cache"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()


def _encode(judgement: Judgement) -> str:
    margins = judgement.margins or Margins(0.0)
    value = {
        "unsafe": margins.unsafe,
        "categories": margins.categories,
        "own": margins.own,
        "role": judgement.role,
        "truncated": judgement.truncated,
        "markers": judgement.markers,
        **({"stage": judgement.stage} if judgement.stage else {}),
    }
    return json.dumps(value)


def _decode(text: str) -> Judgement | None:
    """The judgement; None for what is none, which is then judged anew."""
    try:
        value = json.loads(text)
        margins = Margins(float(value["unsafe"]), tuple(map(float, value["categories"])), value["own"])
        role, markers = Role(value["role"]), tuple(value["markers"])
        judgement = Judgement(margins, role, bool(value["truncated"]), markers, stage=int(value.get("stage", 0)))
    except (ValueError, KeyError, TypeError):
        return None
    return judgement if all(map(math.isfinite, (margins.unsafe, *margins.categories))) else None
