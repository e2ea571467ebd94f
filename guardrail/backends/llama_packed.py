"""A Llama's layers on a CPU, with the rows of a batch one behind the other instead of padded side by side.

The products with the weights, which is where the time should go, run over all tokens at once, and over no padding.
Attention runs in blocks of queries: each with the prefix, which is shared and never copied per row, and with the
tokens of its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu
from transformers import LlamaForCausalLM

from guardrail.backends.llama_int8 import Int8Linear

__all__ = ["Block", "PackedLlama", "blocks_of"]

States = Sequence[tuple[Tensor, Tensor]]
"""Of each layer, the prefix's keys and values: (1, key-value heads, tokens, head size)."""

Product = Callable[[Tensor], Tensor]
"""(tokens, inputs) → (tokens, outputs)."""

_BLOCK = 192
"""Queries of a block, per head. Its scores stay in the processor's caches."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries from `start` to `stop`, and the tokens from `first` to `stop` that they may see besides the prefix."""

    first: int
    start: int
    stop: int
    hidden: Tensor
    """(queries, tokens): whether the query must not see the token."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's weights. Those that read the same input are one matrix each."""

    before_attention: Any
    query_key_value: Product
    output: Product
    before_mlp: Any
    gate_up: Product
    down: Product


class PackedLlama:
    """The decoder of a transformers Llama, sharing its weights. Not thread-safe."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self._decoder = model.model
        self._heads: int = config.num_attention_heads
        self._groups: int = config.num_key_value_heads
        self._size: int = model.model.layers[0].self_attn.head_dim
        self._layers = [_layer(layer) for layer in model.model.layers]

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether this is a Llama on a CPU, with the usual activation, in plain numbers or in 8 bits of ours."""
        return (
            type(model) is LlamaForCausalLM
            and model.device.type == "cpu"
            and model.config.hidden_act == "silu"
            and all(parameter.is_floating_point() for parameter in model.parameters())
            and getattr(model.config, "quantization_config", None) is None
        )

    @torch.inference_mode()
    def decode(self, rows: Sequence[Sequence[int]], prefixes: Sequence[States | None]) -> Tensor:
        """The last hidden states of all rows, one row behind the other: (tokens, hidden size).

        `prefixes` are those of the rows; rows that follow each other with the same one share its blocks.
        """
        blocks = list(_blocks(rows, prefixes))
        before = [prefix[0][0].shape[2] if prefix else 0 for prefix in prefixes]
        positions = torch.cat([torch.arange(at, at + len(row)) for at, row in zip(before, rows, strict=True)])
        states: Tensor = self._decoder.embed_tokens(torch.tensor([token for row in rows for token in row]))
        cosines, sines = (part[0, :, None] for part in self._decoder.rotary_emb(states[None], positions[None]))
        for number, layer in enumerate(self._layers):
            normed = _normed(layer.before_attention, states)
            query, key, value = self._turned(layer.query_key_value(normed), cosines, sines)
            attended = _attend(
                query, key, value, [(block, prefix[number] if prefix else None) for block, prefix in blocks]
            )
            states = states + layer.output(attended)
            gate, up = layer.gate_up(_normed(layer.before_mlp, states)).chunk(2, dim=-1)
            states = states + layer.down(silu(gate).mul_(up))
        return _normed(self._decoder.norm, states)

    def _turned(self, joined: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (G, heads of a group, T, D), keys and values (G, T, D), with rotary positions (Su et al. 2021)."""
        tokens, groups, size = joined.shape[0], self._groups, self._size
        heads = joined.view(tokens, -1, size)
        turned = heads[:, : self._heads + groups]
        swapped = torch.cat([-turned[..., size // 2 :], turned[..., : size // 2]], dim=-1)
        turned = (turned * cosines).addcmul_(swapped, sines)
        query = turned[:, : self._heads].mul_(size**-0.5).view(tokens, groups, -1, size).permute(1, 2, 0, 3)
        key = turned[:, self._heads :].transpose(0, 1)
        return query, key, heads[:, self._heads + groups :].transpose(0, 1)


def blocks_of(lengths: Sequence[int], size: int = _BLOCK) -> Iterator[Block]:
    """Blocks of at most `size` queries over rows of these lengths: short rows together, long ones in pieces."""
    ends = list(accumulate(lengths))
    starts = [end - length for end, length in zip(ends, lengths, strict=True)]
    row = 0
    while row < len(lengths):
        after = row + 1
        while after < len(lengths) and ends[after] - starts[row] <= size:
            after += 1
        begins = torch.repeat_interleave(torch.tensor(starts[row:after]), torch.tensor(lengths[row:after]))
        places = torch.arange(starts[row], ends[after - 1])
        for start in range(starts[row], ends[after - 1], size):
            stop = min(start + size, ends[after - 1])
            queries = places[start - starts[row] : stop - starts[row], None]
            seen = places[None, : stop - starts[row]]
            hidden = (seen > queries) | (seen < begins[start - starts[row] : stop - starts[row], None])
            yield Block(starts[row], start, stop, hidden)
        row = after


def _blocks(rows: Sequence[Sequence[int]], prefixes: Sequence[States | None]) -> Iterator[tuple[Block, States | None]]:
    """The blocks of all rows with their prefixes; rows of different prefixes are in different blocks."""
    start = 0
    for _, run in groupby(zip(rows, prefixes, strict=True), key=lambda each: id(each[1])):
        together = list(run)
        for block in blocks_of([len(row) for row, _ in together]):
            yield Block(start + block.first, start + block.start, start + block.stop, block.hidden), together[0][1]
        start += sum(len(row) for row, _ in together)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[tuple[Block, tuple[Tensor, Tensor] | None]]
) -> Tensor:
    """query (G, R, T, D), already scaled, key and value (G, T, D), each block's prefix (1, G, P, D) → (T, G * R * D).

    Two plain products with a softmax between them: the CPU's fused kernel widens bfloat16 and takes three times as
    long, and with a mask it is no faster in float32 either.
    """
    groups, heads, tokens, size = query.shape
    result = torch.empty(tokens, groups, heads, size, dtype=query.dtype)
    for block, prefix in blocks:
        own = slice(block.first, block.stop)
        for group in range(groups):
            keys, values = key[group, own], value[group, own]
            if prefix is not None:
                keys, values = torch.cat([prefix[0][0, group], keys]), torch.cat([prefix[1][0, group], values])
            asked = query[group, :, block.start : block.stop].reshape(-1, size)
            scores = asked @ keys.t()
            mine = scores.view(heads, -1, keys.shape[0])[..., keys.shape[0] - block.hidden.shape[1] :]
            mine.masked_fill_(block.hidden, -torch.inf)
            found = (scores.softmax(dim=-1) @ values).view(heads, -1, size)
            result[block.start : block.stop, group] = found.transpose(0, 1)
    return result.view(tokens, -1)


def _normed(norm: Any, states: Tensor) -> Tensor:
    return rms_norm(states, (states.shape[-1],), norm.weight, norm.variance_epsilon)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        layer.input_layernorm,
        _joined(attention.q_proj, attention.k_proj, attention.v_proj),
        attention.o_proj,
        layer.post_attention_layernorm,
        _joined(mlp.gate_proj, mlp.up_proj),
        mlp.down_proj,
    )


@torch.no_grad()
def _joined(*parts: Any) -> Product:
    """Several linear layers as one, of whose weights the layers keep views: the memory is shared."""
    if isinstance(parts[0], Int8Linear):
        return Int8Linear.joined(parts)
    weight = torch.cat([part.weight for part in parts])
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    start = 0
    for part in parts:
        stop = start + part.weight.shape[0]
        part.weight.data = weight[start:stop]
        if bias is not None:
            part.bias.data = bias[start:stop]
        start = stop
    return partial(linear, weight=weight, bias=bias)
