"""Finds the data files that ship with the package; the only module that knows where they live."""

from __future__ import annotations

import hashlib
from pathlib import Path

from guardrail.errors import UsageError, suggestion

__all__ = ["digest", "folder", "names", "shipped"]

_PACKAGE = Path(__file__).resolve().parent
# Where a kind lies in the source tree, if not in a folder of its name.
_IN_SOURCE = {"written": "configs/written"}


def folder(kind: str) -> Path:
    """The folder of one kind of shipped file: `taxonomies`, `prompts`, `evals`, `written`, or `model`."""
    if kind == "model":
        return _PACKAGE / "_model"
    installed = _PACKAGE / "_data" / kind
    return installed if installed.is_dir() else _PACKAGE.parent / _IN_SOURCE.get(kind, kind)


def names(kind: str, suffix: str) -> tuple[str, ...]:
    """The ids of all shipped files of a kind, sorted."""
    return tuple(sorted(path.name.removesuffix(suffix) for path in folder(kind).glob(f"*{suffix}")))


def shipped(kind: str, name: str, suffix: str) -> Path:
    """The path of one shipped file; an unknown name is answered with the names that there are."""
    known = names(kind, suffix)
    if name in known:
        return folder(kind) / f"{name}{suffix}"
    hint = suggestion(name, known, f"available: {', '.join(known)}")
    raise UsageError(f"there is no {name!r} among the shipped {kind}", hint=hint)


def digest(data: bytes | str) -> str:
    """The first 12 hex digits of a SHA-256: enough to tell versions apart in a log."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return hashlib.sha256(raw).hexdigest()[:12]
