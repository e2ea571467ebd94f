"""Rounds the encoder's matrices to 8 bits so that what they make of texts changes least.

Two things are measured over texts of every input x of a matrix W: the mean of x xᵀ, and how large its components get.

- A few components are many times as large as the others (Dettmers et al. 2022, LLM.int8, section 4). All of a text's
  are quantized in one range, so these would leave the others few levels. They are made smaller before, and their
  weights larger in return (Xiao et al. 2023, SmoothQuant, section 4).
- The weights are rounded component by component. Those that are still to come make up for what it changes in W x
  (Frantar et al. 2023, GPTQ, section 3).

A matrix that was in 8 bits when training began is still near its levels, and is rounded to these, with no texts: by
chance, as the nearest ones would undo all steps of less than half a level, which most are.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guardrail.training.encoder_batches import batches
from guardrail.training.encoder_model import EncoderModel, Layer

__all__ = ["LEVELS", "Inputs", "Rounded", "round_again", "round_matrices", "round_moved", "round_weights"]

LEVELS = 63
"""The largest weight: on CPUs that add two products in 16 bits, 2 · 255 · 63 still fits."""
# Components that get larger than this quantile of all are made as large as it.
_LARGE = 0.99
# Added to the diagonal of the mean of x xᵀ, as a share of its mean; GPTQ's own.
_DAMPING = 0.01
# Nearer to a level than this, in levels, is on it.
_UNMOVED = 1e-3
_BUDGET = 2048


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix in 8 bits: W x is about `scales` · (`weights` (`factors` · x))."""

    weights: NDArray[np.int8]
    """(outputs, inputs), from -LEVELS to LEVELS."""
    scales: NDArray[np.float32]
    """(outputs,)."""
    factors: NDArray[np.float32]
    """(inputs,), above 0 and at most 1."""

    def matrix(self) -> NDArray[np.float32]:
        """What the bytes stand for, (outputs, inputs)."""
        return self.weights * self.scales[:, None] * self.factors


@dataclass(slots=True)
class Inputs:
    """What is known of a matrix's inputs, which have `width` components."""

    width: int
    products: Tensor = field(init=False)
    """The sum of x xᵀ over all tokens (width, width)."""
    largest: Tensor = field(init=False)
    """The sum, over texts, of each component's largest size in the text (width,)."""

    def __post_init__(self) -> None:
        self.products = torch.zeros(self.width, self.width, dtype=torch.float64)
        self.largest = torch.zeros(self.width, dtype=torch.float64)

    def add(self, inputs: Tensor) -> None:
        """Texts' inputs (B, T, width), 0 where a text has ended."""
        rows = inputs.flatten(0, -2)
        self.products += rows.T @ rows
        self.largest += inputs.abs().amax(dim=-2).sum(dim=0)


@torch.no_grad()
def round_matrices(model: EncoderModel, texts: Sequence[Sequence[int]], separator: int) -> dict[str, Rounded]:
    """The encoder's matrices by their names in the graph, rounded for texts (token ids) like these."""
    matrices = _matrices(model)
    seen = {name: Inputs(linear.in_features) for name, linear in matrices.items()}
    ids, order = [list(text) for text in texts], list(range(len(texts)))
    for batch in batches(ids, order, _BUDGET, separator, random.Random(0)):
        text = batch.attention_mask[:, :, None]
        hooks = [
            linear.register_forward_pre_hook(lambda _, given, found=seen[name]: found.add(given[0] * text))  # noqa: B023
            for name, linear in matrices.items()
        ]
        model.encode(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        for hook in hooks:
            hook.remove()
    return {name: round_weights(linear.weight, seen[name]) for name, linear in matrices.items()}


def round_moved(model: EncoderModel, before: Mapping[str, Rounded]) -> dict[str, Rounded]:
    """The encoder's matrices, which were `before` in the graph that training went on from."""
    return {name: round_again(linear.weight, before[name]) for name, linear in _matrices(model).items()}


def _matrices(model: EncoderModel) -> dict[str, nn.Linear]:
    found: dict[str, nn.Linear] = {}
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        parts = {"qkv.product": layer.qkv, "out": layer.out, "up": layer.up, "down": layer.down}
        found |= {f"layer{index}.{name}": linear for name, linear in parts.items()}
    return found


def round_weights(weight: Tensor, inputs: Inputs) -> Rounded:
    """The matrix (outputs, inputs) in 8 bits, for such inputs."""
    factors = (inputs.largest.quantile(_LARGE) / inputs.largest.clamp(min=1e-12)).clamp(1e-3, 1.0)
    wanted = weight.detach().double() / factors
    scales = wanted.abs().amax(dim=1) / LEVELS
    scales[scales == 0] = 1.0
    weights = _compensated(wanted, scales, inputs.products * factors * factors[:, None])
    return Rounded(weights.numpy().astype(np.int8), scales.float().numpy(), factors.float().numpy())


def round_again(weight: Tensor, before: Rounded) -> Rounded:
    """A matrix that moved from `before`, to the same levels, or wider ones where a row outgrew them.

    A weight between two levels takes the upper one as often as it is near to it, by chance with a fixed seed, so sums
    of many keep what small steps changed. One that did not move stays where it was.
    """
    wanted = weight.detach().numpy() / before.factors
    largest = np.abs(wanted).max(axis=1)
    scales = np.where(largest <= before.scales * (LEVELS + 0.5), before.scales, largest / LEVELS).astype(np.float32)
    values = wanted / scales[:, None]
    nearest = np.rint(values)
    by_chance = np.floor(values + np.random.default_rng(0).random(values.shape))
    found = np.where(np.abs(values - nearest) > _UNMOVED, by_chance, nearest)
    return Rounded(found.clip(-LEVELS, LEVELS).astype(np.int8), scales, before.factors)


def _compensated(weight: Tensor, scales: Tensor, products: Tensor) -> Tensor:
    """Whole numbers q (outputs, inputs): q · scales makes of the inputs nearly what `weight` makes of them."""
    products = products + torch.eye(len(products)) * (_DAMPING * products.diagonal().mean() + 1e-12)
    # The components that matter most come first, when all others can still make up for them.
    order = products.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(products[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = weight[:, order]
    found = torch.empty_like(left)
    for at in range(left.shape[1]):
        found[:, at] = (left[:, at] / scales).round().clamp(-LEVELS, LEVELS)
        error = (left[:, at] - found[:, at] * scales) / factor[at, at]
        left[:, at + 1 :] -= torch.outer(error, factor[at, at + 1 :])
    return found[:, order.argsort()]
