"""Trains an encoder on a team's rows and policy: from `kind: encoder` in a configuration to a model folder.

Training goes on from the shipped model (or another exported one, or with a new head on all-MiniLM-L6-v2), rehearses
what that model judged before, and keeps the weights that do best on the validation rows; the first ones take part, so
the result is never worse there than what training started from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from guardrail.errors import InputError, ModelError, UsageError
from guardrail.prompting import Template
from guardrail.resources import folder
from guardrail.tokens import TextTokenizer
from guardrail.training.config import EMBEDDED, TrainingConfig
from guardrail.training.data import Training
from guardrail.training.encoder_batches import EncoderPolicies, Policy, Renderer
from guardrail.training.encoder_hyper import Hyper
from guardrail.training.encoder_model import EncoderModel
from guardrail.training.encoder_rehearsal import Rehearsal, written_texts
from guardrail.training.encoder_trainer import Trainer
from guardrail.training.encoder_validation import logits, policy_vectors
from guardrail.training.export import MINILM, Base, export
from guardrail.training.model_folder import replaced
from guardrail.training.onnx_weights import read_model, read_rounded
from guardrail.training.outcome import Trained
from guardrail.training.rounding import Rounded
from guardrail.training.rows import Row, targets

__all__ = ["Start", "export_trained", "open_start", "train_encoder"]

_CHECKPOINT = Path("checkpoints") / "encoder.pt"
_METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Start:
    """What training starts from."""

    model: EncoderModel
    tokenizer: Path
    base: Base
    trained: bool
    """Whether its head was trained too, so that there is something to keep."""
    rounded: Mapping[str, Rounded]
    """Its matrices in 8 bits."""


def open_start(base: str) -> Start:
    """The model of a configuration's `base`: `embedded`, an exported folder, or the folder of all-MiniLM-L6-v2.

    Raises ModelError for a folder that is none of these.
    """
    path = folder("model") if base == EMBEDDED else Path(base)
    if not (path / "model.onnx").is_file():
        model = EncoderModel.from_base(path)
        return Start(model, path / "tokenizer.json", MINILM, trained=False, rounded={})
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        name, template = f"{config['id']}@{config['digest']}", config["template_digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"cannot open the model in {path}: {error!r}", hint="give a folder that was exported"
        ) from None
    if template != Template.load("encoder").digest:
        raise ModelError(f"{path}: the model was trained with another prompt template", hint="train it anew")
    graph = path / "model.onnx"
    origin = Base.of(name, graph)
    return Start(read_model(graph), path / "tokenizer.json", origin, trained=True, rounded=read_rounded(graph))


def train_encoder(config: TrainingConfig, data: Training, output: Path, resume: bool) -> Trained:
    """Writes `output/model` without a calibration, the metrics of each evaluation, and a checkpoint to resume from.

    Raises UsageError when the configuration is of another kind, InputError when the validation rows have only one
    verdict under the result's taxonomy.
    """
    hyper = config.train
    if config.base is None or not isinstance(hyper, Hyper):
        raise UsageError(f"the configuration {config.id!r} is not one of an encoder")
    torch.manual_seed(hyper.seed)
    start = open_start(config.base)
    renderer = Renderer(TextTokenizer.from_json(start.tokenizer.read_text(encoding="utf-8")))
    policies = EncoderPolicies(data.sampler, renderer, hyper.category_tokens)
    validation = _Validation(renderer, policies.encoded(config.result), data.validation)
    trainer = Trainer(start.model, renderer, policies, hyper, _rehearsal(start, renderer, hyper))
    run = _Run(trainer, validation, output)
    if not (resume and run.restore()) and start.trained:
        run.evaluate(0)
    cut = [len(renderer.conversation(row.conversation)) > hyper.max_tokens for row in data.rows]
    trainer.train(lambda number: data.sample(number, hyper.seed), run.evaluate)
    model = run.best_model()
    replaced(output / "model", lambda new: export_trained(start, model, config, new))
    return Trained(run.best["step"], trainer.steps, run.best["metrics"], {"texts cut in training": sum(cut)})


def export_trained(start: Start, model: EncoderModel, config: TrainingConfig, folder: Path) -> None:
    """Write the model that training made from a start, with the taxonomy of the result and no calibration."""
    export(
        model,
        start.tokenizer,
        folder,
        model_id=config.id,
        date=datetime.now(UTC).date().isoformat(),
        taxonomy=config.result.taxonomy,
        base=start.base,
        before=start.rounded,
    )


def _rehearsal(start: Start, renderer: Renderer, hyper: Hyper) -> Rehearsal | None:
    if not start.trained or hyper.rehearsal == 0:
        return None
    return Rehearsal(start.model, renderer, written_texts(hyper.rehearsal_texts, hyper.seed), hyper)


class _Validation:
    """Validation rows whose verdict is known under the result's taxonomy."""

    def __init__(self, renderer: Renderer, policy: Policy, rows: Sequence[Row]) -> None:
        self._renderer = renderer
        self._policy = policy
        known = [(row, target) for row in rows if (target := targets(row, policy.hazards)[0]) >= 0]
        self._conversations = [row.conversation for row, _ in known]
        self._targets = np.array([target for _, target in known], dtype=float)
        self._unsafe = self._targets >= 0.5
        if not self._unsafe.any() or self._unsafe.all():
            which = "unsafe" if self._unsafe.any() else "safe"
            raise InputError(
                f"the validation rows whose verdict is known are all {which} under the taxonomy of the result",
                hint="give validation rows of both verdicts",
            )

    def measure(self, model: EncoderModel) -> dict[str, float]:
        """AUPRC and log loss of the verdict."""
        vectors = policy_vectors(model, self._policy, self._renderer)
        found, _ = logits(model, self._renderer, self._conversations, vectors)
        loss = np.logaddexp(0, found) - self._targets * found
        return {"auprc": float(average_precision_score(self._unsafe, found)), "log_loss": float(loss.mean())}


class _Run:
    """What is known of a run so far, and its files."""

    def __init__(self, trainer: Trainer, validation: _Validation, output: Path) -> None:
        self._trainer = trainer
        self._validation = validation
        self._checkpoint = output / _CHECKPOINT
        self._metrics = output / _METRICS
        self._history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}

    def evaluate(self, step: int) -> bool:
        """Measure the averaged weights, keep the best, and save all of it; training always goes on."""
        metrics = self._validation.measure(self._trainer.averaged())
        if not self.best or _rank(metrics) > _rank(self.best["metrics"]):
            weights: Mapping[str, Tensor] = self._trainer.state()["average"]
            self.best = {"step": step, "metrics": metrics, "weights": weights}
        self._history.append({"step": step, **metrics})
        self._save()
        return True

    def restore(self) -> bool:
        """Go on from the last save; False where there is none."""
        if not self._checkpoint.is_file():
            return False
        saved = torch.load(self._checkpoint, weights_only=True)
        self._trainer.restore(saved["trainer"])
        self.best, self._history = saved["best"], saved["history"]
        return True

    def best_model(self) -> EncoderModel:
        """The model with the best weights."""
        model = self._trainer.averaged()
        model.load_state_dict(self.best["weights"], strict=False)
        return model.eval()

    def _save(self) -> None:
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        saved = {"trainer": self._trainer.state(), "best": self.best, "history": self._history}
        new = self._checkpoint.with_suffix(".new")
        torch.save(saved, new)
        os.replace(new, self._checkpoint)
        lines = [json.dumps({name: round(value, 6) for name, value in entry.items()}) for entry in self._history]
        self._metrics.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    """Few rows are often ranked equally well: then the sharper model is better."""
    return metrics["auprc"], -metrics["log_loss"]
