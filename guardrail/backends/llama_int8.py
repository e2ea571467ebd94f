"""Linear layers in 8 bits for a CPU: whole numbers are multiplied, and scaled back afterwards.

A weight matrix has one scale per output, and the inputs one per token, found when the token comes ("vector-wise
quantization", Dettmers et al. 2022, section 2.1; without their part in 16 bits for outliers). A token's numbers do not
depend on the tokens beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Int8Linear", "has_int8", "to_int8"]

_MOST = 127
# Rows of a product, whose 32-bit numbers stay in the processor's caches until they are scaled.
_ROWS = 256


class Int8Linear(nn.Module):
    """What nn.Linear computes, with a relative error of about 1 %; it keeps a quarter of float32's bytes."""

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """`weight` (inputs, outputs) of int8 and `scales` (outputs,) of float32, whose product are the weights."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)
        self.weight: Tensor
        self.scales: Tensor
        self.bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Linear) -> Int8Linear:
        """From a layer with weights as they come."""
        weight = layer.weight.detach().float()
        scales = _scales(weight)
        whole = (weight / scales).round_().to(torch.int8)
        bias = None if layer.bias is None else layer.bias.detach()
        # A copy in any case: with one input the turned matrix would pass for contiguous, with strides that _int_mm
        # reads beyond its end with.
        return cls(whole.t().clone(memory_format=torch.contiguous_format), scales[:, 0], bias)

    @classmethod
    def joined(cls, parts: Sequence[Int8Linear]) -> Int8Linear:
        """Layers with the same inputs as one; the parts then keep views of its weights."""
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts if part.bias is not None])
        whole = cls(torch.cat([part.weight for part in parts], dim=1), torch.cat([part.scales for part in parts]), bias)
        start = 0
        for part in parts:
            stop = start + part.weight.shape[1]
            part.weight = whole.weight[:, start:stop]
            start = stop
        return whole

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs), in the inputs' number format."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        scales = _scales(rows)
        whole = (rows / scales).round_().to(torch.int8)
        found = torch.empty(len(rows), self.weight.shape[1], dtype=inputs.dtype)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            torch.mul(torch._int_mm(whole[part], self.weight) * self.scales, scales[part], out=found[part])
        if self.bias is not None:
            found += self.bias
        return found.view(*inputs.shape[:-1], -1)


def to_int8(model: nn.Module, *, keep: nn.Module | None = None) -> None:
    """Replace all linear layers but `keep`, one after the other, so that the memory falls as it goes on."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child is not keep:
                setattr(module, name, Int8Linear.of(child))


def has_int8(model: nn.Module) -> bool:
    """Whether it has such layers."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def _scales(rows: Tensor) -> Tensor:
    """(N, 1) in float32: the largest number of each row becomes 127."""
    return rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / _MOST
