"""Which rows run together, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardrail.backends.causal_rows import Row
from guardrail.backends.llama_forward import Prefix

__all__ = ["Piece", "batch_cost", "batch_end"]

_PREFIX_SHARE = 4
"""A cached prefix token takes about a quarter of the memory of a token that is run: attention alone reads it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A row on its way to the model."""

    place: int
    """Which of all rows it is."""
    row: Row
    prefix: Prefix | None
    """What it begins with and what need not be run."""

    @property
    def start(self) -> int:
        """Tokens of the prefix."""
        return len(self.prefix.ids) if self.prefix else 0

    @property
    def tokens(self) -> int:
        """Tokens that are run."""
        return len(self.row.ids) - self.start


def batch_cost(pieces: Sequence[Piece], *, pads: bool = True) -> int:
    """What a batch takes of the token budget.

    With padding, its rows times the last and longest, the cached prefix counted in part; else its tokens.
    """
    if not pads:
        return sum(piece.tokens for piece in pieces)
    return len(pieces) * (pieces[-1].tokens + pieces[-1].start // _PREFIX_SHARE)


def batch_end(pieces: Sequence[Piece], start: int, token_budget: int, *, pads: bool = True) -> int:
    """Where the batch that begins at `start` ends: as many rows as the budget allows, and at least one.

    Where they are padded, they have one prefix and are sorted by length, so that little of a batch is padding.
    """
    end = start + 1
    while end < len(pieces) and batch_cost(pieces[start : end + 1], pads=pads) <= token_budget:
        end += 1
    return end
