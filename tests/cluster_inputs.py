"""Rows of every kind, for the tests of the cluster engine, and what the local engine makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import guardrail
from guardrail.batch import Options, score_file
from guardrail.batch_run import Run

LONG = 400
MIXED: list[bytes] = [
    b'{"id": "a", "text": "hello", "lang": "en"}',
    b'{"text": "a bomb"}',
    b"",
    b'{"prompt": "hello", "response": "a b\xc3\xb6mb, a bomb", "id": 7}',
    b'{"messages": [{"role": "user", "content": "\xe4\xbd\xa0\xe5\xa5\xbd"}], "score": 3}\r',
    b'{"text": 5}',
    b"   ",
    b'{"text": "half',
    b'{"text": "\xff"}',
    b'{"id": null, "text": "bomb", "note": "\\ud83d \xe2\x80\xa8"}',
    b'{"text": "x", "pad": "' + b"y" * LONG + b'"}',
    b'{"text": "bomb", "messages": []}',
]


def lines(rows: int, *, start: int = 0) -> bytes:
    """So many lines, no two good ones the same; the last one has no line end."""
    numbered = (
        MIXED[number % len(MIXED)].replace(b"hello", b"hello number %d" % number)
        for number in range(start, start + rows)
    )
    return b"\n".join(numbered)


def scored_locally(source: Path, target: Path, **options: Any) -> tuple[bytes, Run]:
    """The output of the local engine."""
    options.setdefault("max_line_bytes", LONG)
    run = score_file(guardrail.load("scripted:bomb"), source, target, Options(overwrite=True, **options))
    return target.read_bytes(), run


def parquet_rows() -> list[dict[str, Any]]:
    """Rows of all shapes, as the columns of one table: what a row has not, is null there."""
    rows: list[dict[str, Any]] = [
        {"id": "p1", "text": "a bomb", "n": 1},
        {"id": "p2", "prompt": "hi", "response": "grün", "n": 2},
        {"messages": [{"role": "user", "content": "bomb"}, {"role": "assistant", "content": "no"}], "n": 3},
        {"id": "p4", "n": 4},
        {"text": "", "n": 5},
    ]
    columns = ("id", "text", "prompt", "response", "messages", "n")
    return [{name: row.get(name) for name in columns} for row in rows] * 40


def as_json(rows: list[dict[str, Any]]) -> bytes:
    """The same rows as JSON Lines, without the keys that are null."""
    given = ({name: value for name, value in row.items() if value is not None} for row in rows)
    return b"".join(json.dumps(row).encode() + b"\n" for row in given)
