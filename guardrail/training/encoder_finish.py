"""From a checkpoint to the exported folder: calibration, comparison with 32 bits, and the report on both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardrail.backends.encoder import EncoderBackend
from guardrail.errors import ModelError
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.calibrate import Recipe, calibrate
from guardrail.evaluation.calibration_fit import Target
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import load_items
from guardrail.guard import Guard
from guardrail.taxonomy import Taxonomy
from guardrail.training.encoder_model import EncoderModel
from guardrail.training.encoder_report import guard_scores
from guardrail.training.encoder_validation import Validation, domain_scores
from guardrail.training.export import MINILM, Base, export
from guardrail.training.held_out import FILE, SUITES, write_rows
from guardrail.training.identity_bias import identity_bias
from guardrail.training.judged_role import judged_role
from guardrail.training.mix import Mix
from guardrail.training.obedience import obedience
from guardrail.training.onnx_graph import write_graph
from guardrail.training.policies import OWN, TrainingPolicy
from guardrail.training.rows import Row

__all__ = ["LARGEST_LOSS", "finish", "read_recipe", "write_calibration"]

LARGEST_LOSS = 0.005
"""By how much 8 bits may change the mean average precision on held-out rows."""


def finish(
    model: EncoderModel,
    tokenizer: Path,
    mix: Mix,
    validation: Validation,
    output: Path,
    model_id: str,
    date: str,
    recipe: Recipe,
    origin: Base | None = None,
) -> dict[str, Any]:
    """Exports to `output/model`, calibrates on held-out rows, and returns what was measured.

    `origin` is the exported model that training went on from, if it did.

    Raises ModelError when 8 bits change the mean average precision on held-out rows by more than LARGEST_LOSS.
    """
    folder = output / "model"
    export(model, tokenizer, folder, model_id=model_id, date=date, base=origin or MINILM)
    rows, scores = _judged(folder, validation.rows)
    verdicts = np.log(scores / (1 - scores))
    domains = domain_scores(rows, verdicts, validation.domains)
    exact = domain_scores(rows, _exact(model, folder, rows), validation.domains)
    if abs(domains["macro"] - exact["macro"]) > LARGEST_LOSS:
        raise ModelError(
            f"8 bits change the mean average precision from {exact['macro']:.4f} to {domains['macro']:.4f}",
            hint=f"at most {LARGEST_LOSS} is allowed; keep more matrices in 32 bits",
        )
    return {
        "held_out_rows": len(rows),
        "not_judged": len(validation.rows) - len(rows),
        "int8": domains,
        "float32": exact,
        "calibration": write_calibration(folder, validation.rows, output, recipe),
        **_behaviour(folder, mix.held_out, validation.domains.get("requests", ())),
        "bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }


def _behaviour(folder: Path, rows: Sequence[Row], requests: Sequence[str]) -> dict[str, Any]:
    """What the calibrated guard in a folder makes of other policies, of roles, and of terms for groups of people."""
    backend = EncoderBackend(folder)

    def make(taxonomy: Taxonomy) -> Guard:
        return Guard(backend, taxonomy=taxonomy)

    default = backend.default_taxonomy
    policy = TrainingPolicy(OWN, default, tuple(frozenset(item.hazards) for item in default))
    guard = make(default)
    found = {
        "obedience": obedience(make, policy, rows),
        "judged_role": judged_role(guard, rows, requests),
        "identity_bias": identity_bias(guard, rows),
    }
    backend.close()
    return found


def write_calibration(folder: Path, rows: Sequence[Row], output: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Fits the calibration of the model in a folder on held-out rows, writes it there, and returns its figures."""
    write_rows(rows, output / FILE)
    roles = {row.conversation.role for row in rows}
    suites = [load_items(Suite.load(suite), output) for role, suite in SUITES.items() if role in roles]
    with Guard(EncoderBackend(folder)) as guard, Cache(None) as cache:
        calibration, lines = calibrate(guard, suites, recipe, cache)
    text = json.dumps(calibration.to_dict(), indent=2) + "\n"
    (folder / "calibration.json").write_text(text, encoding="utf-8")
    return lines


def read_recipe(raw: Mapping[str, Any]) -> Recipe:
    """The part `calibration` of a configuration."""
    return Recipe(**{**raw, "target": Target.parse(raw["target"])})


def _exact(model: EncoderModel, folder: Path, rows: Sequence[Row]) -> NDArray[np.float64]:
    """The rows' scores by the same guard with the same model in 32 bits."""
    with TemporaryDirectory() as place:
        copy = Path(place)
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(folder / name, copy / name)
        write_graph(model, copy / "model.onnx")
        return _judged(copy, rows)[1]


def _judged(folder: Path, rows: Sequence[Row]) -> tuple[list[Row], NDArray[np.float64]]:
    """The rows that the guard can judge, with its scores; text in an unknown script has none."""
    decisions = guard_scores(folder, rows)
    kept = [(row, decision.score) for row, decision in zip(rows, decisions, strict=True) if decision.score is not None]
    return [row for row, _ in kept], np.array([score for _, score in kept], dtype=float)
