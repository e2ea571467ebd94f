"""How an encoder is trained: the `train` part of its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from guardrail.errors import UsageError

__all__ = ["Hyper"]

# The model has as many positions.
_WINDOW = 256


@dataclass(frozen=True, slots=True)
class Hyper:
    """Hyper-parameters. The defaults suit some hundred rows of one's own and the shipped model to start from.

    What was chosen for the shipped model itself is in configs/train-embedded.yaml and the files that go on from it.
    """

    seed: int = 1
    passes: int = 10
    """How many times the rows are shown."""
    tokens_per_batch: int = 1024
    max_tokens: int = 160
    """Longer texts are cut in training; a guard judges them in windows."""
    category_tokens: int = 128
    """The same for the text of a category; a guard reads it whole."""
    learning_rate: float = 5e-5
    """Of the top layer of the encoder."""
    head_rate: float = 1e-4
    """Of the head, which compares texts and categories."""
    layer_decay: float = 0.85
    """Each layer's rate is that of the layer above it times this."""
    frozen_layers: int = 0
    """So many layers, from the bottom, stay as they are, and the embeddings with them: a step takes less time."""
    weight_decay: float = 0.01
    warmup: float = 0.06
    """The share of the steps in which the rates rise."""
    average: float = 0.98
    """Decay per step of the average of the weights, which is what is evaluated and exported."""
    category_loss: float = 0.5
    """Weight of the categories' loss; the verdict's is 1."""
    positive_weight: float = 2.0
    """Weight of violated categories in it; all others have 1."""
    flip_rate: float = 0.12
    """How likely a row is shown a policy without all that it violates, which makes it safe; and, as likely, one without
    some of the rest."""
    noise_rate: float = 0.2
    """How likely a noisy copy takes the place of a text."""
    word_dropout: float = 0.05
    """The share of tokens that are hidden."""
    example_rate: float = 0.15
    """How likely a step averages unsafe texts of its labels into some categories' vectors."""
    category_gradient: float = 0.3
    """How likely a step learns from the categories' texts too; else their vectors are a few steps old."""
    evaluate_every: int = 50
    """Steps between two evaluations, at which the best weights are kept and the run is saved."""
    rehearsal: float = 1.0
    """Weight of the loss that holds a trained model to what it judged before; 0: none. A new head has none."""
    rehearsal_texts: int = 2000
    """How many texts are rehearsed, in turn."""

    def __post_init__(self) -> None:
        positive = ("passes", "tokens_per_batch", "learning_rate", "head_rate", "layer_decay", "positive_weight")
        for name in (*positive, "evaluate_every", "rehearsal_texts"):
            if not getattr(self, name) > 0:
                raise UsageError(f"train.{name} is {getattr(self, name):g}", hint="give a number above 0")
        for name in ("weight_decay", "category_loss", "rehearsal", "frozen_layers"):
            if getattr(self, name) < 0:
                raise UsageError(f"train.{name} is {getattr(self, name):g}", hint="give 0 or more")
        for name in (
            "warmup",
            "average",
            "flip_rate",
            "noise_rate",
            "word_dropout",
            "example_rate",
            "category_gradient",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"train.{name} is {getattr(self, name):g}", hint="give a number from 0 to 1")
        for name in ("max_tokens", "category_tokens"):
            if not 3 <= getattr(self, name) <= _WINDOW:
                raise UsageError(f"train.{name} is {getattr(self, name)}", hint=f"give a number from 3 to {_WINDOW}")
