"""How a causal language model is trained: the `train` part of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from guardrail.errors import UsageError

__all__ = ["LlamaHyper", "LoraHyper"]


@dataclass(frozen=True, slots=True)
class LoraHyper:
    """Low-rank adapters (Hu et al. 2021) beside the base's linear layers, whose own weights stay as they are."""

    rank: int = 16
    """Inner dimension of an adapter."""
    alpha: float = 32.0
    """An adapter's output is scaled by alpha / rank."""
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """The layers that get an adapter, by the last part of their names."""

    def __post_init__(self) -> None:
        _positive("lora.rank", self.rank)
        _positive("lora.alpha", self.alpha)
        _share("lora.dropout", self.dropout)
        if not self.targets:
            raise UsageError("lora.targets is empty", hint="name at least one layer, such as q_proj")


@dataclass(frozen=True, slots=True)
class LlamaHyper:
    """Hyper-parameters; a step is one update of the weights."""

    method: Literal["full", "lora", "qlora"] = "full"
    """Train all weights, adapters, or adapters beside a base in 4 bits (Dettmers et al. 2023)."""
    learning_rate: float = 2e-6
    """The highest rate of the schedule."""
    steps: int | None = None
    """How many steps; exclusive with `epochs`."""
    epochs: float | None = None
    """How many times all rows are shown; 1 where `steps` is not given either."""
    pack_tokens: int = 4096
    """Tokens of a pack: one policy, and as many conversations with their answers as fit behind it."""
    packs_per_device: int = 1
    """Packs of one forward pass."""
    accumulation: int = 1
    """Forward passes of one step."""
    warmup: float = 0.03
    """The share of the steps in which the learning rate rises from zero."""
    weight_decay: float = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: to zero, or not at all."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What is computed in; the weights that are trained stay in `weights`."""
    weights: Literal["bfloat16", "float32"] | None = None
    """The base's weights; by default float32 where they are trained, bfloat16 where they are frozen."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass: a third slower, with a fraction of the memory."""
    seed: int = 1
    evaluate_every: int = 100
    """Steps between two evaluations on the validation rows."""
    keep: Literal["best", "last"] = "best"
    """Which weights are the result: those of the best evaluation, or the last ones, where the validation rows are too
    much like the training rows to tell how the model does on others."""
    patience: int | None = None
    """Stop after so many evaluations without a better one; never where it is not given."""
    save_every: int | None = None
    """Steps between two checkpoints that a killed run goes on from, besides those at each evaluation."""
    verdict_weight: float = 1.0
    """Weight of the verdict's token in the loss; every other token of an answer has 1."""
    fixed_words: bool = False
    """The word vectors stay as they are, with `method: full`: adapters leave them alone anyway."""
    teacher_share: float = 0.0
    """Share of the teacher's P(unsafe) (`scratch.vectors_from`) in the verdict to learn; the rest is the label's. Where
    a policy leaves out what a row violates, its verdict is the label's alone."""
    vector_weight: float = 0.0
    """Weight of the distance from the teacher's vector (`scratch.vectors_from`) in the loss, of each text: so that what
    it has learnt of texts before it judged is not lost for the training rows' own ways."""
    average: float | None = None
    """Decay per step of an exponential average of the weights, which is then evaluated and is the result."""
    clip: float = 1.0
    """The highest norm of a step's gradient; longer ones are scaled down."""
    lora: LoraHyper = field(default_factory=LoraHyper)

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UsageError("train.steps and train.epochs are both given", hint="give one of them")
        if self.keep == "last" and self.patience is not None:
            raise UsageError(f"train.patience is {self.patience}, which needs keep: best", hint="leave one of them out")
        for name in ("learning_rate", "pack_tokens", "packs_per_device", "accumulation", "evaluate_every", "clip"):
            _positive(f"train.{name}", getattr(self, name))
        for name in ("steps", "epochs", "patience", "save_every", "verdict_weight"):
            value = getattr(self, name)
            if value is not None:
                _positive(f"train.{name}", value)
        if not 0 <= self.teacher_share <= 1:
            raise UsageError(f"train.teacher_share is {self.teacher_share:g}", hint="give a number from 0 to 1")
        for name in ("warmup", "average"):
            value = getattr(self, name)
            if value is not None:
                _share(f"train.{name}", value)
        for name in ("weight_decay", "vector_weight"):
            if getattr(self, name) < 0:
                raise UsageError(f"train.{name} is {getattr(self, name):g}", hint="give 0 or more")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{name} is {value:g}", hint="give a number above 0")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{name} is {value:g}", hint="give a number from 0 to below 1")
