"""Two processes that make a new checkpoint come to what one process comes to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from guardrail.loading import load
from guardrail.taxonomy_yaml import dump
from tests.tiny_guard import settings
from tests.two_processes import Place


def test_a_new_model_is_made_by_two_processes_as_by_one(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "one.yaml", tmp_path / "two.yaml")
    for name, packs in {"one": 2, "two": 1}.items():
        data = settings(tmp_path)
        data["scratch"] |= {"language_steps": 4, "language_tokens": 1024}
        data["train"] |= {"packs_per_device": packs, "steps": 12, "evaluate_every": 6, "average": 0.9}
        (tmp_path / f"{name}.yaml").write_text(dump(data), encoding="utf-8")
    for way in ("one", "copies"):
        place.run(way)
    found, expected = (json.loads((tmp_path / way / "checkpoints/scratch/language.json").read_bytes())
                       for way in ("copies", "one"))  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-2)
    for entry, other in zip(place.metrics("copies"), place.metrics("one"), strict=True):
        assert entry == pytest.approx(other, rel=2e-2)
    with load(tmp_path / "copies" / "model") as guard:
        assert guard.check("make a bomb").score is not None


def test_two_processes_learn_vectors_and_write_the_averaged_weights(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "one.yaml", tmp_path / "two.yaml")
    data = settings(tmp_path)
    data["scratch"] |= {"hidden": 384, "vectors_from": "embedded", "vector_steps": 6, "vector_tokens": 1024}
    data["train"] |= {"steps": 12, "evaluate_every": 6, "average": 0.9, "keep": "last", "learning_rate": 5e-4}
    data["train"] |= {"teacher_share": 0.3, "vector_weight": 2.0, "fixed_words": True}
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(dump(data), encoding="utf-8")
    losses = []
    for way in ("one", "copies"):
        place.run(way)
        made = json.loads((tmp_path / way / "checkpoints/scratch/language.json").read_bytes())
        losses.append(made["vector_loss"])
        written = load_file(tmp_path / way / "model" / "model.safetensors")
        average = load_file(tmp_path / way / "checkpoints" / "checkpoint-12" / "average.safetensors")
        assert "model.embed_tokens.weight" not in average
        assert all(torch.equal(written[name], value) for name, value in average.items())
    assert losses[0] < 1.0
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
