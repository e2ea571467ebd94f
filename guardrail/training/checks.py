"""What is wrong or lopsided in labelled data: contradictions, repetitions, evaluation texts, balance."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from guardrail.training.dedupe import EvaluationIndex, ValidationIndex, sketch
from guardrail.training.labelled import LabelledRow, LabelSpace
from guardrail.training.rows import Row

__all__ = ["Checks", "Contradiction", "SourceBalance", "check"]

_EXCERPT = 60
_LISTED = 20
# A hyphen before a digit may be a minus.
_BETWEEN_WORDS = re.compile(r"(?!-\d)[^\w\s]|_")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The same text with different labels (all its rows are left out) or categories (one row is left, see `check`)."""

    kind: Literal["label", "categories"]
    places: tuple[str, ...]
    """`FILE:LINE` of every row concerned."""
    text: str
    """The beginning of the judged text."""


@dataclass(frozen=True, slots=True)
class SourceBalance:
    """The rows of a source that are left."""

    unsafe: int = 0
    """P(unsafe) from one half on."""
    safe: int = 0
    unlabelled: int = 0
    """Without a verdict."""
    unknown_category: int = 0
    """Unsafe, and nobody says in which category."""


@dataclass(frozen=True, slots=True)
class Checks:
    """What was found; the rows read are those left and those left out for each reason."""

    read: int
    left: int
    contradicting: int
    """Rows left out because the same text has another label."""
    repeated: int
    """Rows left out because an equal one came before."""
    near_repeated: int
    """Rows that are nearly equal to one before; they are left."""
    evaluation: int
    """Rows left out because one of their messages is an evaluation text."""
    near_evaluation: int
    """Rows left out because one of their messages is nearly an evaluation text."""
    validation: int
    """Rows left out because they are, or nearly are, validation rows."""
    contradictions: tuple[Contradiction, ...]
    sources: Mapping[str, SourceBalance]
    categories: Mapping[str, int]
    """Unsafe rows by code; a code without any is there too."""
    characters: Mapping[str, int]
    """Lengths of the judged texts that are left: shortest, median, the 95th of a hundred, longest."""
    compared: int = 0
    """Rows, of those left, that are not used because they are, or nearly are, texts of a suite to compare on."""
    unknown_keys: Mapping[str, int] = field(default_factory=dict)
    """Keys of the data that were not read, and in how many rows."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A table in plain text."""
        left_out = (
            ("contradicting labels", self.contradicting),
            ("repeated", self.repeated),
            ("evaluation texts", self.evaluation),
            ("nearly evaluation texts", self.near_evaluation),
            ("validation texts", self.validation),
        )
        lines = [f"{self.read} rows read, {self.left} left"]
        lines += [f"  left out, {reason}: {count}" for reason, count in left_out if count]
        if self.near_repeated:
            lines.append(f"  left in, nearly equal to another: {self.near_repeated}")
        if self.compared:
            lines.append(f"  left out of these, texts of the suites to compare on: {self.compared}")
        lines += _table(
            ("source", "unsafe", "safe", "no verdict", "no category"),
            [(name, *map(str, asdict(counts).values())) for name, counts in self.sources.items()],
        )
        lines += _table(("category", "unsafe"), [(code, str(count)) for code, count in self.categories.items()])
        lines.append("characters: " + ", ".join(f"{name} {value}" for name, value in self.characters.items()))
        if self.unknown_keys:
            keys = ", ".join(f"{name} ({count})" for name, count in self.unknown_keys.items())
            lines.append(f"keys that were not read: {keys}")
        for item in self.contradictions[:_LISTED]:
            lines.append(f"contradicting {item.kind}: {', '.join(item.places)}: {item.text}")
        if len(self.contradictions) > _LISTED:
            lines.append(f"contradictions not listed: {len(self.contradictions) - _LISTED}")
        return lines


def check(
    rows: Iterable[LabelledRow],
    space: LabelSpace,
    keep_out: EvaluationIndex | None = None,
    validation: Sequence[Row] = (),
    unknown_keys: Mapping[str, int] | None = None,
) -> tuple[list[Row], Checks]:
    """The rows that are fit for training, in their order, and what was found.

    Rows are equal when the roles of all messages are, and their texts but for case, spaces and punctuation. Of equal
    rows with the same verdict the first is left; when they name different categories, only those named by all count as
    violated, and the others as possible.
    """
    groups: dict[object, list[LabelledRow]] = {}
    for item in rows:
        groups.setdefault(_key(item.row), []).append(item)
    kept, counts, contradictions = _cleaned(groups, keep_out, validation)
    return kept, Checks(
        **{name: counts[name] for name in _COUNTS},
        left=len(kept),
        contradictions=tuple(contradictions),
        sources=_sources(kept),
        categories=_categories(kept, space),
        characters=_lengths(kept),
        unknown_keys=dict(unknown_keys or {}),
    )


_COUNTS = ("read", "contradicting", "repeated", "near_repeated", "evaluation", "near_evaluation", "validation")


def _cleaned(
    groups: Mapping[object, Sequence[LabelledRow]], keep_out: EvaluationIndex | None, validation: Sequence[Row]
) -> tuple[list[Row], Counter[str], list[Contradiction]]:
    """Of each group of equal rows the one that stays, if any; what was left out, by reason; and the contradictions."""
    counts: Counter[str] = Counter(read=sum(map(len, groups.values())))
    contradictions: list[Contradiction] = []
    kept: list[Row] = []
    seen: set[object] = set()
    equal, near = set(map(_key, validation)), ValidationIndex(validation)
    for key, group in groups.items():
        row, contradiction = _merged(group)
        if contradiction:
            contradictions.append(contradiction)
        if row is None:
            counts["contradicting"] += len(group)
            continue
        counts["repeated"] += len(group) - 1
        reason = _kept_out(row, keep_out) or ("validation" if key in equal or near.holds(row) else "")
        if reason:
            counts[reason] += 1
            continue
        alike = sketch(row)
        counts["near_repeated"] += alike in seen
        seen.add(alike)
        kept.append(row)
    return kept, counts, contradictions


def _key(row: Row) -> object:
    return tuple((message.role, _plain(message.text) or message.text) for message in row.conversation.messages)


def _plain(text: str) -> str:
    """The text without case, punctuation and repeated spaces; letters, digits, marks and symbols tell texts apart."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_BETWEEN_WORDS.sub(_mark_or_symbol, folded).split())


def _mark_or_symbol(found: re.Match[str]) -> str:
    return found[0] if unicodedata.category(found[0])[0] in "MS" else " "


def _kept_out(row: Row, keep_out: EvaluationIndex | None) -> str:
    """Whether the row is left out as an evaluation text, as the name of a count."""
    reason = keep_out.reason(row) if keep_out else None
    return {"eval": "evaluation", "near_eval": "near_evaluation"}[reason] if reason else ""


def _merged(group: Sequence[LabelledRow]) -> tuple[Row | None, Contradiction | None]:
    """The row that stands for equal ones, None where their verdicts differ; and how they contradict each other."""
    labelled = [item for item in group if item.row.unsafe >= 0] or list(group)
    first = labelled[0].row
    places = tuple(item.place for item in labelled)
    text = " ".join(first.text.split())[:_EXCERPT]
    if len({item.row.unsafe >= 0.5 for item in labelled}) > 1:
        return None, Contradiction("label", places, text)
    named = [item.row for item in labelled if item.row.violated]
    if len({row.violated for row in named}) <= 1:
        return (named[0] if named else first), None
    violated = frozenset.intersection(*(row.violated for row in named))
    possible = frozenset().union(*(row.violated | row.possible for row in named)) - violated
    return replace(named[0], violated=violated, possible=possible), Contradiction("categories", places, text)


def _sources(rows: Sequence[Row]) -> dict[str, SourceBalance]:
    found: dict[str, Counter[str]] = {}
    for row in rows:
        counts = found.setdefault(row.source, Counter())
        counts["unlabelled" if row.unsafe < 0 else "unsafe" if row.unsafe >= 0.5 else "safe"] += 1
        counts["unknown_category"] += row.unsafe >= 0.5 and not row.violated
    return {name: SourceBalance(**counts) for name, counts in sorted(found.items())}


def _categories(rows: Sequence[Row], space: LabelSpace) -> dict[str, int]:
    counts = Counter(label for row in rows if row.unsafe >= 0.5 for label in row.violated)
    return {code: counts[name] for code, name in zip(space.taxonomy.codes, space.names, strict=True)}


def _lengths(rows: Sequence[Row]) -> dict[str, int]:
    lengths = sorted(len(row.text) for row in rows)
    if not lengths:
        return {}
    last = len(lengths) - 1
    places = {"shortest": 0, "median": last // 2, "95 of 100": round(0.95 * last), "longest": last}
    return {name: lengths[at] for name, at in places.items()}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns in plain text: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (header, *rows)
    ]
