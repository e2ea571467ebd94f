"""Keeps evaluation and validation texts out of the training data, and repeated texts from counting twice."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from guardrail.errors import InputError, UsageError
from guardrail.training.rows import Row, normalise

__all__ = ["EvaluationIndex", "ValidationIndex", "apart", "evaluation_texts", "near_groups", "sketch", "split"]

_WORDS = 5
# A text of fewer words than this is compared as a whole only: five common words in a row are no copy.
_SHORT = 8
# The share of a text's word runs that also occur in evaluation texts from which it counts as a near copy.
_OVERLAP = 0.5
_SKETCH = 6
# The lengths, in words, at which a text is also compared word by word: shorter ones are like many others, and a longer
# one that differs in one word shares runs enough.
_CHANGED = range(3, 13)


class EvaluationIndex:
    """The evaluation texts, to ask whether a training text is one of them or nearly so."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts: set[str] = set()
        self._runs: set[int] = set()
        self._gaps: set[str] = set()
        # By its first run of words, where it has one: the texts that a longer text may hold.
        self._beginnings: dict[int, set[str]] = {}
        for text in texts:
            if plain := normalise(text):
                runs = _runs(plain)
                self._texts.add(plain)
                self._runs.update(runs)
                self._gaps.update(_gaps(plain))
                if runs:
                    self._beginnings.setdefault(runs[0], set()).add(plain)

    def __len__(self) -> int:
        return len(self._texts)

    def exact(self, text: str) -> bool:
        """Whether the normalised text is an evaluation text."""
        return normalise(text) in self._texts

    def near(self, text: str) -> bool:
        """Whether half of the text's runs of five words, or all words but one of a short text, are evaluation text.

        So is a text of whatever length that holds an evaluation text of eight words or more as it is.
        """
        return self._near(normalise(text))

    def _near(self, plain: str) -> bool:
        if any(gap in self._gaps for gap in _gaps(plain)):
            return True
        runs = _runs(plain)
        if not runs:
            return False
        return sum(run in self._runs for run in runs) >= _OVERLAP * len(runs) or self._holds_one(plain, runs)

    def _holds_one(self, plain: str, runs: Sequence[int]) -> bool:
        """Whether an evaluation text that has runs of words stands in the text, word for word."""
        begun = (text for run in runs for text in self._beginnings.get(run, ()))
        return any(f" {text} " in f" {plain} " for text in begun)

    def reason(self, row: Row) -> str | None:
        """`eval` or `near_eval` when any message of the row is an evaluation text, else None."""
        texts = [normalise(message.text) for message in row.conversation.messages]
        if not self._texts.isdisjoint(texts):
            return "eval"
        return "near_eval" if any(map(self._near, texts)) else None


class ValidationIndex:
    """Validation rows, to ask whether a training row is one of them or nearly so.

    Judged texts are compared, in whatever role, by the measure of `EvaluationIndex`, where the earlier messages are the
    same: a refusal that answers many questions is no copy.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        texts: dict[int, list[str]] = {}
        for row in rows:
            texts.setdefault(_earlier(row), []).append(row.text)
        self._judged = {earlier: EvaluationIndex(found) for earlier, found in texts.items()}

    def holds(self, row: Row) -> bool:
        """Whether the row is a validation row or nearly so."""
        index = self._judged.get(_earlier(row))
        return index is not None and (index.exact(row.text) or index.near(row.text))


def sketch(row: Row) -> tuple[object, ...]:
    """Equal for texts that are the same or nearly so: role, context, and the smallest hashes of runs of five words."""
    plain = normalise(row.text)
    runs: list[object] = [*sorted(set(_runs(plain)))[:_SKETCH]] or [plain]
    return (str(row.conversation.role), _earlier(row), *runs)


def _earlier(row: Row) -> int:
    """Equal for the same messages before the judged one."""
    return zlib.crc32(normalise(" ".join(message.text for message in row.conversation.messages[:-1])).encode())


def apart(row: Row, share: float) -> bool:
    """Whether the row belongs to the `share` that is held out: decided by its text alone, so the same in every run.

    Texts that are nearly the same, and one text with either role, lie on the same side.
    """
    return _lot(row) % 1000 < share * 1000


def _lot(row: Row) -> int:
    """A number drawn by the text and what was said before it."""
    return zlib.crc32(repr(sketch(row)[1:]).encode())


def split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """The rows to train on, and up to the `share` of them that is held out, both in their order.

    Rows that are nearly equal lie on one side, so that none of them has to be left out. In the order of a lot that a
    group's first text draws, whatever fits is held out: the same in every run, and never more than the share.
    """
    held: set[int] = set()
    for group in sorted(near_groups(rows), key=lambda group: _lot(rows[group[0]])):
        if len(held) + len(group) <= share * len(rows):
            held.update(group)
    return [row for at, row in enumerate(rows) if at not in held], [rows[at] for at in sorted(held)]


def near_groups(rows: Sequence[Row]) -> list[list[int]]:
    """The places of the rows in groups, whatever their order: what is nearly equal to one of a group is in it too.

    Judged texts are compared, by the measure of `EvaluationIndex.near`, where the earlier messages are the same.
    """
    plain = [normalise(row.text) for row in rows]
    # Half of the runs of the shorter text decide, so the longer ones have to be known before it.
    order = sorted(range(len(rows)), key=lambda at: (-len(_runs(plain[at])), plain[at]))
    parents = list(range(len(rows)))
    known: dict[tuple[int, str | int], set[int]] = {}
    for at in order:
        earlier = _earlier(rows[at])
        runs: list[tuple[int, str | int]] = [(earlier, run) for run in _runs(plain[at])]
        wholes: list[tuple[int, str | int]] = [(earlier, whole) for whole in (plain[at], *_gaps(plain[at]))]
        shared = Counter(other for run in runs for other in {_root(parents, one) for one in known.get(run, ())})
        near = [other for other, count in shared.items() if count >= _OVERLAP * len(runs)]
        for other in (*near, *(one for whole in wholes for one in known.get(whole, ()))):
            parents[_root(parents, at)] = _root(parents, other)
        for key in (*runs, *wholes):
            known.setdefault(key, set()).add(_root(parents, at))
    groups: dict[int, list[int]] = {}
    for at in order:
        groups.setdefault(_root(parents, at), []).append(at)
    return list(groups.values())


def _root(parents: list[int], at: int) -> int:
    """The place that stands for a group, on the way to which steps are shortened."""
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at


def evaluation_texts(*places: Path) -> Iterator[str]:
    """Every text in the given files, and in the files under the given folders, whatever the field is called.

    Read are CSV and TSV with a header, JSON, JSON Lines, and plain text (each line is a text), gzip or not. Raises
    UsageError for a place where there is no file and for a file of another kind, InputError for a broken one.
    """
    for place in places:
        files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
        if not files or not files[0].is_file():
            raise UsageError(f"no evaluation files under {place}", hint="training must know them, to leave them out")
        for file in files:
            yield from (text for text in _texts(file) if len(text) > 3)


def _texts(file: Path) -> Iterator[str]:
    kind = Path(file.name.removesuffix(".gz")).suffix
    if kind not in _KINDS:
        raise UsageError(f"cannot read the evaluation file {file}", hint=f"known: {', '.join(_KINDS)}, also with .gz")
    opener: Any = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="") as stream:
            yield from _KINDS[kind](stream)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise InputError(f"cannot be read: {error}", file=str(file)) from None


def _table(stream: Iterable[str], delimiter: str = ",") -> Iterator[str]:
    csv.field_size_limit(1 << 24)
    for record in csv.DictReader(stream, delimiter=delimiter):
        yield from _strings(list(record.values()))


def _json_lines(stream: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                yield from _strings(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def _json(stream: Any) -> Iterator[str]:
    """A whole document, or, as many files of this name are, lines."""
    text = stream.read()
    try:
        value = json.loads(text)
    except ValueError:
        yield from _json_lines(text.splitlines())
    else:
        yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


_KINDS: dict[str, Callable[[Any], Iterator[str]]] = {
    ".csv": _table,
    ".tsv": partial(_table, delimiter="\t"),
    ".json": _json,
    ".jsonl": _json_lines,
    ".txt": iter,
    ".md": iter,
}


def _runs(plain: str) -> list[int]:
    words = plain.split()
    if len(words) < _SHORT:
        return []
    return [zlib.crc32(" ".join(words[at : at + _WORDS]).encode()) for at in range(len(words) - _WORDS + 1)]


def _gaps(plain: str) -> Iterator[str]:
    """A short text with each of its words in turn left open: two texts share one when they differ in that word."""
    words = plain.split()
    if len(words) in _CHANGED:
        yield from (" ".join((*words[:at], "_", *words[at + 1 :])) for at in range(len(words)))
