"""Taxonomies: which risks a classifier is asked about. Immutable; every operation gives a new taxonomy."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from guardrail import resources, taxonomy_yaml
from guardrail.errors import TaxonomyError, suggestion
from guardrail.taxonomy_category import Category, Example, one_line, placed, read_category
from guardrail.taxonomy_yaml import Document, Field

__all__ = ["FORMAT", "Category", "Example", "Taxonomy", "open_document", "read_header"]

FORMAT = 1
"""The version of the file format that is read and written."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """Categories in the order in which a classifier is shown them; at least one, with distinct codes."""

    id: str
    name: str
    categories: tuple[Category, ...]
    description: str = ""
    source: str = ""
    """Whose taxonomy it is and what was taken from there."""
    _digest: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise TaxonomyError(f"{self.id!r} cannot be an id", field="id", hint="use letters, digits and . _ -")
        object.__setattr__(self, "name", one_line(self.name, "name"))
        for key in ("description", "source"):
            object.__setattr__(self, key, getattr(self, key).strip())
        object.__setattr__(self, "categories", tuple(self.categories))
        if not self.categories:
            raise TaxonomyError(f"the taxonomy {self.id!r} has no category", field="categories")
        for index, code in enumerate(self.codes):
            if code in self.codes[:index]:
                place = f"categories[{index}].code"
                first = f"categories[{self.codes.index(code)}]"
                raise TaxonomyError(f"duplicate code {code!r}, first given in {first}", field=place)

    @classmethod
    def load(cls, source: str | Path | Taxonomy) -> Taxonomy:
        """A shipped taxonomy by name, or a YAML file: a `Path`, or a text with a slash or ending in .yaml or .yml.

        Raises UsageError for an unknown name and TaxonomyError, with file, line and field, for a malformed file.
        """
        if isinstance(source, Taxonomy):
            return source
        document = open_document(source)
        return cls.from_dict(document.data, document.file, document)

    @classmethod
    def from_yaml(cls, text: str, file: str | None = None) -> Taxonomy:
        """Read the file format from a text; `file` is named in errors."""
        document = taxonomy_yaml.parse(text, file)
        return cls.from_dict(document.data, file, document)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], file: str | None = None, document: Document | None = None) -> Taxonomy:
        """Read plain values in the shape of the file format; `document` knows the lines where they came from."""
        root = (document or Document(data, file)).root
        header = read_header(root)
        categories = tuple(read_category(item) for item in header.pop("categories").items())
        with placed(root):
            return cls(categories=categories, **{key: value.text() for key, value in header.items()})

    def to_dict(self) -> dict[str, Any]:
        """The taxonomy as plain values in the shape of the file format; what is empty is left out."""
        texts = {key: getattr(self, key) for key in ("id", "name", "description", "source") if getattr(self, key)}
        return {"format": FORMAT, **texts, "categories": [category.to_dict() for category in self.categories]}

    def to_yaml(self) -> str:
        """The taxonomy in the file format."""
        return taxonomy_yaml.dump(self.to_dict())

    @property
    def digest(self) -> str:
        """12 hex digits over the meaning: all fields of the categories and their order, not id, name or description."""
        if not self._digest:
            meaning = json.dumps([category.to_dict() for category in self.categories], sort_keys=True)
            object.__setattr__(self, "_digest", resources.digest(meaning))
        return self._digest

    @property
    def ref(self) -> str:
        """`id@digest`."""
        return f"{self.id}@{self.digest}"

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes in order."""
        return tuple(category.code for category in self.categories)

    def __len__(self) -> int:
        return len(self.categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self.categories)

    def category(self, code: str) -> Category:
        """The category with this code; TaxonomyError with the nearest code where there is none."""
        for category in self.categories:
            if category.code == code:
                return category
        hint = suggestion(code, self.codes, f"codes: {', '.join(self.codes)}")
        raise TaxonomyError(f"the taxonomy {self.id!r} has no category {code!r}", field="code", hint=hint)

    def select(self, codes: Iterable[str]) -> Taxonomy:
        """Only these categories, in this taxonomy's order."""
        wanted = self._known(codes)
        return self._with(category for category in self.categories if category.code in wanted)

    def exclude(self, codes: Iterable[str]) -> Taxonomy:
        """All categories but these; the codes of the others stay as they are."""
        unwanted = self._known(codes)
        return self._with(category for category in self.categories if category.code not in unwanted)

    def reorder(self, codes: Iterable[str]) -> Taxonomy:
        """The same categories in another order; `codes` names each exactly once."""
        order = self._known(codes)
        if sorted(order) != sorted(self.codes):
            missing = [code for code in self.codes if code not in order]
            problem = f"leaves out {', '.join(missing)}" if missing else "names a category twice"
            raise TaxonomyError(f"the order {problem}", field="codes", hint="use select() or exclude() to leave out")
        return self._with(self.category(code) for code in order)

    def rename(self, names: Mapping[str, str]) -> Taxonomy:
        """Other names, by code; codes and all else stay."""
        self._known(names)
        return self._with(replace(category, name=names.get(category.code, category.name)) for category in self)

    def recode(self, codes: Mapping[str, str]) -> Taxonomy:
        """Other codes, old to new; the new codes have to be distinct."""
        self._known(codes)
        return self._with(replace(category, code=codes.get(category.code, category.code)) for category in self)

    def renumber(self, prefix: str = "S", start: int = 1) -> Taxonomy:
        """Codes `S1`, `S2`, … in order."""
        return self._with(replace(category, code=f"{prefix}{n}") for n, category in enumerate(self, start))

    def add(self, category: Category, before: str | None = None) -> Taxonomy:
        """One more category, last or before the category with the code `before`."""
        at = len(self) if before is None else self.codes.index(self.category(before).code)
        return self._with((*self.categories[:at], category, *self.categories[at:]))

    def with_examples(self, examples: Mapping[str, Sequence[Example]]) -> Taxonomy:
        """Few-shot examples by code, in place of those that the category had."""
        self._known(examples)
        return self._with(replace(c, examples=tuple(examples.get(c.code, c.examples))) for c in self)

    def _with(self, categories: Iterable[Category]) -> Taxonomy:
        return replace(self, categories=tuple(categories))

    def _known(self, codes: Iterable[str]) -> tuple[str, ...]:
        if isinstance(codes, str):
            raise TaxonomyError(f"expected a list of codes, got the text {codes!r}", field="codes")
        return tuple(self.category(code).code for code in codes)


def open_document(source: str | Path) -> Document:
    """The parsed file of a shipped taxonomy's name or a path, not yet checked to be a taxonomy."""
    text = str(source)
    if isinstance(source, Path) or "/" in text or os.sep in text or text.endswith((".yaml", ".yml")):
        return taxonomy_yaml.read(Path(source))
    return taxonomy_yaml.read(resources.shipped("taxonomies", text, ".yaml"))


def read_header(root: Field) -> dict[str, Field]:
    """The top-level fields of a taxonomy file of a known format, without `format`."""
    fields = root.fields(("format", "id", "name", "categories"), ("description", "source"))
    version = fields.pop("format")
    if version.value != FORMAT or not isinstance(version.value, int) or isinstance(version.value, bool):
        raise version.error(f"the format is {version.value!r}", f"this release reads format {FORMAT}")
    return fields
