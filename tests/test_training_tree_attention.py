"""Attention in blocks gives what the whole square with a mask gives, forwards and backwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guardrail.training import tree_attention
from guardrail.training.answers import Answer, Step
from guardrail.training.packing import Branch, collate, pack
from tests.training_material import tiny_model, whole_square

LENGTHS = ((5, 40, 3), (30, 70, 1), (90,))


def branches(lengths: tuple[int, ...], prefix: int) -> list[Branch]:
    """Rows that share their first tokens, two of them some more."""

    answer = Answer((Step((7,)), Step((8,))))
    shared = tuple(range(10, 10 + prefix))
    return [
        Branch((*shared, 200, *(((201 + row) * (at + 3)) % 300 + 20 for at in range(length))), (answer,))
        for row, length in enumerate(lengths)
    ]


def outputs(model: Any, batch: dict[str, torch.Tensor], mask: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask, use_cache=False
    ).logits
    # Padding is in no loss.
    real = (batch["ends"] - torch.arange(batch["ends"].shape[1])[None] != 1) | (batch["input_ids"] != 0)
    logits[real].logsumexp(dim=-1).sum().backward()
    return logits[real].detach(), [value.grad.clone() for value in model.parameters()]


@pytest.mark.parametrize("block", [1, 7, 64, 1024])
def test_blocks_are_the_whole_square(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "_BLOCK", block)
    model = tiny_model().eval()
    batch = collate([pack(branches(lengths, prefix)) for lengths, prefix in zip(LENGTHS, (33, 4, 12), strict=True)])
    expected, gradients = outputs(model, batch, whole_square(batch["ends"]))
    with tree_attention.tree_attention(model):
        found, others = outputs(model, batch, tree_attention.tree_mask(batch["ends"]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_plain_products_are_the_fused_one(scaling: float | None) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(4, length, 16, generator=generator) for length in (20, 50, 50))
    mask = torch.where(torch.rand(20, 50, generator=generator) < 0.3, torch.finfo(torch.float32).min, 0.0)
    plain = tree_attention._block(query, key, value, mask, scaling=scaling, dropout=0.0)
    # Any dropout takes the fused product; this little drops nothing.
    fused = tree_attention._block(query, key, value, mask, scaling=scaling, dropout=1e-12)
    torch.testing.assert_close(plain, fused, atol=1e-5, rtol=1e-5)


def test_the_model_gets_its_attention_back() -> None:
    model = tiny_model()
    before = model.config._attn_implementation
    with tree_attention.tree_attention(model):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before
