"""Builds dataclasses from the fields of a YAML file; a wrong value is an error at its line."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from guardrail.errors import UsageError
from guardrail.taxonomy_yaml import Field

__all__ = ["build", "choice", "number"]

T = TypeVar("T")

# YAML 1.1 reads 2e-5 as text, because it has no decimal point.
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def build(field: Field, kind: type[T], **readers: Callable[[str], Any]) -> T:
    """A dataclass from a mapping with its fields as keys; those with a default may be absent.

    Fields are numbers, texts, literals, tuples of texts, further dataclasses, and any of these or None; `readers` make
    others of a text. What the class itself refuses with a UsageError becomes an error at the part that its message
    begins with, else at the mapping.
    """
    hints = get_type_hints(kind)
    parts = [part for part in dataclasses.fields(kind) if part.init]  # type: ignore[arg-type]  # a dataclass
    missing = dataclasses.MISSING
    required = [part.name for part in parts if part.default is missing and part.default_factory is missing]
    values = field.fields(required, [part.name for part in parts if part.name not in required])
    found = {
        name: _read(value, readers[name]) if name in readers else _value(value, hints[name])
        for name, value in values.items()
    }
    try:
        return kind(**found)
    except UsageError as error:
        first, _, rest = str(error).partition(" ")
        name = first.rpartition(".")[2]
        reason = rest if name != first and name in values and rest.startswith("is ") else str(error)
        raise field.error(reason, error.hint, name if name in values else None) from None


def number(field: Field, *, whole: bool = False) -> float:
    """A finite number; `whole`: without a fraction."""
    value = field.value
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise field.error(f"expected a number, got {field.value!r}")
    if not whole:
        return float(value)
    if value != int(value):
        raise field.error(f"expected a whole number, got {value!r}")
    return int(value)


def _value(field: Field, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if field.value is None and type(None) in arguments:
            return None
        (hint,) = (item for item in arguments if item is not type(None))
        return _value(field, hint)
    if origin is Literal:
        return choice(field, arguments)
    if origin is tuple:
        return field.texts()
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(field, hint)
    if hint is bool:
        if not isinstance(field.value, bool):
            raise field.error(f"expected true or false, got {field.value!r}")
        return field.value
    return field.text() if hint is str else number(field, whole=hint is int)


def _read(field: Field, reader: Callable[[str], Any]) -> Any:
    try:
        return reader(field.text())
    except UsageError as error:
        raise field.error(str(error), error.hint) from None


def choice(field: Field, known: Sequence[str]) -> Any:
    """One of the known texts."""
    text = field.text()
    if text not in known:
        raise field.error(f"cannot be {text!r}", f"known: {', '.join(known)}")
    return text
