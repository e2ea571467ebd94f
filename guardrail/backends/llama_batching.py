"""Rows and batches: what is appended to each prompt, where logits are read, and which rows run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Question", "Read", "Row", "batch_cost", "batch_end", "rows_for"]

_PREFIX_SHARE = 4
"""A cached prefix token takes about a quarter of the memory of a token that is run: attention alone reads it."""


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


def batch_cost(rows: Sequence[Row], prefix: int) -> int:
    """What a batch takes of the token budget: its rows times the last and longest, a cached prefix counted in part."""
    return len(rows) * (len(rows[-1].ids) - prefix + prefix // _PREFIX_SHARE)


def batch_end(rows: Sequence[Row], start: int, prefix: int, token_budget: int) -> int:
    """Where the batch that begins at `start` ends: as many rows as the budget allows, and at least one.

    `rows` are sorted by length, so that little of a batch is padding.
    """
    end = start + 1
    while end < len(rows) and batch_cost(rows[start : end + 1], prefix) <= token_budget:
        end += 1
    return end
