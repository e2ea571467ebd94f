"""Forward passes of a causal language model: a shared prefix computed once, and logits only where they are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from guardrail.backends.llama_packed import PackedLlama
from guardrail.errors import ModelError

__all__ = ["Forward", "Prefix"]

_PROBE = 8  # tokens
_log = logging.getLogger("guardrail")


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens that many prompts begin with, and the attention keys and values that each layer computed for them.

    `states` has one pair per layer, each of shape (1, key-value heads, tokens, head size).
    """

    ids: tuple[int, ...]
    states: tuple[tuple[Tensor, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Device memory that the states take."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.states)

    def cut(self, length: int) -> Prefix:
        """The first `length` tokens. Attention is causal, so their states do not depend on what is cut off."""
        return Prefix(
            self.ids[:length],
            tuple((keys[:, :, :length].clone(), values[:, :, :length].clone()) for keys, values in self.states),
        )


class _SharedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """One layer's prefix, seen by every row of a batch. Nothing is kept: each layer's joined copy dies after use."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


class Forward:
    """Runs a transformers causal language model. Not thread-safe.

    A Llama on a CPU takes its rows one behind the other. Elsewhere rows are padded on the right: in causal attention
    no token sees what follows it, so padding needs no mask, every row has the same positions, and a row's numbers do
    not depend on the rows beside it.
    """

    def __init__(self, model: Any, *, pack: bool = True) -> None:
        """`pack=False` pads in any case."""
        self._model = model
        decoder = model.get_decoder()
        self._decoder = model.model if decoder is model else decoder  # Llama 4's class names itself
        self._head = model.get_output_embeddings()
        self.device: torch.device = self._head.weight.device
        self.dtype: torch.dtype = model.dtype
        self._packed: PackedLlama | None = None
        self._plain_head, self.shares_prefix, self.bytes_per_token = self._probe()
        if pack and self._plain_head and self.shares_prefix and PackedLlama.fits(model):
            self._packed = PackedLlama(model)

    @property
    def pads(self) -> bool:
        """Whether every row of a batch takes as much as the longest one."""
        return self._packed is None

    @torch.inference_mode()
    def prefix(self, ids: Sequence[int], base: Prefix | None = None) -> Prefix:
        """Compute the states of `ids`; those of `base`, with whose tokens `ids` begins, are taken over."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(base.states if base else ()):
            cache.update(keys, values, layer)
        start = len(base.ids) if base else 0
        self._decode(self._tensor([ids[start:]]), cache)
        return Prefix(tuple(ids), tuple((layer.keys, layer.values) for layer in cache.layers))

    @torch.inference_mode()
    def read(
        self,
        rows: Sequence[Sequence[int]],
        prefixes: Sequence[Prefix | None],
        places: Sequence[tuple[int, int]],
        tokens: Sequence[int],
    ) -> list[list[float]]:
        """The logits of `tokens` at each of `places`.

        `rows` are token ids after the row's prefix, of any lengths; where rows are padded, all have the same prefix.
        A place is (row, position in that row). Returns one list per place, aligned with `tokens`, computed in float32
        from the model's last hidden states.
        """
        row = torch.tensor([place[0] for place in places], device=self.device)
        position = torch.tensor([place[1] for place in places], device=self.device)
        wanted = torch.tensor(tokens, device=self.device)
        prefix = prefixes[0]
        if self._packed:
            starts = torch.tensor([0, *accumulate(map(len, rows))])
            states = self._packed.decode(rows, [each.states if each else None for each in prefixes])
            logits = self._read_out(states[starts[row] + position], wanted)
        elif self._plain_head:
            logits = self._read_out(self._decode(self._tensor(rows), _shared(prefix))[row, position], wanted)
        else:
            kept, column = torch.unique(position, return_inverse=True)
            output = self._model(
                self._tensor(rows), past_key_values=_shared(prefix), use_cache=prefix is not None, logits_to_keep=kept
            )
            logits = output.logits[row, column][:, wanted].float()
        values: list[list[float]] = logits.tolist()
        return values

    def _read_out(self, states: Tensor, wanted: Tensor) -> Tensor:
        """The logits of the wanted tokens alone, in float32."""
        bias = getattr(self._head, "bias", None)
        weight = self._head.weight[wanted].float()
        return torch.nn.functional.linear(states.float(), weight, None if bias is None else bias[wanted].float())

    def _tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)

    def _decode(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """The last hidden states, of shape (rows, tokens, hidden size)."""
        states: Tensor = self._decoder(ids, past_key_values=cache, use_cache=cache is not None).last_hidden_state
        return states

    @torch.inference_mode()
    def _probe(self) -> tuple[bool, bool, int]:
        """What this architecture allows, found by trying it on a few tokens.

        Whether its logits are the plain product of hidden states and output embeddings (some scale or squash them),
        whether its layers take a cached prefix, and the bytes of cache per token. `ModelError` when tokens see what
        follows them: neither padding nor forced tokens would be harmless.
        """
        ids = list(range(_PROBE))
        first, rest = ids[: _PROBE // 2], ids[_PROBE // 2 :]
        states = self._decode(self._tensor([ids]), None)
        if not states.isfinite().all():
            raise ModelError(f"the model's numbers overflow in {self.dtype}", hint="use dtype='bfloat16' or 'float32'")
        if not _close(self._decode(self._tensor([first]), None), states[:, : len(first)]):
            raise ModelError("the model is not causal: its tokens see the tokens that follow them")
        whole = self._model(self._tensor([ids]), use_cache=False).logits
        plain = self._head.weight.is_floating_point() and torch.allclose(self._head(states), whole, rtol=1e-5, atol=0)
        try:
            prefix = self.prefix(first)
            shares = _close(self._decode(self._tensor([rest]), _shared(prefix)), states[:, len(first) :])
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            shares = False
        if not shares:
            _log.warning("the policy is computed anew for each request: this architecture does not allow to share it")
            return plain, False, 0
        return plain, True, prefix.nbytes // len(prefix.ids)


def _shared(prefix: Prefix | None) -> Cache | None:
    return Cache(layers=[_SharedLayer(*states) for states in prefix.states]) if prefix else None


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding."""
    tolerance = 1e-3 if other.dtype == torch.float32 else 0.05
    return bool((one - other).abs().max() <= tolerance * other.abs().max())
