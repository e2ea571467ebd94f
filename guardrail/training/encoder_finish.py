"""From a checkpoint to the exported folder: calibration, comparison with 32 bits, and the report on both."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardrail.errors import ModelError
from guardrail.training.encoder_model import EncoderModel
from guardrail.training.encoder_report import choose_threshold, fit_temperature, guard_scores, obedience, sides
from guardrail.training.encoder_validation import Validation, domain_scores
from guardrail.training.export import export
from guardrail.training.mix import Mix
from guardrail.training.onnx_graph import write_graph
from guardrail.training.rows import Row
from guardrail.types import Role

__all__ = ["LARGEST_LOSS", "finish"]

LARGEST_LOSS = 0.005
"""By how much 8 bits may change the mean average precision on held-out rows."""


def finish(
    model: EncoderModel, tokenizer: Path, mix: Mix, validation: Validation, output: Path, model_id: str, date: str
) -> dict[str, Any]:
    """Exports to `output/model`, calibrates on held-out rows, and returns what was measured.

    Raises ModelError when 8 bits change the mean average precision on held-out rows by more than LARGEST_LOSS.
    """
    folder = output / "model"
    export(model, tokenizer, folder, model_id=model_id, date=date, thresholds={})
    rows, scores = _judged(folder, validation.rows)
    verdicts = np.log(scores / (1 - scores))
    domains = domain_scores(rows, verdicts, validation.domains)
    exact = domain_scores(rows, _exact(model, folder, rows), validation.domains)
    unsafe, kept = sides(rows, Role.USER)
    temperature = fit_temperature(verdicts[kept], unsafe)
    thresholds = {}
    for role in Role:
        unsafe, kept = sides(rows, role)
        if unsafe.any() and not unsafe.all():
            thresholds[role.value] = choose_threshold(1 / (1 + np.exp(-verdicts[kept] / temperature)), unsafe)
    export(model, tokenizer, folder, model_id=model_id, date=date, thresholds=thresholds, temperature=temperature)
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
        "temperature": temperature,
        "thresholds": thresholds,
        "obedience": obedience(folder, mix.held_out),
        "bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }


def _exact(model: EncoderModel, folder: Path, rows: Sequence[Row]) -> NDArray[np.float64]:
    """The rows' scores by the same guard with the same model in 32 bits."""
    with TemporaryDirectory() as place:
        copy = Path(place)
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(folder / name, copy / name)
        write_graph(model, copy / "model.onnx", int8=False)
        return _judged(copy, rows)[1]


def _judged(folder: Path, rows: Sequence[Row]) -> tuple[list[Row], NDArray[np.float64]]:
    """The rows that the guard can judge, with its scores; text in an unknown script has none."""
    decisions = guard_scores(folder, rows)
    kept = [(row, decision.score) for row, decision in zip(rows, decisions, strict=True) if decision.score is not None]
    return [row for row, _ in kept], np.array([score for _, score in kept], dtype=float)
