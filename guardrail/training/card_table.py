"""Markdown tables and numbers of a model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["interval", "number", "spread", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; whatever a cell holds, it stays in its cell."""
    lines = [_line(head), "|" + "---|" * len(head)]
    lines.extend(_line(row) for row in rows)
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash for one that is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(found: Mapping[str, float] | None) -> str:
    """A value with its bootstrap interval."""
    return "–" if found is None else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def spread(found: Mapping[str, float] | None) -> str:
    """A mean with its range."""
    return "–" if found is None else f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in cells) + " |"
