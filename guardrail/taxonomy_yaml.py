"""Reads YAML strictly and remembers where every value stood, so that an error can name its line and field.

Only plain data is read: mappings with distinct text keys, lists, text, numbers, true/false and null. Tags, anchors and
merge keys are errors. What the values mean is not known here; `Field` gives the checks that a reader of them needs.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.errors import TaxonomyError, suggestion

if TYPE_CHECKING:
    import yaml

__all__ = ["Document", "Field", "Path", "dump", "parse", "read"]

Path = tuple[str | int, ...]
"""Keys and list indices from the root to a value."""

_DEEPEST = 20
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_KINDS = ((bool, "true or false"), (int | float, "a number"), (str, "text"), (Mapping, "a mapping"), (list, "a list"))


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data, and the line (1-based) of every value that came from a file."""

    data: Any
    file: str | None = None
    lines: Mapping[Path, int] = field(default_factory=dict)

    @property
    def root(self) -> Field:
        """The whole document as a field."""
        return Field(self, (), self.data)

    def error(self, path: Path, reason: str, hint: str | None = None) -> TaxonomyError:
        """An error at a value; a value that is not there is looked for in the mapping that should have it."""
        line = next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), None)
        return TaxonomyError(reason, file=self.file, line=line, field=_spell(path), hint=hint)


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a document, with its place."""

    document: Document
    path: Path
    value: Any

    @property
    def place(self) -> str | None:
        """The path as it is spelled in errors, such as `categories[2].name`; None at the root."""
        return _spell(self.path)

    def error(self, reason: str, hint: str | None = None, inside: str | None = None) -> TaxonomyError:
        """An error here, or at `inside`, a place below this one such as `include[2]`."""
        steps = (name or int(index) for name, index in _STEP.findall(inside or ""))
        return self.document.error((*self.path, *steps), reason, hint)

    def text(self) -> str:
        """The value as text; a number or a bare `yes` is an error, because the author's spelling of it is lost."""
        if not isinstance(self.value, str):
            hint = "put it in quotes" if isinstance(self.value, bool | int | float) else None
            raise self.error(f"expected text, got {_kind(self.value)}", hint)
        return self.value

    def items(self) -> tuple[Field, ...]:
        """The items of a list."""
        if not isinstance(self.value, Sequence) or isinstance(self.value, str | bytes | bytearray):
            raise self.error(f"expected a list, got {_kind(self.value)}")
        return tuple(Field(self.document, (*self.path, index), item) for index, item in enumerate(self.value))

    def texts(self) -> tuple[str, ...]:
        """The items of a list of texts."""
        return tuple(item.text() for item in self.items())

    def fields(self, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Field]:
        """The values of a mapping by key; an unknown or a missing key is an error."""
        if not isinstance(self.value, Mapping):
            raise self.error(f"expected a mapping, got {_kind(self.value)}")
        known = (*required, *optional)
        for key in self.value:
            if not isinstance(key, str) or key not in known:
                path = (*self.path, key if isinstance(key, str) else repr(key))
                hint = suggestion(str(key), known, f"known keys: {', '.join(known)}")
                raise self.document.error(path, "unknown key", hint)
        for key in required:
            if key not in self.value:
                raise self.error(f"the key {key!r} is missing")
        return {key: Field(self.document, (*self.path, key), value) for key, value in self.value.items()}


def read(path: pathlib.Path) -> Document:
    """Read a YAML file in UTF-8; TaxonomyError where there is none."""
    try:
        return parse(path.read_bytes().decode("utf-8-sig"), str(path))
    except OSError as error:
        raise TaxonomyError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise TaxonomyError("not UTF-8", file=str(path), line=line) from None


def parse(text: str, file: str | None = None) -> Document:
    """Read one YAML document; TaxonomyError with file and line where it is not plain data."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(yaml.parse(text, Loader=loader), file)
        root = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise TaxonomyError(f"not YAML: {reason}", file=file, line=mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.encode("utf-8", "surrogatepass").count(b"\n", 0, error.position) + 1
        raise TaxonomyError(f"not YAML: {error.reason}", file=file, line=line) from None
    except UnicodeEncodeError as error:
        raise TaxonomyError("not Unicode text", file=file, line=text.count("\n", 0, error.start) + 1) from None
    if root is None:
        raise TaxonomyError("the file is empty", file=file, line=1)
    reader = _Nodes(loader(""), file)
    return Document(reader.value(root, ()), file, reader.lines)


def dump(data: Any) -> str:
    """Plain data as YAML in the given key order; `parse` reads it back unchanged."""
    import yaml

    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True, width=110))


def _check_events(events: Iterable[Any], file: str | None) -> None:
    """Refuse what composing cannot survive: nesting that overflows the C stack, aliases that multiply the data."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            reason, hint = "anchors and aliases are not read", "write the value out in both places"
        elif isinstance(event, yaml.CollectionStartEvent) and depth == _DEEPEST:
            reason, hint = "nested too deep", f"at most {_DEEPEST} levels are read"
        else:
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            continue
        raise TaxonomyError(reason, file=file, line=event.start_mark.line + 1, hint=hint)


class _Nodes:
    """Turns composed nodes into plain data, collecting the line of each."""

    def __init__(self, constructor: Any, file: str | None) -> None:
        self.lines: dict[Path, int] = {}
        self._constructor = constructor
        self._file = file

    def value(self, node: Any, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        kind = (node.id, node.tag.removeprefix("tag:yaml.org,2002:"))
        if kind == ("mapping", "map"):
            return {key: self.value(child, (*path, key)) for key, child in self._pairs(node, path)}
        if kind == ("sequence", "seq"):
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        if kind[0] == "scalar" and kind[1] in {"str", "int", "float", "bool", "null"}:
            return self._scalar(node, path)
        if kind == ("scalar", "timestamp"):
            raise self._error(node, path, "expected text, got a date", "put it in quotes")
        raise self._error(node, path, f"the tag {node.tag} is not read", "only plain data is read")

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            return self._constructor.construct_object(node)
        except (ValueError, LookupError):
            raise self._error(node, path, f"cannot read {node.value!r}", "put it in quotes") from None

    def _pairs(self, node: yaml.Node, path: Path) -> Iterator[tuple[str, yaml.Node]]:
        seen: set[str] = set()
        for key, child in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise self._error(key, path, "a key must be text", "put it in quotes")
            place = (*path, key.value)
            line = key.start_mark.line + 1
            if key.value in seen:
                raise self._error(key, place, f"duplicate key, first given in line {self.lines[place]}")
            seen.add(key.value)
            self.lines[place] = line
            yield key.value, child

    def _error(self, node: yaml.Node, path: Path, reason: str, hint: str | None = None) -> TaxonomyError:
        line = node.start_mark.line + 1
        return TaxonomyError(reason, file=self._file, line=line, field=_spell(path), hint=hint)


def _spell(path: Path) -> str | None:
    """`("categories", 2, "name")` as `categories[2].name`."""
    spelled = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return spelled.removeprefix(".") or None


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return next((name for type_, name in _KINDS if isinstance(value, type_)), type(value).__name__)
