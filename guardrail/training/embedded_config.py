"""The configuration of an embedded model's training: a YAML file that may extend another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from guardrail.errors import InputError

__all__ = ["merged", "read_config"]

_EXTENDS = "extends"


def read_config(file: Path) -> dict[str, Any]:
    """The values of a file; with `extends: OTHER`, relative to the file, those of the other one with its own on top.

    Mappings are merged key by key, everything else is replaced, and null takes a key away. Raises InputError for a file
    that cannot be read, for one that is no mapping, and for files that extend each other.
    """
    return _read(file, ())


def _read(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    place = file.resolve()
    if place in seen:
        raise InputError("the files extend each other", file=str(file), field=_EXTENDS)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(file)) from None
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read: {' '.join(str(error).split())}", file=str(file)) from None
    if not isinstance(values, dict):
        raise InputError("expected a mapping", file=str(file))
    other = values.pop(_EXTENDS, None)
    if other is None:
        return values
    if not isinstance(other, str):
        raise InputError(f"expected the name of a file, got {other!r}", file=str(file), field=_EXTENDS)
    return merged(_read(file.parent / other, (*seen, place)), values)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `base` with those of `over` on top, as `read_config` puts them together."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
