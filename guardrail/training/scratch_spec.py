"""What a small model is that is trained from nothing: the `scratch` part of a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from guardrail.errors import UsageError

__all__ = ["ScratchSpec"]


@dataclass(frozen=True, slots=True)
class ScratchSpec:
    """A Llama with its own tokenizer, made from the texts of the training rows."""

    vocabulary: int = 12000
    """Tokens of the tokenizer."""
    hidden: int = 384
    """Numbers of a token's vector."""
    layers: int = 5
    heads: int = 6
    """Attention heads of a layer; they divide `hidden`."""
    inner: int = 1024
    """Width of a layer's feed-forward part."""
    positions: int = 2048
    """The longest prompt with its answer, in tokens."""
    words_from: str | None = None
    """Folder of a BERT-style checkpoint whose word vectors the new embeddings start from."""
    language_steps: int = 0
    """Steps in which it first learns to go on with the texts, before it learns to judge them."""
    language_tokens: int = 8192
    """Tokens of such a step."""
    language_rate: float = 1e-3
    """The highest learning rate of these steps."""
    vectors_from: str | None = None
    """`embedded` or an encoder's folder: a guard whose vectors of the texts it then learns to give."""
    vector_steps: int = 0
    """Steps in which it learns them."""
    vector_tokens: int = 6144
    """Tokens of such a step."""
    vector_rate: float = 1.5e-3
    """The highest learning rate of these steps."""
    seed: int = 1

    def __post_init__(self) -> None:
        for name in (
            "vocabulary",
            "hidden",
            "layers",
            "heads",
            "inner",
            "positions",
            "language_tokens",
            "vector_tokens",
        ):
            if getattr(self, name) < 1:
                raise UsageError(f"scratch.{name} is {getattr(self, name)}", hint="give a number from 1")
        if self.hidden % self.heads:
            raise UsageError(
                f"scratch.heads is {self.heads}, which does not divide {self.hidden}", hint="change heads or hidden"
            )
        for lesson in ("language", "vector"):
            steps, rate = getattr(self, f"{lesson}_steps"), getattr(self, f"{lesson}_rate")
            if steps < 0 or rate <= 0:
                reason = f"scratch.{lesson}_steps is {steps}, scratch.{lesson}_rate {rate:g}"
                raise UsageError(reason, hint="give 0 steps or more, and a rate above 0")
        if (self.vectors_from is None) != (self.vector_steps == 0):
            reason = f"scratch.vector_steps is {self.vector_steps}, scratch.vectors_from {self.vectors_from}"
            raise UsageError(reason, hint="give both or neither, such as vectors_from: embedded")
