"""The embedded classifier in PyTorch: a BERT encoder, and a head in which categories attend to a text's tokens.

A text is encoded once. Each category is a vector (the mean of the encoder's states over the category's text); it
attends over the text's token states, and what it gathers gives that category's logit. The verdict is a smooth maximum
of the category logits, so it depends on the text through the categories alone: the order of the categories cannot
matter, and a category that is left out cannot be violated.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from guardrail.errors import ModelError

__all__ = ["BASE_SHA256", "Embedder", "EncoderConfig", "EncoderModel", "mean_pool"]

BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the model.safetensors that training starts from: all-MiniLM-L6-v2."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes of the encoder and of its head."""

    vocabulary: int = 30522
    positions: int = 512
    dimension: int = 384
    layers: int = 6
    heads: int = 12
    inner: int = 1536
    category_heads: int = 6
    hidden: int = 256
    epsilon: float = 1e-12


class Layer(nn.Module):
    """One transformer layer, normalised after each half, as BERT's are."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dimension, 3 * config.dimension)
        self.out = nn.Linear(config.dimension, config.dimension)
        self.norm1 = nn.LayerNorm(config.dimension, config.epsilon)
        self.up = nn.Linear(config.dimension, config.inner)
        self.down = nn.Linear(config.inner, config.dimension)
        self.norm2 = nn.LayerNorm(config.dimension, config.epsilon)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """`states` (B, T, D); `bias` (B, 1, 1, T) is added to the attention logits."""
        batch, length, width = states.shape
        query, key, value = self.qkv(states).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query / math.sqrt(key.shape[-1]) @ key.transpose(-1, -2) + bias).softmax(dim=-1)
        gathered = (weights.to(value.dtype) @ value).transpose(1, 2).reshape(batch, length, width)
        states = self.norm1(states + self.out(gathered))
        return self.norm2(states + self.down(functional.gelu(self.up(states))))  # type: ignore[no-any-return]


class Embedder(nn.Module):
    """Token, position and segment embeddings, normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.dimension)
        self.positions = nn.Embedding(config.positions, config.dimension)
        self.types = nn.Embedding(2, config.dimension)
        self.norm = nn.LayerNorm(config.dimension, config.epsilon)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) ids → (B, T, D)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.norm(self.words(input_ids) + self.positions(places) + self.types(token_type_ids))  # type: ignore[no-any-return]


class EncoderModel(nn.Module):
    """Encoder and head; `forward` is what the exported graph computes."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dimension
        self.embedder = Embedder(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.category = nn.Linear(width, width)
        self.category_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.gather = nn.Linear(width, width)
        self.gather_norm = nn.LayerNorm(width)
        self.mean_norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(4 * width, config.hidden)
        self.logit = nn.Linear(config.hidden, 1)
        self.sharpness = nn.Parameter(torch.tensor(math.log(2.0)))
        self.dropout = nn.Dropout(0.1)
        self._initialise()

    def _initialise(self) -> None:
        # The query starts as the identity and so does the gathering: attention starts from cosine-like similarity.
        identity = torch.eye(self.config.dimension)
        with torch.no_grad():
            for linear in (self.category, self.query, self.gather):
                linear.weight.copy_(identity + 0.02 * torch.randn_like(identity))
                nn.init.zeros_(linear.bias)
            noise = 0.02 * torch.randn_like(self.key_value.weight)
            self.key_value.weight.copy_(torch.cat([identity, identity]) + noise)
            nn.init.zeros_(self.key_value.bias)

    @classmethod
    def from_base(cls, folder: Path, config: EncoderConfig | None = None) -> EncoderModel:
        """A new head on the pretrained encoder; ModelError when its file is not the pinned one."""
        file = folder / "model.safetensors"
        if not file.is_file():
            raise ModelError(f"{folder} holds no model.safetensors", hint="give the folder of all-MiniLM-L6-v2")
        if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != BASE_SHA256:
            raise ModelError(f"{file} has the SHA-256 {found}", hint=f"expected all-MiniLM-L6-v2: {BASE_SHA256}")
        model = cls(config or EncoderConfig())
        model.load_bert(load_file(file))
        return model

    def load_bert(self, weights: dict[str, Tensor]) -> None:
        """Copy the encoder's weights from their names in a BERT checkpoint."""
        with torch.no_grad():
            for name, module in (("word", self.embedder.words), ("position", self.embedder.positions),
                                 ("token_type", self.embedder.types)):  # fmt: skip
                module.weight.copy_(weights[f"embeddings.{name}_embeddings.weight"])
            _copy(self.embedder.norm, weights, "embeddings.LayerNorm")
            for index, layer in enumerate(self.layers):
                assert isinstance(layer, Layer)
                place = f"encoder.layer.{index}."
                for part in ("weight", "bias"):
                    names = [f"{place}attention.self.{name}.{part}" for name in ("query", "key", "value")]
                    getattr(layer.qkv, part).copy_(torch.cat([weights[name] for name in names]))
                _copy(layer.out, weights, place + "attention.output.dense")
                _copy(layer.norm1, weights, place + "attention.output.LayerNorm")
                _copy(layer.up, weights, place + "intermediate.dense")
                _copy(layer.down, weights, place + "output.dense")
                _copy(layer.norm2, weights, place + "output.LayerNorm")

    def encode(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Token states (B, T, D)."""
        states = self.embedder(input_ids, token_type_ids)
        if torch.is_autocast_enabled("cpu"):
            # Else every sum of a state and a layer's output would be computed, and kept, in 32 bits.
            states = states.bfloat16()
        bias = (1.0 - attention_mask[:, None, None, :].to(states.dtype)) * -1e4
        for layer in self.layers:
            states = layer(states, bias)
        return states  # type: ignore[no-any-return]

    def vectors(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """One vector per text (B, D): the mean over its tokens."""
        states = self.encode(input_ids, attention_mask, torch.zeros_like(input_ids))
        return mean_pool(states.float(), attention_mask)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, category_vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Category logits (B, C) and the mean-pooled vector (B, D)."""
        states = self.encode(input_ids, attention_mask, token_type_ids)
        vector = mean_pool(states.float(), attention_mask)
        return self.judge(states, attention_mask, vector, category_vectors), vector

    def judge(self, states: Tensor, attention_mask: Tensor, vector: Tensor, categories: Tensor) -> Tensor:
        """Category logits (B, C) from token states (B, T, D) and category vectors (C, D)."""
        batch, length, width = states.shape
        count, heads = len(categories), self.config.category_heads
        # Normalised, so that the products below, which tell categories apart, have the size of the other features.
        categories = self.category_norm(self.category(categories))
        query = self.query(categories).view(count, heads, -1).transpose(0, 1)
        key, value = self.key_value(states).view(batch, length, 2, heads, -1).permute(2, 0, 3, 1, 4)
        bias = (1.0 - attention_mask[:, None, None, :].to(states.dtype)) * -1e4
        weights = (query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1]) + bias).softmax(dim=-1)
        found = (weights.to(value.dtype) @ value).transpose(1, 2).reshape(batch, count, width)
        gathered = self.gather_norm(self.gather(found))
        shared = categories.expand(batch, -1, -1)
        whole = self.mean_norm(vector)[:, None, :]
        features = torch.cat([gathered, shared, gathered * shared, whole * shared], dim=-1)
        hidden = functional.gelu(self.hidden(self.dropout(features)))
        return self.logit(hidden).squeeze(-1).float()  # type: ignore[no-any-return]

    def verdict(self, logits: Tensor, kept: Tensor | None = None) -> Tensor:
        """The verdict's logit (B,): a mean of the category logits, each weighted by its own size.

        `kept` (B, C) says which categories the policy of each row has.
        """
        scaled = self.sharpness.exp() * logits
        if kept is not None:
            scaled = scaled.masked_fill(~kept, -1e4)
        return (scaled.softmax(dim=-1) * logits).sum(dim=-1)


def mean_pool(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean (B, D) of the states (B, T, D) over the tokens that are not padding."""
    mask = attention_mask[:, :, None].to(states.dtype)
    return (states * mask).sum(dim=1) / mask.sum(dim=1)


def _copy(module: nn.Linear | nn.LayerNorm, weights: dict[str, Tensor], name: str) -> None:
    assert module.bias is not None
    module.weight.copy_(weights[f"{name}.weight"])
    module.bias.copy_(weights[f"{name}.bias"])
