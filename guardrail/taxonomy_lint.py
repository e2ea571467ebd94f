"""Problems of a taxonomy that make a classifier worse, and all errors of a file at once rather than the first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeVar

from guardrail.errors import TaxonomyError
from guardrail.taxonomy import Category, Taxonomy, open_document, read_header
from guardrail.taxonomy_category import Example, placed, read_category
from guardrail.taxonomy_yaml import Document, Field

__all__ = ["Problem", "lint"]

T = TypeVar("T")
# Without these nothing more can be said about a file or a category.
_NEEDED = ("format", "id", "categories", "code")
_UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding; an error keeps the taxonomy from loading or contradicts itself, a warning does not."""

    severity: Literal["error", "warning"]
    code: str | None
    """The category concerned; None when it is about the file or the category has no readable code."""
    field: str | None
    """The place in the file, such as `categories[2].name`."""
    message: str
    line: int | None = None
    """1-based; None when the taxonomy did not come from a file."""
    hint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The problem as plain JSON values."""
        return {
            "severity": self.severity,
            "code": self.code,
            "field": self.field,
            "message": self.message,
            "line": self.line,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True)
class _Entry:
    """A category that could be read, and where it stood."""

    category: Category
    field: Field

    def problem(self, severity: Literal["error", "warning"], inside: str, message: str) -> Problem:
        error = self.field.error(message, inside=inside)
        return Problem(severity, self.category.code, error.field, message, error.line)


def lint(
    source: str | Path | Taxonomy, *, code_pattern: str | None = None, template: str = "the template"
) -> tuple[Problem, ...]:
    """All problems of a taxonomy, a shipped taxonomy's name, or a file that may be too malformed to load.

    `code_pattern` is a regular expression for the codes that a prompt template can express; `template` names it.
    Raises UsageError for a name that is not shipped and TaxonomyError when the file cannot be read at all.
    """
    if isinstance(source, Taxonomy):
        document = Document(source.to_dict())
    else:
        try:
            document = open_document(source)
        except TaxonomyError as error:
            if error.line is None:
                raise
            return (Problem("error", None, error.field, error.reason, error.line, error.hint),)
    problems, entries = _read(document)
    checks = (_duplicates, _prefixes, _gaps, _lines, _examples, _shared_examples)
    problems += [problem for check in checks for problem in check(entries)]
    if code_pattern is not None:
        problems += _expressible(entries, code_pattern, template)
    return tuple(sorted(set(problems), key=lambda p: (p.line or 0, p.field or "", p.severity, p.message)))


def _read(document: Document) -> tuple[list[Problem], list[_Entry]]:
    """What is wrong with the file, and the categories that can be read once that is left out of them."""
    root = document.root
    problems, _ = _repair(root, _read_header)
    items = root.value.get("categories") if isinstance(root.value, Mapping) else None
    entries = []
    for index, item in enumerate(items if isinstance(items, list) else ()):
        field = Field(document, ("categories", index), item)
        found, category = _repair(field, read_category)
        problems += found
        if category is not None:
            entries.append(_Entry(category, field))
    return problems, entries


def _read_header(root: Field) -> Taxonomy:
    """All but the categories, checked as a taxonomy with one category that is always valid."""
    fields = read_header(root)
    if not fields.pop("categories").items():
        raise root.error("the taxonomy has no category", inside="categories")
    with placed(root):
        return Taxonomy(categories=(Category("S1", "any"),), **{key: value.text() for key, value in fields.items()})


def _repair(field: Field, read: Callable[[Field], T]) -> tuple[list[Problem], T | None]:
    """Read a mapping; what is wrong in it is noted and left out, and the rest is read again."""
    problems: list[Problem] = []
    keys = field.value if isinstance(field.value, Mapping) else {}
    code = keys["code"] if isinstance(keys.get("code"), str) else None
    while True:
        try:
            return problems, read(replace(field, value=keys) if problems else field)
        except TaxonomyError as error:
            problems.append(Problem("error", code, error.field, error.reason, error.line, error.hint))
            place = (error.field or "").removeprefix(field.place or "").removeprefix(".")
            key = next((key for key in keys if place == key or place.startswith((f"{key}.", f"{key}["))), None)
            if key is None or key in _NEEDED:
                return problems, None
            keys = {other: kept for other, kept in keys.items() if other != key}
            if key == "name":
                keys["name"] = _UNNAMED


def _duplicates(entries: list[_Entry]) -> Iterator[Problem]:
    for what in ("code", "name"):
        first: dict[str, _Entry] = {}
        for entry in entries:
            shown = getattr(entry.category, what)
            if shown == _UNNAMED:
                continue
            before = first.setdefault(shown if what == "code" else _same(shown), entry)
            if before is not entry:
                place = f"{before.category.code!r} ({before.field.place})"
                yield entry.problem("error", what, f"duplicate {what} {shown!r}, first given by {place}")


def _prefixes(entries: list[_Entry]) -> Iterator[Problem]:
    """Codes that text matching could confuse; a series such as S1 … S14 is meant and read number by number."""
    for one, other in combinations(entries, 2):
        short, long = sorted((one, other), key=lambda entry: len(entry.category.code))
        start, whole = short.category.code, long.category.code
        if start == whole:
            continue
        if start.casefold() == whole.casefold():
            yield long.problem("warning", "code", f"differs from {start!r} only in case")
        elif whole.startswith(start) and not (start[-1].isdigit() and whole[len(start) :].isdigit()):
            yield long.problem("warning", "code", f"begins with another code, {start!r}")


def _gaps(entries: list[_Entry]) -> Iterator[Problem]:
    """What is not there; what is there and was left out as wrong has been noted already."""
    for entry in entries:
        given = entry.field.value
        if not entry.category.definition and isinstance(given.get("definition", ""), str):
            yield entry.problem("warning", "definition", "there is no definition, so only the name says what is meant")
        if not given.get("hazards"):
            yield entry.problem("warning", "hazards", "there are no hazards, so scores cannot be converted")


def _lines(entries: list[_Entry]) -> Iterator[Problem]:
    """Contradictions between the lines of a category and its own examples."""
    for entry in entries:
        category = entry.category
        include, exclude = ({_same(line) for line in lines} for lines in (category.include, category.exclude))
        for index, line in enumerate(category.exclude):
            if _same(line) in include:
                yield entry.problem("error", f"exclude[{index}]", "the same line is under include")
        for index, example in enumerate(category.examples):
            text = _same(example.messages[-1].text)
            if example.label == "safe" and text in include:
                yield entry.problem("error", f"examples[{index}]", "labelled safe, but it is a line under include")
            if example.label == "unsafe" and text in exclude:
                yield entry.problem("error", f"examples[{index}]", "labelled unsafe, but it is a line under exclude")


def _examples(entries: list[_Entry]) -> Iterator[Problem]:
    """Examples that a category has twice, with the same or with both labels."""
    for entry in entries:
        first: dict[tuple[str, ...], int] = {}
        for index, example in enumerate(entry.category.examples):
            before = first.setdefault(_key(example), index)
            if before == index:
                continue
            if entry.category.examples[before].label == example.label:
                yield entry.problem("warning", f"examples[{index}]", f"the same as examples[{before}]")
            else:
                message = f"labelled {example.label}, but examples[{before}] is the same with the other label"
                yield entry.problem("error", f"examples[{index}]", message)


def _shared_examples(entries: list[_Entry]) -> Iterator[Problem]:
    """One text, unsafe in one category and safe in another that covers the same hazard."""
    for one, other in combinations(entries, 2):
        hazards = [hazard for hazard in one.category.hazards if hazard in other.category.hazards]
        labels = {_key(example): example.label for example in one.category.examples}
        for index, example in enumerate(other.category.examples if hazards else ()):
            label = labels.get(_key(example), example.label)
            if label != example.label:
                message = (
                    f"labelled {example.label}, but {label} in {one.category.code!r}, which also covers {hazards[0]}"
                )
                yield other.problem("error", f"examples[{index}]", message)


def _expressible(entries: list[_Entry], pattern: str, template: str) -> Iterator[Problem]:
    for entry in entries:
        if not re.fullmatch(pattern, entry.category.code):
            message = (
                f"{template} cannot express the code {entry.category.code!r}; its prompts number the categories anew"
            )
            yield entry.problem("warning", "code", message)


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def _key(example: Example) -> tuple[str, ...]:
    return tuple(_same(message.text) for message in example.messages)
