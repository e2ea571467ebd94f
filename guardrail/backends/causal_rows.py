"""Questions to a causal language model: what is appended to each prompt, and where its logits are read."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

__all__ = ["Answer", "Group", "Question", "Read", "Row", "common_length", "rows_for"]

Answer = dict[int, list[float]]
"""The logits that one row read, by question."""


@dataclass(frozen=True, slots=True)
class Question:
    """Logits wanted of a prompt: of `tokens`, once the tokens `path` stand behind it."""

    path: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """Where a row answers a question, and which tokens' logits are the answer."""

    question: int
    position: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to run, for the prompt of that index."""

    prompt: int
    ids: tuple[int, ...]
    reads: tuple[Read, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that are expected to begin alike, and their rows."""

    key: Hashable
    """The same for all such prompts, also of later calls."""
    starts: tuple[tuple[int, ...], ...]
    """The prompts up to where the verdict is read: the rows without what was forced behind it."""
    rows: tuple[Row, ...]


def rows_for(prompt: int, ids: tuple[int, ...], questions: Sequence[Question]) -> list[Row]:
    """The rows that answer all questions about one prompt; most often a single one.

    Attention is causal: what is read at a place does not depend on the tokens behind it. So a question is answered
    in the row of any other whose path begins with its own.
    """
    waiting = sorted(range(len(questions)), key=lambda index: -len(questions[index].path))
    rows: list[Row] = []
    while waiting:
        path = questions[waiting[0]].path
        here = [index for index in waiting if path[: len(questions[index].path)] == questions[index].path]
        waiting = [index for index in waiting if index not in here]
        reads = [Read(index, len(ids) + len(questions[index].path) - 1, questions[index].tokens) for index in here]
        rows.append(Row(prompt, ids + path, tuple(reads)))
    return rows


def common_length(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all rows begin with. Whatever the first and last row in sorted order share, all share."""
    first, last = min(rows), max(rows)
    low, high = 0, min(len(first), len(last))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == last[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
