"""Which rows run together, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from guardrail.backends.causal_rows import Row

__all__ = ["batch_cost", "batch_end"]

_PREFIX_SHARE = 4
"""A cached prefix token takes about a quarter of the memory of a token that is run: attention alone reads it."""


def batch_cost(rows: Sequence[Row], prefix: int, *, pads: bool = True) -> int:
    """What a batch takes of the token budget.

    With padding, its rows times the last and longest, the cached prefix counted in part; else its tokens.
    """
    if not pads:
        return sum(len(row.ids) - prefix for row in rows)
    return len(rows) * (len(rows[-1].ids) - prefix + prefix // _PREFIX_SHARE)


def batch_end(rows: Sequence[Row], start: int, prefix: int, token_budget: int, *, pads: bool = True) -> int:
    """Where the batch that begins at `start` ends: as many rows as the budget allows, and at least one.

    `rows` are sorted by length, so that little of a batch is padding.
    """
    end = start + 1
    while end < len(rows) and batch_cost(rows[start : end + 1], prefix, pads=pads) <= token_budget:
        end += 1
    return end
