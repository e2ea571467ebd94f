"""Fine-tuning: it learns, stops, resumes after a kill, and reads back as a guard."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from guardrail.backends.llama_loading import load_checkpoint
from guardrail.errors import ModelError, UsageError
from guardrail.prompting import PromptBuilder
from guardrail.scoring import margins
from guardrail.training.llama_average import Average
from guardrail.training.llama_hyper import LlamaHyper, LoraHyper
from guardrail.training.llama_model import base_model, merged, prepared
from guardrail.training.llama_trainer import Result, fine_tune, last_checkpoint
from tests.training_material import (
    TAXONOMY,
    TEMPLATE,
    own_policy,
    rows,
    sampler,
    text_tokenizer,
    tiny_model,
    transformers_tokenizer,
)

HYPER = LlamaHyper(learning_rate=1e-2, steps=40, pack_tokens=300, dtype="float32", evaluate_every=20)


def train(model: Any, folder: Path, hyper: LlamaHyper = HYPER, **options: Any) -> Result:
    return fine_tune(
        model,
        text_tokenizer(),
        TEMPLATE,
        lambda number: rows(60, number),
        options.pop("validation", rows(30, 99)),
        sampler(),
        own_policy(),
        hyper,
        folder,
        **options,
    )


def losses(result: Result) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Result, Path]:
    folder = tmp_path_factory.mktemp("trained")
    model = tiny_model()
    return model, train(model, folder / "run", replace(HYPER, steps=80, packs_per_device=2, average=0.9)), folder


def test_it_learns_and_the_result_reads_back_as_a_guard(trained: tuple[Any, Result, Path]) -> None:
    from guardrail.backends.llama import LlamaBackend

    model, result, folder = trained
    assert losses(result)[-1] < 0.3 * losses(result)[0]
    assert result.metrics["eval_auprc"] > 0.99
    assert result.counts["shown"] > 200
    model.save_pretrained(folder / "model")
    transformers_tokenizer().save_pretrained(folder / "model")
    backend = LlamaBackend.load(str(folder / "model"), device="cpu", template="llama-guard-3")
    builder = PromptBuilder(TEMPLATE, TAXONOMY)
    some = rows(30, 7)
    for row, answer in zip(some, backend.logits([builder.build(row.conversation) for row in some]), strict=True):
        assert not isinstance(answer, Exception)
        found = margins(answer)
        assert (found.unsafe > 0) == (row.unsafe == 1)
        if row.violated:
            best = max(range(3), key=found.categories.__getitem__)
            assert TAXONOMY.codes[best] in row.violated


def test_evaluation_agrees_with_inference(trained: tuple[Any, Result, Path]) -> None:
    from sklearn.metrics import average_precision_score, log_loss

    from guardrail.backends.llama import LlamaBackend

    model, result, folder = trained
    model.save_pretrained(folder / "again")
    transformers_tokenizer().save_pretrained(folder / "again")
    backend = LlamaBackend.load(str(folder / "again"), device="cpu", template="llama-guard-3")
    builder = PromptBuilder(TEMPLATE, TAXONOMY)
    some = rows(30, 99)
    answers = backend.logits([builder.build(row.conversation) for row in some], categories=False)
    scores = [
        1 / (1 + math.exp(answer.safe - answer.unsafe)) for answer in answers if not isinstance(answer, Exception)
    ]
    truth = [row.unsafe for row in some]
    assert result.metrics["eval_auprc"] == pytest.approx(average_precision_score(truth, scores), abs=1e-6)
    assert result.metrics["eval_log_loss"] == pytest.approx(log_loss(truth, scores), rel=1e-3)


def test_the_loss_is_the_weighted_mean_over_all_packs_of_a_step(tmp_path: Path) -> None:
    found = {}
    for packs, accumulation in ((4, 1), (2, 2), (1, 4)):
        hyper = replace(HYPER, steps=3, evaluate_every=1, packs_per_device=packs, accumulation=accumulation)
        result = train(tiny_model(), tmp_path / f"{packs}", hyper, validation=())
        found[packs] = losses(result)
        assert result.metrics == {}
        assert result.step == result.steps == 3
    assert found[4] == pytest.approx(found[2], rel=1e-4)
    assert found[4] == pytest.approx(found[1], rel=1e-4)


def test_epochs_are_counted_in_packs_of_the_first_pass(tmp_path: Path) -> None:
    one = train(tiny_model(), tmp_path / "1", replace(HYPER, steps=None, epochs=1.0))
    two = train(tiny_model(), tmp_path / "2", replace(HYPER, steps=None, epochs=2.0, accumulation=2))
    assert abs(one.steps - two.steps) <= 1
    assert one.counts["shown"] >= 60


def test_it_stops_early_and_keeps_the_best(tmp_path: Path) -> None:
    hyper = replace(HYPER, steps=200, evaluate_every=5, patience=2, learning_rate=3e-3)
    model = tiny_model()
    result = train(model, tmp_path, hyper)
    assert result.steps < 200
    assert result.step == result.steps - 10
    best = load_file(tmp_path / f"checkpoint-{result.step}" / "model.safetensors")
    for name, value in model.state_dict().items():
        if name in best:
            torch.testing.assert_close(value, best[name])
    again = tiny_model(seed=5)
    resumed = train(again, tmp_path, hyper, resume=True)
    assert (resumed.step, resumed.steps, resumed.metrics) == (result.step, result.steps, result.metrics)
    torch.testing.assert_close(again.state_dict(), model.state_dict())


def test_bfloat16_learns_as_well_and_activations_are_computed_again(tmp_path: Path) -> None:
    def products(checkpointing: bool) -> tuple[list[torch.dtype], dict[str, torch.Tensor]]:
        """The number formats of a layer's products in training, and the trained weights."""
        hyper, seen = replace(HYPER, dtype="bfloat16", gradient_checkpointing=checkpointing), []
        model, _ = prepared(tiny_model(), transformers_tokenizer(), hyper)
        model.model.layers[0].self_attn.q_proj.register_forward_hook(
            lambda layer, _, product: seen.append(product.dtype) if layer.training else None
        )
        result = train(model, tmp_path / str(checkpointing), hyper)
        assert losses(result)[-1] < losses(result)[0] / 2
        return seen, model.state_dict()

    (once, kept), (twice, computed) = products(False), products(True)
    assert set(once) == set(twice) == {torch.bfloat16}
    assert len(twice) == 2 * len(once)
    torch.testing.assert_close(computed, kept)


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    def run(folder: Path, kill: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.train_killed", str(folder), str(kill)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)

    whole = run(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    for kill, after in ((5, 3), (11, 9)):
        assert run(folder, kill).returncode == -9
        checkpoint = last_checkpoint(folder)
        assert checkpoint is not None
        assert checkpoint.name == f"checkpoint-{after}"
    # Killed while it wrote: everything but the state is there.
    half = folder / "checkpoint-10"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    resumed = run(folder, 0)
    assert resumed.returncode == 0, resumed.stderr
    assert not half.exists()
    # The rows shown are counted by each process for itself.
    found = [json.loads((path / "result" / "result.json").read_text()) for path in (folder, tmp_path / "whole")]
    for name in ("step", "steps", "metrics", "history"):
        assert found[0][name] == found[1][name], name
    one, other = (load_file(path / "result" / "model.safetensors") for path in (folder, tmp_path / "whole"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_new_run_deletes_the_checkpoints_of_an_earlier_one(tmp_path: Path) -> None:
    hyper = replace(HYPER, steps=4, evaluate_every=2)
    first = train(tiny_model(), tmp_path, hyper)
    stamp = (tmp_path / "checkpoint-4" / "trainer_state.json").stat().st_mtime_ns
    second = train(tiny_model(), tmp_path, hyper)
    assert (tmp_path / "checkpoint-4" / "trainer_state.json").stat().st_mtime_ns > stamp
    assert first.history == second.history


def test_checkpoints_between_evaluations(tmp_path: Path) -> None:
    train(tiny_model(), tmp_path, replace(HYPER, steps=7, evaluate_every=4, save_every=3))
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert json.loads((found / "trainer_state.json").read_text())["global_step"] == 7
    assert {path.name for path in tmp_path.glob("checkpoint-*")} <= {"checkpoint-4", "checkpoint-6", "checkpoint-7"}


# adapters


# peft asks transformers by a name that goes out of use.
adapters = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@adapters
def test_adapters_are_trained_alone_and_merge_into_the_weights(tmp_path: Path) -> None:
    base = tiny_model()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    hyper = replace(
        HYPER,
        method="lora",
        learning_rate=2e-2,
        gradient_checkpointing=True,
        lora=LoraHyper(rank=8, alpha=16.0, dropout=0.1),
    )
    model, _ = prepared(base, transformers_tokenizer(), hyper)
    result = train(model, tmp_path / "run", hyper)
    assert losses(result)[-1] < losses(result)[0]
    assert (tmp_path / "run" / f"checkpoint-{result.step}" / "adapter_model.safetensors").is_file()
    ids = torch.tensor([[5, 6, 7]])
    model.eval()
    with torch.no_grad():
        expected = model(ids).logits
        whole = merged(model).eval()
        torch.testing.assert_close(whole(ids).logits, expected, atol=1e-4, rtol=0)
    whole.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    changed = {name for name, value in loaded.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.split(".")[-2] in hyper.lora.targets for name in changed)


@adapters
def test_adapters_with_an_average_resume(tmp_path: Path) -> None:
    hyper = replace(HYPER, method="lora", learning_rate=1e-2, steps=8, evaluate_every=4, average=0.5)

    def run(resume: bool) -> dict[str, torch.Tensor]:
        model, _ = prepared(tiny_model(), transformers_tokenizer(), hyper)
        train(model, tmp_path, hyper, resume=resume)
        return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}

    whole = run(resume=False)
    # As if it had been killed after its first evaluation.
    shutil.rmtree(tmp_path / "checkpoint-8")
    resumed = run(resume=True)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@adapters
def test_a_checkpoint_is_loaded_for_each_method(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    transformers_tokenizer().save_pretrained(tmp_path)
    full, tokenizer = base_model(str(tmp_path), HYPER)
    assert full.dtype == torch.float32
    assert full.training
    assert len(tokenizer) == len(transformers_tokenizer())
    lora, _ = base_model(str(tmp_path), replace(HYPER, method="lora"))
    trained = {name: value for name, value in lora.named_parameters() if value.requires_grad}
    assert all("lora_" in name and value.dtype == torch.float32 for name, value in trained.items())
    assert lora.base_model.model.dtype == torch.bfloat16
    with pytest.raises(UsageError, match=r"lora\.targets"):
        base_model(str(tmp_path), replace(HYPER, method="lora", lora=LoraHyper(targets=("nothing",))))
    with pytest.raises(ModelError, match="no folder"):
        base_model(str(tmp_path / "absent"), HYPER)
    assert load_checkpoint(str(tmp_path), device="cpu").model.dtype == torch.float32


@adapters
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: the model would be on it")
def test_adapters_learn_beside_a_base_in_four_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    transformers_tokenizer().save_pretrained(base)
    hyper = replace(
        HYPER,
        method="qlora",
        learning_rate=2e-2,
        steps=12,
        evaluate_every=6,
        gradient_checkpointing=True,
        lora=LoraHyper(rank=8, alpha=16.0, dropout=0.1),
    )
    model, _ = base_model(str(base), hyper)
    small = {name: value.clone() for name, value in model.named_parameters() if value.dtype == torch.uint8}
    assert len(small) == 7 * model.config.num_hidden_layers
    assert all(value.requires_grad == ("lora_" in name) for name, value in model.named_parameters())
    result = train(model, tmp_path / "run", hyper)
    assert losses(result)[-1] < losses(result)[0]
    for name, value in small.items():
        assert torch.equal(value, model.get_parameter(name)), name
    whole = merged(model, str(base)).eval()
    assert {value.dtype for value in whole.parameters()} == {torch.bfloat16}
    plain = load_checkpoint(str(base), device="cpu", dtype="bfloat16").model.state_dict()
    added = dict(model.named_parameters())
    for name, value in whole.state_dict().items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        expected = plain[name].float()
        if name.split(".")[-2] in hyper.lora.targets:
            parts = (added[f"{place}.lora_{side}.default.weight"] for side in "BA")
            expected = expected + hyper.lora.alpha / hyper.lora.rank * torch.linalg.multi_dot(list(parts))
            assert not torch.equal(value, plain[name]), name
        torch.testing.assert_close(value.float(), expected, atol=2e-2, rtol=1e-2)


# the average and the options


def test_the_average_is_that_of_the_weights_and_is_taken_back() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = Average(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for step in range(1, 9):
        average.update(step)
    # Steps 4 and 8 count, each for four.
    expected = 1 - (5 / 14) ** 4 * 0.5**4
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 1.0
    average.apply()
    assert model.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5, "epochs": 1.0}, "steps and train.epochs"),
        ({"steps": 0}, "train.steps is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"warmup": 1.0}, "warmup is 1"),
        ({"average": 1.0}, "average is 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"pack_tokens": 0}, "pack_tokens is 0"),
        ({"patience": 0}, "patience is 0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LlamaHyper(**options)


def test_adapter_options_out_of_range_are_named() -> None:
    for options, message in (({"rank": 0}, "rank"), ({"dropout": 1.0}, "dropout"), ({"targets": ()}, "targets")):
        with pytest.raises(UsageError, match=f"lora.{message}"):
            LoraHyper(**options)
