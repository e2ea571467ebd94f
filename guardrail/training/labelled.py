"""Labelled rows as JSON Lines, and the names that the labels of a taxonomy have in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail import batch
from guardrail.errors import RowError, UsageError, suggestion
from guardrail.jsonl import encode, read
from guardrail.taxonomy import Taxonomy
from guardrail.training.labels import HazardTable
from guardrail.training.rows import UNKNOWN, Hazards, Row
from guardrail.types import Role

__all__ = ["LabelSpace", "LabelledRow", "line_of", "read_rows", "row_from", "write_rows"]

_KEYS = ("label", "categories", "possible", "weight", "source", "explanation")
_LABELS = {"safe": 0.0, "unsafe": 1.0}
_SHAPES = {
    (Role.USER,): ("text",),
    (Role.USER, Role.ASSISTANT): ("prompt", "response"),
}


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """The labels of a taxonomy's categories, one each: `Row.violated` and `Row.possible` are sets of them.

    A category's label is its hazard where every category has exactly one and no two the same (as in `canonical`), else
    its code. Only labels that are hazards can be shown under other taxonomies.
    """

    taxonomy: Taxonomy
    are_hazards: bool = field(init=False)
    names: tuple[str, ...] = field(init=False)
    """The label of each category, in order."""
    everything: Hazards = field(init=False)
    """All labels."""
    _by_code: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        hazards = [category.hazards for category in self.taxonomy]
        distinct = all(len(names) == 1 for names in hazards) and len(set(hazards)) == len(hazards)
        names = tuple(item[0] for item in hazards) if distinct else self.taxonomy.codes
        object.__setattr__(self, "are_hazards", distinct)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "everything", frozenset(names))
        object.__setattr__(self, "_by_code", dict(zip(self.taxonomy.codes, names, strict=True)))

    @property
    def labels(self) -> tuple[Hazards, ...]:
        """What each category covers, in order."""
        return tuple(frozenset({name}) for name in self.names)

    def covered(self, other: Taxonomy) -> tuple[Hazards, ...]:
        """What each category of another taxonomy covers; UsageError where the labels are codes of this one."""
        if not self.are_hazards:
            raise UsageError(
                f"labels of {self.taxonomy.id!r} cannot be read under {other.id!r}",
                hint="that takes a taxonomy in which every category has one hazard of its own, such as canonical",
            )
        return tuple(frozenset(category.hazards) & self.everything for category in other)

    def label(self, code: str) -> str | None:
        """The label of a code, if the taxonomy has the code."""
        return self._by_code.get(code)

    def codes(self, labels: Iterable[str]) -> list[str]:
        """The codes of some labels, in the taxonomy's order."""
        wanted = frozenset(labels)
        return [code for code, name in self._by_code.items() if name in wanted]

    def wordings(self) -> dict[str, tuple[str, ...]]:
        """By label, the category's own name and definition as `NAME: DEFINITION`."""
        texts = (f"{item.name}: {item.definition}" if item.definition else item.name for item in self.taxonomy)
        return {name: (text,) for name, text in zip(self.names, texts, strict=True)}


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A row and where it stood."""

    row: Row
    file: str
    line: int

    @property
    def place(self) -> str:
        """`FILE:LINE`."""
        return f"{self.file}:{self.line}"


def read_rows(
    file: Path, space: LabelSpace, related: HazardTable | None = None, unknown: Counter[str] | None = None
) -> Iterator[LabelledRow]:
    """The rows of a JSONL file (gzip or not), lazily; RowError with file, line and field for the first bad one.

    `related` says what is possible besides the categories of a row that has no `possible`. Keys that are not read are
    counted in `unknown`.
    """
    for line, raw in read(file):
        yield LabelledRow(row_from(raw, space, related, unknown, (str(file), line)), str(file), line)


def row_from(
    raw: dict[str, Any],
    space: LabelSpace,
    related: HazardTable | None = None,
    unknown: Counter[str] | None = None,
    place: tuple[str | None, int] = (None, 1),
) -> Row:
    """The row of one object; `place` is the file and line that errors name. Its source is by default the file's name.

    The label is `safe`, `unsafe`, P(unsafe), or null where only some categories are known not to be violated.
    """
    values = _Values(place)
    given = _given(raw, place)
    if given.conversation is None:
        raise given.error or values.error("", "cannot be read")
    if unknown is not None:
        unknown.update(given.carried.keys())
    unsafe = values.label(raw)
    violated = values.categories(raw, "categories", space)
    possible = values.categories(raw, "possible", space)
    _check(values, unsafe, violated, possible)
    if possible is None:
        possible = _possible(unsafe, violated, space, related)
    file = Path(place[0] or "rows").name
    return Row(
        source=values.text(raw, "source") or file.removesuffix(".gz").removesuffix(".jsonl"),
        conversation=given.conversation,
        unsafe=unsafe,
        violated=violated or frozenset(),
        possible=possible,
        weight=values.weight(raw),
        explanation=values.text(raw, "explanation"),
        id=values.identity(raw),
    )


def _given(raw: dict[str, Any], place: tuple[str | None, int]) -> batch.Row:
    """The conversation and the keys that are none of ours, read as `guardrail score` does; a prompt alone is a text."""
    judged = {name: value for name, value in raw.items() if name not in _KEYS}
    if "prompt" in judged and not judged.keys() & {"text", "response", "messages"}:
        judged["text"] = judged.pop("prompt")
    return batch.row_of(judged, place[1], place[0])


def _check(values: _Values, unsafe: float, violated: Hazards | None, possible: Hazards | None) -> None:
    """Refuse labels that contradict each other."""
    if violated is not None and not violated and unsafe >= 0.5:
        raise values.error("categories", "an unsafe row violates none", "leave the key out where nobody knows which")
    if violated and unsafe == 0:
        raise values.error("categories", "a safe row violates none", "correct the label, or leave the categories out")
    if violated and unsafe < 0:
        raise values.error("label", "is null, but categories are given", "the label of a violation is not unknown")
    if violated and possible and violated & possible:
        raise values.error("possible", "names a category that is violated", "list each code once")


def _possible(unsafe: float, violated: Hazards | None, space: LabelSpace, related: HazardTable | None) -> Hazards:
    """What may be violated besides, where the row does not say."""
    if violated:
        return related.possible(violated) & space.everything if related else frozenset()
    return space.everything if violated is None and unsafe != 0 else frozenset()


class _Values:
    """Reads and checks the values of one object."""

    def __init__(self, place: tuple[str | None, int]) -> None:
        self._place = place

    def error(self, key: str, reason: str, hint: str | None = None) -> RowError:
        return RowError(reason, file=self._place[0], line=self._place[1], field=key or None, hint=hint)

    def label(self, raw: dict[str, Any]) -> float:
        hint = "write safe, unsafe, or the probability of unsafe from 0 to 1"
        if "label" not in raw:
            raise self.error("label", "missing", hint)
        value = raw["label"]
        if value is None:
            return UNKNOWN
        if isinstance(value, str) and value in _LABELS:
            return _LABELS[value]
        if _is_number(value) and 0 <= value <= 1:
            return float(value)
        raise self.error("label", f"cannot be {value!r}", hint)

    def categories(self, raw: dict[str, Any], key: str, space: LabelSpace) -> Hazards | None:
        value = raw.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(key, f"expected a list of codes, got {type(value).__name__}")
        found = set()
        for at, code in enumerate(value):
            label = space.label(code) if isinstance(code, str) else None
            if label is None:
                known = space.taxonomy.codes
                reason = f"the taxonomy {space.taxonomy.id!r} has no category {code!r}"
                hint = suggestion(str(code), known, f"codes: {', '.join(known)}")
                raise self.error(f"{key}[{at}]", reason, hint)
            found.add(label)
        return frozenset(found)

    def weight(self, raw: dict[str, Any]) -> float:
        value = raw.get("weight", 1.0)
        if not _is_number(value) or value <= 0:
            raise self.error("weight", f"cannot be {value!r}", "give a number above 0")
        return float(value)

    def text(self, raw: dict[str, Any], key: str) -> str | None:
        value = raw.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"expected a text, got {value!r}", "leave the key out")
        return value

    def identity(self, raw: dict[str, Any]) -> str:
        value = raw.get("id", "")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error("id", f"expected a text or a whole number, got {value!r}")
        return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def line_of(row: Row, space: LabelSpace) -> dict[str, Any]:
    """The object that `row_from` reads as an equal row; what it would assume anyway is left out.

    Raises UsageError for labels that the taxonomy does not have.
    """
    if strange := sorted((row.violated | row.possible) - space.everything):
        raise UsageError(f"the taxonomy {space.taxonomy.id!r} has no label {strange[0]!r}")
    line: dict[str, Any] = {"id": row.id} if row.id else {}
    messages = row.conversation.messages
    keys = _SHAPES.get(tuple(message.role for message in messages))
    if keys:
        line |= {key: message.text for key, message in zip(keys, messages, strict=True)}
    else:
        line["messages"] = [{"role": message.role.value, "content": message.text} for message in messages]
    spelled = {value: name for name, value in _LABELS.items()}
    line["label"] = None if row.unsafe < 0 else spelled.get(row.unsafe, row.unsafe)
    if row.violated:
        line["categories"] = space.codes(row.violated)
    # With categories it is written also when empty: a reader may know of related ones.
    if row.violated or row.possible != _possible(row.unsafe, None, space, None):
        line["possible"] = space.codes(row.possible)
    if row.weight != 1:
        line["weight"] = row.weight
    return line | {"source": row.source} | ({"explanation": row.explanation} if row.explanation else {})


def write_rows(rows: Iterable[Row], file: Path, space: LabelSpace) -> int:
    """Write the rows as JSON Lines; how many there were."""
    count = 0
    with file.open("wb") as stream:
        for row in rows:
            stream.write(encode(line_of(row, space)))
            count += 1
    return count
