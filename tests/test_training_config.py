"""The configuration of a training run: what it holds, and that a mistake is named with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guardrail import taxonomy_yaml
from guardrail.errors import InputError
from guardrail.evaluation.calibration_fit import Target
from guardrail.taxonomy import Taxonomy
from guardrail.training.amounts import Amount
from guardrail.training.config import TrainingConfig, parse_config, read_config
from guardrail.training.encoder_hyper import Hyper
from guardrail.training.llama_hyper import LlamaHyper, LoraHyper
from guardrail.training.policies import PolicyChanges
from guardrail.training.scratch_spec import ScratchSpec

FULL = """\
format: 1
id: my-guard
kind: llama
base: models/guard
taxonomy: canonical
template: llama-guard-3
data:
  train: [rows.jsonl, more.jsonl]
  validation: [held-out.jsonl]
  keep_out: [eval, set.csv]
  sources: {web: {rows: 3600, weight: 2}, chats: {rows: 10, repeat: 3}}
  related: configs/hazards.yaml
policies: {own: 0.7, made_up: 0.2, default: 0.1}
augment: {drop_unviolated: 0.4, drop_violated: 0.1, shuffle: 0.5, rephrase: 0.2, examples: 0.1, noise: 0.25}
answer: {explanation: after}
train: {method: lora, learning_rate: 2e-4, steps: 10, lora: {rank: 8, targets: [q_proj]}}
calibration: {method: isotonic, target: fpr<=0.01, prior: 0.2, at_least: 5}
"""
MINIMAL = "format: 1\nid: a\nkind: llama\nbase: b\ntaxonomy: default\ndata:\n  train: [rows.jsonl]\n"


def parsed(text: str, data: tuple[Path, ...] = ()) -> TrainingConfig:
    return parse_config(taxonomy_yaml.parse(text, "run.yaml").root, data)


def test_everything_is_read(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(FULL, encoding="utf-8")
    config = read_config(file)
    assert (config.id, config.kind, config.base, config.template) == (
        "my-guard",
        "llama",
        "models/guard",
        "llama-guard-3",
    )
    assert config.taxonomy == Taxonomy.load("canonical")
    assert config.data.train == (Path("rows.jsonl"), Path("more.jsonl"))
    assert config.data.validation == (Path("held-out.jsonl"),)
    assert config.data.keep_out == (Path("eval"), Path("set.csv"))
    assert config.data.sources == {"web": Amount(3600, 1, 2.0), "chats": Amount(10, 3)}
    assert config.data.related == Path("configs/hazards.yaml")
    assert config.policies == {"own": 0.7, "made_up": 0.2, "default": 0.1}
    assert config.changes == PolicyChanges(0.4, 0.1, 0.5, 0.2, 0.1)
    assert (config.noise, config.explanation) == (0.25, "after")
    assert config.train == LlamaHyper(
        method="lora", learning_rate=2e-4, steps=10, lora=LoraHyper(rank=8, targets=("q_proj",))
    )
    assert config.calibration.target == Target("fpr", 0.01)
    assert (config.calibration.method, config.calibration.prior, config.calibration.at_least) == ("isotonic", 0.2, 5)
    assert config.raw["id"] == "my-guard"


def test_what_is_left_out_has_defaults() -> None:
    config = parsed(MINIMAL)
    assert config.policies == {"own": 1.0}
    assert config.changes == PolicyChanges()
    assert (config.noise, config.explanation, config.template, config.scratch) == (0.0, "none", None, None)
    assert config.train == LlamaHyper()
    assert config.data.sources is None
    assert 0 < config.data.validation_share < 0.5


def test_data_on_the_command_line_takes_the_place_of_the_files() -> None:
    assert parsed(MINIMAL, (Path("other.jsonl"),)).data.train == (Path("other.jsonl"),)
    bare = MINIMAL.replace("  train: [rows.jsonl]\n", "  validation_share: 0.2\n")
    assert parsed(bare, (Path("other.jsonl"),)).data.validation_share == 0.2
    with pytest.raises(InputError, match=r"run\.yaml:6: data: the key 'train' is missing"):
        parsed(bare)


def test_encoder_and_scratch() -> None:
    encoder = parsed(MINIMAL.replace("llama", "encoder").replace("base: b", "base: embedded") + "train: {passes: 3}\n")
    assert encoder.train == Hyper(passes=3)
    assert encoder.base == "embedded"
    scratch = parsed(MINIMAL.replace("base: b", "scratch: {hidden: 64, heads: 4, language_rate: 5e-4}"))
    assert scratch.scratch == ScratchSpec(hidden=64, heads=4, language_rate=5e-4)
    assert scratch.base is None


def test_a_taxonomy_file_with_its_own_mistake_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("format: 1\nid: own\nname: Own\ncategories:\n  - code: S1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.yaml:5: categories\[0\]: the key 'name' is missing"):
        parsed(MINIMAL.replace("taxonomy: default", f"taxonomy: {file}"))


def change(old: str, new: str, text: str = FULL) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (change("format: 1", "format: 2"), "1: format: the format is 2"),
        (change("kind: llama", "kind: bert"), "3: kind: cannot be 'bert'"),
        (change("id: my-guard\n", ""), "1: the key 'id' is missing"),
        (change("policies:", "policy:"), "13: policy: unknown key"),
        (change("base: models/guard\n", ""), "1: base: there is no base"),
        (change("base: models/guard", "base: x\nscratch: {}"), "4: base: base and scratch are both given"),
        (change("taxonomy: canonical", "taxonomy: canonicle"), "5: taxonomy: there is no 'canonicle'"),
        (change("template: llama-guard-3", "template: llama-guard-9"), "6: template: there is no 'llama-guard-9'"),
        (change("[rows.jsonl, more.jsonl]", "[]"), r"8: data\.train: names no file"),
        (change("[rows.jsonl, more.jsonl]", "rows.jsonl"), r"8: data\.train: expected a list"),
        (change("  validation:", "  validation_share: 0.1\n  validation:"), "9: data.validation_share: validation is"),
        (change("  validation: [held-out.jsonl]", "  validation_share: 1"), "9: data.validation_share: cannot be 1"),
        (change("  validation:", "  validation_rows: 0\n  validation:"), "9: data.validation_rows: cannot be 0"),
        (change("rows: 3600", "rows: 0"), r"11: data\.sources\.web\.rows: rows 0"),
        (change("rows: 3600", "rows: 1.5"), r"11: data\.sources\.web\.rows: expected a whole number, got 1\.5"),
        (change("rows: 3600", "row: 3600"), r"11: data\.sources\.web\.row: unknown key"),
        (change("own: 0.7", "own: -1"), r"13: policies\.own: cannot be -1"),
        (change("own: 0.7", "own: true"), r"13: policies\.own: expected a number, got True"),
        (change("own: 0.7", "own: .nan"), r"13: policies\.own: expected a number, got nan"),
        (change("default: 0.1", "defualt: 0.1"), r"13: policies\.defualt: there is no 'defualt'"),
        (change("own: 0.7, made_up: 0.2, default: 0.1", "own: 0"), "13: policies: no policy has a weight above 0"),
        (change("taxonomy: canonical", "taxonomy: default"), "13: policies.default: labels of 'default' cannot"),
        (change("shuffle: 0.5", "shuffle: 5"), r"14: augment\.shuffle: cannot be 5"),
        (change("shuffle: 0.5", "shufle: 5"), r"14: augment\.shufle: unknown key"),
        (change("explanation: after", "explanation: later"), r"15: answer\.explanation: cannot be 'later'"),
        (change("method: lora", "method: dora"), r"16: train\.method: cannot be 'dora'"),
        (change("rank: 8", "rank: 0"), r"16: train\.lora\.rank: is 0"),
        (change("steps: 10", "steps: 0"), r"16: train\.steps: is 0"),
        (change("[q_proj]", "[1]"), r"16: train\.lora\.targets\[0\]: expected text"),
        (change("fpr<=0.01", "fpr<=2"), r"17: calibration\.target: --target: 2 is out of range"),
        (change("isotonic", "spline"), r"17: calibration\.method: cannot be 'spline'"),
        (change("prior: 0.2", "prior: 2"), "17: calibration"),
        (change("kind: llama", "kind: encoder"), "6: template: is for the kind llama"),
        (MINIMAL.replace("llama", "encoder") + "augment: {shuffle: 1}\n", r"8: augment\.shuffle: unknown key"),
        (MINIMAL.replace("base: b", "scratch: {heads: 7}"), r"4: scratch\.heads: is 7, which does not"),
        (MINIMAL.replace("base: b", "scratch: {vector_steps: 7}"), r"4: scratch\.vector_steps: is 7, scr"),
        (MINIMAL + "train: {teacher_share: 2}\n", r"8: train\.teacher_share: is 2"),
        (MINIMAL + "train: {keep: last, patience: 2}\n", r"8: train\.patience: is 2, which needs keep: best"),
        (MINIMAL + "train: {keep: worst}\n", r"8: train\.keep: cannot be 'worst'"),
        (change("method: lora", "method: full"), r"16: train\.lora: is given, but with the method full"),
        (change("method: lora, ", ""), r"16: train\.lora: is given, but with the method full"),
        (MINIMAL + "train:\n  steps: 5\n  lora: {}\n", r"10: train\.lora: is given, but with the method full"),
        (MINIMAL + "train: {vector_weight: 2}\n", r"8: train\.vector_weight: is 2, but there is no scr"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^run\.yaml:{message}"):
        parsed(text)


@pytest.mark.parametrize("value", ["1e-3", "1.0e-3", "0.001", "1E-3"])
def test_numbers_in_every_spelling(value: str) -> None:
    config: Any = parsed(MINIMAL + f"train: {{learning_rate: {value}}}\n").train
    assert config.learning_rate == 0.001


def test_given_rows_are_kept_with_the_rest() -> None:
    given = parsed(MINIMAL, (Path("mine.jsonl"),))
    assert given.raw["data"] == {"train": ["mine.jsonl"]}
    assert parsed(taxonomy_yaml.dump(dict(given.raw))).data.train == (Path("mine.jsonl"),)
    assert parsed(MINIMAL).raw["data"] == {"train": ["rows.jsonl"]}
