"""An adapter and its base become one checkpoint that opens by itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from guardrail.backends.llama_folder import Facts, write_facts
from guardrail.errors import ModelError, UsageError
from guardrail.loading import load
from guardrail.prompting import Template
from guardrail.training.llama_hyper import LlamaHyper, LoraHyper
from guardrail.training.llama_model import prepared
from guardrail.training.merge import export_checkpoint
from guardrail.training.model_folder import write_folder
from guardrail.training.quiet import quiet
from tests.tiny_guard import TAXONOMY, tiny_checkpoint

TEMPLATE = Template.load("llama-guard-3")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole guard."""
    folder = tmp_path_factory.mktemp("base") / "base"
    write_folder(*tiny_checkpoint(TEMPLATE), Facts("base", TEMPLATE, TAXONOMY), folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of that base, with numbers that change what it says; it knows nothing of guards."""
    from guardrail.backends.llama_loading import load_checkpoint

    folder = tmp_path_factory.mktemp("adapter") / "mine"
    hyper = LlamaHyper(method="lora", lora=LoraHyper(rank=2, alpha=8.0))
    with quiet():
        checkpoint = load_checkpoint(str(base), device="cpu", dtype="bfloat16")
        model, _ = prepared(checkpoint.model, checkpoint.tokenizer, hyper)
        torch.manual_seed(1)
        for name, value in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.3)
        model.save_pretrained(folder)
    return folder


def bare(adapter: Path, target: Path, base: Path) -> Path:
    """The adapter, and a base that is a plain checkpoint."""
    shutil.copytree(base, target / "plain", ignore=shutil.ignore_patterns("guardrail.json", "taxonomy.yaml", "*.jinja"))
    return target / "plain"


def scores(model: Path, **options: Any) -> list[float]:
    with load(model, dtype="bfloat16", **options) as guard:
        return [decision.score or 0.0 for decision in guard.check_many(["a bomb", "a cake", "how do i get money"])]


def test_the_merged_weights_say_what_base_and_adapter_say(adapter: Path, base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with quiet():
        export_checkpoint(adapter, tmp_path / "whole")
        two = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype="float32"), str(adapter)
        ).eval()
        one = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="float32").eval()
    ids = torch.arange(60).view(2, 30) + 20
    with torch.no_grad():
        together, apart, before = one(ids).logits, two(ids).logits, two.disable_adapter()
        with before:
            without = two(ids).logits
    assert (together - apart).abs().max() < 0.05 * (apart - without).abs().max()


def test_the_result_opens_with_what_the_base_was_trained_with(adapter: Path, base: Path, tmp_path: Path) -> None:
    with quiet():
        name = export_checkpoint(adapter, tmp_path / "whole")
    assert name.startswith("mine@")
    with load(tmp_path / "whole") as guard:
        assert guard.backend.name == name
        assert guard.taxonomy == TAXONOMY
        assert guard.template.ref == TEMPLATE.ref
    assert scores(tmp_path / "whole") != scores(base)
    assert (tmp_path / "whole" / "adapter" / "adapter_config.json").is_file()


def test_the_calibration_comes_along_when_the_weights_are_the_same(adapter: Path, tmp_path: Path) -> None:
    with quiet():
        name = export_checkpoint(adapter, tmp_path / "one", id="run")
    home = tmp_path / "run" / "adapter"
    shutil.copytree(adapter, home)
    write_facts(Facts("run", TEMPLATE, TAXONOMY), home)
    calibration = home.parent / "calibration.json"
    for model, expected in ((name, True), ("run@000000000000", False)):
        calibration.write_text(f'{{"format": 2, "model": "{model}"}}', encoding="utf-8")
        with quiet():
            assert export_checkpoint(home, tmp_path / model) == name
        assert (tmp_path / model / "calibration.json").is_file() == expected


def test_a_plain_base_needs_template_and_taxonomy(adapter: Path, base: Path, tmp_path: Path) -> None:
    plain = bare(adapter, tmp_path, base)
    with pytest.raises(UsageError, match="nothing says with which template") as caught:
        export_checkpoint(adapter, tmp_path / "whole", base=str(plain))
    assert caught.value.hint == "give --template and --taxonomy"
    with quiet():
        export_checkpoint(
            adapter, tmp_path / "whole", base=str(plain), template="llama-guard-3", taxonomy="hate-speech", id="other"
        )
    with load(tmp_path / "whole") as guard:
        assert guard.taxonomy.id == "hate-speech"
        assert guard.backend.name.startswith("other@")


def test_a_whole_checkpoint_becomes_a_guard_with_its_own_weights(adapter: Path, base: Path, tmp_path: Path) -> None:
    plain = bare(adapter, tmp_path, base)
    with quiet():
        export_checkpoint(plain, tmp_path / "guard", template="llama-guard-3", taxonomy="default")
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, tmp_path / "guard"))
    assert {name: value.dtype for name, value in one.items()} == {name: value.dtype for name, value in other.items()}
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    with load(tmp_path / "guard") as guard:
        assert guard.taxonomy.id == "default"


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    from tests.checkpoints import random_model

    _, tokenizer = tiny_checkpoint(TEMPLATE)
    write_folder(random_model(tokenizer), tokenizer, Facts("other", TEMPLATE, TAXONOMY), tmp_path / "other")
    with quiet(), pytest.raises(ModelError, match="does not fit its base"):
        export_checkpoint(adapter, tmp_path / "whole", base=str(tmp_path / "other"))
    assert not (tmp_path / "whole").exists()


def test_a_base_for_no_adapter_and_an_adapter_without_a_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no adapter"):
        export_checkpoint(base, tmp_path / "whole", base="x")
    homeless = tmp_path / "homeless"
    homeless.mkdir()
    (homeless / "adapter_config.json").write_text('{"base_model_name_or_path": null}', encoding="utf-8")
    with pytest.raises(UsageError, match="names no base"):
        export_checkpoint(homeless, tmp_path / "whole")
