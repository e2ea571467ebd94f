"""Attention within packs, in blocks: each run of queries with those keys alone that any of them sees.

A row of a pack sees its policy and itself, so most of the square of all tokens is empty; on a CPU, computing it took
more than half of a training step. The result is that of the whole square with a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["tree_attention", "tree_mask"]

_NAME = "guardrail_tree"
_BLOCK = 256


def tree_mask(ends: Tensor) -> Tensor:
    """The ends (B, L) of a batch in a shape that transformers hands to the attention as it is: (B, 1, 1, L)."""
    return ends[:, None, None, :]


@contextmanager
def tree_attention(model: Any) -> Iterator[None]:
    """Inside, the model takes `tree_mask` as its attention mask; afterwards what it took before."""
    AttentionInterface.register(_NAME, _attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (B, H, L, D), key and value (B, G, L, D) with H a multiple of G → (B, L, H, D)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    rows = [
        torch.cat(list(_blocks(*each, scaling=scaling, dropout=dropout)), dim=1)
        for each in zip(query, key, value, attention_mask[:, 0, 0], strict=True)
    ]
    return torch.stack(rows).transpose(1, 2).contiguous(), None


def _blocks(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *, scaling: float | None, dropout: float
) -> Iterator[Tensor]:
    """The outputs (H, l, D) of one pack's blocks of queries, in order."""
    length = query.shape[1]
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        # A token is seen by those from itself to before its end.
        seen = (ends[:stop] > start).nonzero()[:, 0]
        places = torch.arange(start, stop, device=ends.device)[:, None]
        allowed = (seen <= places) & (places < ends[seen])
        mask = torch.zeros(allowed.shape, dtype=query.dtype, device=query.device)
        mask.masked_fill_(~allowed, torch.finfo(query.dtype).min)
        yield _block(query[:, start:stop], key[:, seen], value[:, seen], mask, scaling=scaling, dropout=dropout)


def _block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float | None, dropout: float) -> Tensor:
    """query (H, l, D), key and value (H, S, D), mask (l, S) → (H, l, D)."""
    if query.device.type != "cpu" or dropout > 0:
        # With a batch of one in front: the kernels of GPUs take no less.
        return scaled_dot_product_attention(query[None], key[None], value[None], mask, dropout, scale=scaling)[0]
    # On a CPU the fused product is the slower one, most of all backwards, at the few hundred tokens of a block.
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.baddbmm(mask.expand(len(query), -1, -1), query, key.transpose(1, 2), alpha=scale)
    return scores.softmax(dim=-1, dtype=value.dtype) @ value
