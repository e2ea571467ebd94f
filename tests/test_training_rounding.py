"""Matrices in 8 bits make of texts what they made before, as nearly as 8 bits can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from guardrail.training import rounding
from guardrail.training.rounding import LEVELS, Inputs, Rounded, round_again, round_matrices, round_weights
from tests.tiny_encoder import tiny_model

WIDTH = 128


def drawn(seed: int, texts: int = 60) -> Tensor:
    """Inputs (texts, 20, WIDTH) that vary in a few directions, as those of a trained model do."""
    torch.manual_seed(seed)
    return torch.randn(texts, 20, 24) @ torch.randn(24, WIDTH) + 0.3 * torch.randn(texts, 20, WIDTH)


def seen(inputs: Tensor) -> Inputs:
    found = Inputs(inputs.shape[-1])
    found.add(inputs)
    return found


def nearest(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True) / LEVELS
    return (weight / scale).round() * scale


def error(weight: Tensor, other: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (weight - other).T).square().mean().sqrt())


@pytest.mark.parametrize("seed", range(4))
def test_products_change_less_than_by_the_nearest_levels(seed: int) -> None:
    inputs = drawn(seed, texts=120)
    weight, known, new = torch.randn(48, WIDTH), inputs[:60], inputs[60:]
    rounded = round_weights(weight, seen(known))
    assert error(weight, torch.from_numpy(rounded.matrix()), new) < 0.5 * error(weight, nearest(weight), new)


def test_a_component_makes_up_for_one_before() -> None:
    """By hand: 10.4 becomes 10. Of the 0.4 · x₁ that is missing, x₂ can give Σ x₁x₂ / Σ x₂² = 3 / 9, 1 % damped."""
    found = seen(torch.tensor([[[3.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 2.0]]]))
    rounded = round_weights(torch.tensor([[10.4, 20.45, 63.0], [10.4, 20.3, 63.0]]), found)
    assert rounded.factors.tolist() == [1, 1, 1]
    assert rounded.scales.tolist() == [1, 1]
    # 20.45 + 0.13 and 20.3 + 0.13.
    assert rounded.weights.tolist() == [[10, 21, 63], [10, 20, 63]]


def test_a_large_component_leaves_the_others_levels() -> None:
    inputs, weight = drawn(1), torch.randn(48, WIDTH)
    inputs[:, :, 5] *= 30
    # As in trained models, where a large component has small weights.
    weight[:, 5] /= 30
    rounded = round_weights(weight, seen(inputs))
    assert rounded.factors[5] < 0.1
    assert np.delete(rounded.factors, 5).min() > 0.9
    rest = np.arange(WIDTH) != 5
    lost = [(in_bytes(text) - text)[:, rest].abs().mean() for text in inputs]
    even = torch.from_numpy(rounded.factors)
    kept = [(in_bytes(text * even) / even - text)[:, rest].abs().mean() for text in inputs]
    assert sum(kept) < 0.2 * sum(lost)


def in_bytes(text: Tensor) -> Tensor:
    """A text's inputs in 256 levels from the smallest to the largest, or 0."""
    level = (text.max().clamp(min=0) - text.min().clamp(max=0)) / 255
    return (text / level).round() * level


def test_training_by_less_than_half_a_level_is_kept() -> None:
    before = round_weights(torch.randn(48, WIDTH), seen(drawn(2)))
    start = torch.from_numpy(before.matrix())
    unmoved = round_again(start, before)
    assert np.array_equal(unmoved.weights, before.weights)
    assert np.array_equal(unmoved.scales, before.scales)
    level = torch.from_numpy(before.scales[:, None] * before.factors)
    inner = torch.from_numpy(np.abs(before.weights) < LEVELS)
    kept = round_again(start + 0.2 * level * inner, before)
    steps = (kept.weights - before.weights)[inner.numpy()]
    assert set(steps.tolist()) == {0, 1}
    assert steps.mean() == pytest.approx(0.2, abs=0.02)
    assert np.array_equal(kept.weights[~inner.numpy()], before.weights[~inner.numpy()])


def test_a_row_that_outgrew_its_levels_gets_wider_ones() -> None:
    before = round_weights(torch.randn(3, WIDTH), seen(drawn(3)))
    trained = torch.from_numpy(before.matrix())
    trained[1] *= 1.5
    again = round_again(trained, before)
    assert again.scales[[0, 2]].tolist() == before.scales[[0, 2]].tolist()
    assert again.scales[1] == pytest.approx(1.5 * before.scales[1], rel=0.01)
    assert np.abs(again.matrix() - trained.numpy()).max() < 1.01 * again.scales.max()


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 3), st.sampled_from([0.0, 1e-6, 1.0, 1e4]), st.data())
def test_any_matrix_has_bytes(outputs: int, width: int, texts: int, size: float, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    found = Inputs(width)
    for _ in range(texts):
        found.add(size * torch.randn(1, 3, width))
    weight = data.draw(st.sampled_from([0.0, 1.0, 1e3])) * torch.randn(outputs, width)
    rounded = round_weights(weight, found)
    assert rounded.weights.shape == (outputs, width)
    assert np.abs(rounded.weights.astype(int)).max() <= LEVELS
    assert (rounded.scales > 0).all()
    assert np.isfinite(rounded.scales).all()
    assert (rounded.factors > 0).all()
    assert (rounded.factors <= 1).all()


def test_what_is_measured_is_the_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of other lengths in a batch, and its padding, change nothing."""
    model, measured = tiny_model(), []

    def measure(weight: Tensor, inputs: Inputs) -> Rounded:
        measured.append(inputs)
        return round_weights(weight, inputs)

    monkeypatch.setattr(rounding, "round_weights", measure)
    chosen = np.random.default_rng(0)
    texts = [[101, *chosen.integers(1000, 1200, size).tolist(), 102] for size in (3, 30, 4, 17)]
    together = round_matrices(model, texts, 102)
    assert list(together) == [f"layer{at}.{part}" for at in (0, 1) for part in ("qkv.product", "out", "up", "down")]
    first, measured = measured, []
    for text in texts:
        round_matrices(model, [text], 102)
    for at, inputs in enumerate(first):
        alone = measured[at :: len(first)]
        torch.testing.assert_close(inputs.products, sum(item.products for item in alone), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(inputs.largest, sum(item.largest for item in alone), rtol=1e-4, atol=1e-4)
