"""The training configurations that ship are read, and say what they are said to say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from guardrail.taxonomy import Taxonomy
from guardrail.training.config import TrainingConfig, read_config
from guardrail.training.encoder_hyper import Hyper
from guardrail.training.llama_hyper import LlamaHyper

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    file for file in (ROOT / "configs").glob("*.yaml") if "kind" in yaml.safe_load(file.read_text(encoding="utf-8"))
)


@pytest.fixture(autouse=True)
def _from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in a configuration start from the current folder."""
    monkeypatch.chdir(ROOT)


def recipe(name: str) -> TrainingConfig:
    return read_config(ROOT / "configs" / f"{name}.yaml", [Path("rows.jsonl")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_is_read_and_says_how_it_is_run(file: Path) -> None:
    config = recipe(file.stem)
    assert config.id
    assert config.data.train == (Path("rows.jsonl"),)
    assert isinstance(config.train, LlamaHyper if config.kind == "llama" else Hyper)
    comment = file.read_text(encoding="utf-8").split("format: 1")[0]
    assert f"guardrail train configs/{file.name}" in comment
    for word in comment.split():
        if word.startswith(("configs/", "examples/")):
            assert (ROOT / word).is_file(), word


def test_there_are_four() -> None:
    assert {file.stem for file in FILES} >= {
        "encoder-own-policy",
        "llama-guard-7b",
        "llama-guard-qlora-24gb",
        "llama-scratch",
    }


def test_the_paper_s_numbers() -> None:
    config = recipe("llama-guard-7b")
    hyper = config.train
    assert isinstance(hyper, LlamaHyper)
    assert (config.base, config.template) == ("meta-llama/Llama-2-7b-hf", "llama-guard-1")
    assert config.taxonomy == Taxonomy.load("llama-guard-1")
    assert (hyper.method, hyper.learning_rate, hyper.steps, hyper.epochs) == ("full", 2e-6, 500, None)
    # A batch of 2 on each of 8 GPUs.
    assert (hyper.pack_tokens, hyper.packs_per_device, hyper.accumulation) == (4096, 2, 1)
    assert config.changes.drop_unviolated > 0
    assert config.changes.drop_violated > 0
    assert config.explanation == "none"
    # Averaged weights do not go with weights in shards.
    assert hyper.average is None


def test_qlora_with_one_gpu() -> None:
    config = recipe("llama-guard-qlora-24gb")
    hyper = config.train
    assert isinstance(hyper, LlamaHyper)
    assert (config.base, hyper.method) == ("meta-llama/Llama-Guard-3-8B", "qlora")
    assert hyper.gradient_checkpointing
    assert hyper.packs_per_device * hyper.pack_tokens <= 4096
    assert hyper.accumulation > 1


def test_the_encoder_s_recipe_trains_on_its_own_policy() -> None:
    config = recipe("encoder-own-policy")
    assert config.taxonomy == Taxonomy.load(ROOT / "examples" / "pharmacy-policy.yaml")
    assert config.result.taxonomy == config.taxonomy
    assert isinstance(config.train, Hyper)
    assert config.train.rehearsal > 0
