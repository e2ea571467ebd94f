"""Two processes that fine-tune a checkpoint, in copies and in shards, come to what one process comes to."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from guardrail.loading import load
from guardrail.prompting import Template
from guardrail.taxonomy_yaml import dump
from tests.tiny_guard import TAXONOMY, rows, settings, tiny_checkpoint
from tests.two_processes import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("processes")
    torch.manual_seed(0)
    model, tokenizer = tiny_checkpoint(Template.load("llama-guard-3"))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    files = {"one": 2, "two": 1}
    for name, packs in files.items():
        data = settings(folder, scratch=None, base=str(folder / "base"), template="llama-guard-3")
        data["train"] |= {"packs_per_device": packs, "steps": 12, "evaluate_every": 6, "learning_rate": 3e-3}
        (folder / f"{name}.yaml").write_text(dump(data), encoding="utf-8")
    found = Place(folder, folder / "one.yaml", folder / "two.yaml")
    found.run("one")
    return found


@pytest.mark.parametrize("way", ["copies", "shards"])
def test_two_processes_come_to_the_same_as_one(place: Place, way: str) -> None:
    summary = place.launch(way)
    # The whole step's weights divide the loss, so the sums differ in their order alone.
    found, expected = place.metrics(way), place.metrics("one")
    assert [entry["step"] for entry in found] == [6, 6, 12, 12]
    for entry, other in zip(found, expected, strict=True):
        assert entry == pytest.approx(other, rel=1e-3)
    checkpoint = place.folder / way / "checkpoints" / "checkpoint-12"
    if way == "shards":
        assert (checkpoint / "pytorch_model_fsdp.bin").is_file()
    weights, others = (load_file(place.folder / name / "model" / "model.safetensors") for name in (way, "one"))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=2e-3, rtol=0, msg=name)
    texts = [row["text"] for row in rows(20, seed=7)]
    with load(place.folder / way / "model") as guard, load(place.folder / "one" / "model") as other_guard:
        assert guard.taxonomy.digest == TAXONOMY.digest
        assert guard.backend.name == summary["name"]
        scores = [decision.score for decision in guard.check_many(texts)]
        assert scores == pytest.approx([decision.score for decision in other_guard.check_many(texts)], abs=0.02)


def test_a_run_in_shards_resumes(place: Place) -> None:
    out = place.folder / "shards"
    whole = load_file(out / "model" / "model.safetensors")
    expected = place.metrics("shards")
    for after in ("checkpoint-12", None):
        # Killed after the first evaluation; then after the last one, before the model was written.
        if after is not None:
            shutil.rmtree(out / "checkpoints" / after)
        for part in ("model", "report"):
            shutil.rmtree(out / part)
        place.run("shards", "--resume")
        assert place.metrics("shards") == expected
        weights = load_file(out / "model" / "model.safetensors")
        assert all(torch.equal(value, whole[name]) for name, value in weights.items())


def test_adapters_in_shards_come_to_the_same_as_one_process_makes(place: Place) -> None:
    data = {
        name: yaml.safe_load((place.folder / f"{name}.yaml").read_text(encoding="utf-8")) for name in ("one", "two")
    }
    for name, each in data.items():
        each["train"] |= {"method": "lora", "weights": "float32", "lora": {"rank": 4, "dropout": 0.0}}
        each["train"] |= {"steps": 8, "evaluate_every": 4, "learning_rate": 1e-2}
        (place.folder / f"lora-{name}.yaml").write_text(dump(each), encoding="utf-8")
    (place.folder / "lora").mkdir()
    lora = Place(place.folder / "lora", place.folder / "lora-one.yaml", place.folder / "lora-two.yaml")
    for way in ("one", "shards"):
        lora.run(way)
    for entry, other in zip(lora.metrics("shards"), lora.metrics("one"), strict=True):
        assert entry == pytest.approx(other, rel=1e-3)
    base = load_file(place.folder / "base" / "model.safetensors")
    weights, others = (load_file(lora.folder / way / "model" / "model.safetensors") for way in ("shards", "one"))
    changed = [name for name, value in others.items() if name in base and not torch.equal(value, base[name])]
    assert changed
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=2e-3, rtol=0, msg=name)
    out, expected = lora.folder / "shards", lora.metrics("shards")
    assert (out / "checkpoints" / "checkpoint-4" / "pytorch_model_fsdp.bin").is_file()
    for part in ("checkpoints/checkpoint-8", "checkpoints/adapter", "model", "report"):
        shutil.rmtree(out / part)
    lora.run("shards", "--resume")
    assert lora.metrics("shards") == expected
    resumed = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in resumed.items())
