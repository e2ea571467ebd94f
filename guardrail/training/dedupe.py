"""Keeps evaluation texts out of the training data, and repeated texts from counting twice."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from guardrail.errors import UsageError
from guardrail.training.rows import Row, normalise

__all__ = ["EvaluationIndex", "evaluation_texts", "sketch"]

_WORDS = 5
# A text of fewer words than this is compared as a whole only: five common words in a row are no copy.
_SHORT = 8
# The share of a text's word runs that also occur in evaluation texts from which it counts as a near copy.
_OVERLAP = 0.5
_SKETCH = 6


class EvaluationIndex:
    """The evaluation texts, to ask whether a training text is one of them or nearly so."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts: set[str] = set()
        self._runs: set[int] = set()
        for text in texts:
            if plain := normalise(text):
                self._texts.add(plain)
                self._runs.update(_runs(plain))

    def __len__(self) -> int:
        return len(self._texts)

    def exact(self, text: str) -> bool:
        """Whether the normalised text is an evaluation text."""
        return normalise(text) in self._texts

    def near(self, text: str) -> bool:
        """Whether at least half of the text's runs of five words occur in the evaluation texts."""
        runs = _runs(normalise(text))
        return bool(runs) and sum(run in self._runs for run in runs) >= _OVERLAP * len(runs)

    def reason(self, row: Row) -> str | None:
        """`eval` or `near_eval` when any message of the row is an evaluation text, else None."""
        texts = [message.text for message in row.conversation.messages]
        if any(map(self.exact, texts)):
            return "eval"
        return "near_eval" if any(map(self.near, texts)) else None


def sketch(row: Row) -> tuple[object, ...]:
    """Equal for texts that are the same or nearly so: role, context, and the smallest hashes of runs of five words."""
    plain = normalise(row.text)
    earlier = zlib.crc32(normalise(" ".join(message.text for message in row.conversation.messages[:-1])).encode())
    runs: list[object] = [*sorted(set(_runs(plain)))[:_SKETCH]] or [plain]
    return (str(row.conversation.role), earlier, *runs)


def evaluation_texts(folder: Path) -> Iterator[str]:
    """Every text in every file under the folder of evaluation data, whatever the field is called."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        raise UsageError(f"no evaluation files under {folder}", hint="training must know them, to leave them out")
    for file in files:
        for record in _records(file):
            yield from (value for value in record.values() if isinstance(value, str) and len(value) > 3)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    opener: Any = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig", newline="") as stream:
        if ".json" in file.name:
            yield from (json.loads(line) for line in stream if line.strip())
        elif file.suffix == ".csv":
            csv.field_size_limit(1 << 24)
            yield from csv.DictReader(stream)
        else:
            raise UsageError(f"cannot read the evaluation file {file}", hint="known: .csv, .jsonl, .jsonl.gz")


def _runs(plain: str) -> list[int]:
    words = plain.split()
    if len(words) < _SHORT:
        return []
    return [zlib.crc32(" ".join(words[at : at + _WORDS]).encode()) for at in range(len(words) - _WORDS + 1)]
