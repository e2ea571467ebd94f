"""Small suite files and data files for the tests of suites."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from guardrail import taxonomy_yaml
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import Item

__all__ = ["BASE", "REMOVE", "said", "suite", "write", "write_suite"]

BASE: dict[str, Any] = {
    "format": 1,
    "id": "tiny",
    "name": "Tiny",
    "description": "A few rows.",
    "licence": "CC0-1.0",
    "citation": "Nobody 2026",
    "judged": "user",
    "source": {"files": ["rows.jsonl"]},
    "fields": {"prompt": "text"},
    "label": {"column": "bad", "unsafe": [1], "safe": [0]},
}
REMOVE = "no such key"
"""As a value, leaves the key out."""


def write_suite(folder: Path, **changes: Any) -> Path:
    """A suite file: the base with these keys changed."""
    data = {key: value for key, value in (BASE | changes).items() if value is not REMOVE}
    path = folder / "tiny.yaml"
    path.write_text(taxonomy_yaml.dump(data), encoding="utf-8")
    return path


def suite(folder: Path, **changes: Any) -> Suite:
    """The suite of such a file."""
    return Suite.load(write_suite(folder, **changes))


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows in the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
        data = buffer.getvalue()
    elif kind == ".jsonl":
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif kind == ".json":
        data = json.dumps(rows).encode()
    else:
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
        data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def said(item: Item) -> list[tuple[str, str]]:
    """Who said what in an item."""
    assert item.conversation is not None
    return [(message.role.value, message.text) for message in item.conversation.messages]
