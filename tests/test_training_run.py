"""`guardrail train` from a configuration to a guard that opens by itself, with a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from guardrail.errors import InputError, ModelError, ResumeError, UsageError
from guardrail.evaluation.metrics import auprc
from guardrail.loading import load
from guardrail.prompting import Template
from guardrail.taxonomy import Taxonomy
from guardrail.taxonomy_yaml import dump
from guardrail.training import run
from guardrail.training.config import TrainingConfig, read_config
from guardrail.training.merge import export_checkpoint
from guardrail.training.outcome import Outcome
from guardrail.training.quiet import quiet
from guardrail.training.run import train
from tests.evaluation_suite import write_suite
from tests.tiny_encoder import tiny_folder
from tests.tiny_guard import TAXONOMY, config_of, rows, settings, tiny_checkpoint, write_rows, write_taxonomy

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Made:
    """A run from nothing."""

    data: dict[str, Any]
    outcome: Outcome
    said: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("run")
    data, said = settings(folder), list[str]()
    outcome = train(config_of(data), folder / "out", say=said.append)
    assert outcome is not None
    return Made(data, outcome, said)


def test_a_run_from_nothing_learns_the_rows(made: Made) -> None:
    (entry,) = made.outcome.comparison
    assert entry["run"] == "validation-prompts"
    assert entry["metrics"]["auprc"]["after"] > 0.9
    assert entry["metrics"]["auprc"]["before"] is None
    assert made.outcome.before is None
    assert made.outcome.trained.metrics["auprc"] == pytest.approx(entry["metrics"]["auprc"]["after"], abs=0.01)


def test_the_folder_has_what_the_summary_says(made: Made) -> None:
    out = made.outcome.folder
    parts = {"MODEL_CARD.md", "checkpoints", "checks.json", "config.yaml", "metrics.jsonl", "model", "report"}
    assert {path.name for path in out.iterdir()} == parts
    summary = json.loads((out / "report" / "summary.json").read_text(encoding="utf-8"))
    assert Outcome.from_dict(summary) == made.outcome
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert made.outcome.trained.best_step in steps
    assert steps == sorted(steps)
    checks = json.loads((out / "checks.json").read_text(encoding="utf-8"))
    assert checks["training_rows"] + checks["validation_rows"] == checks["training"]["left"]
    assert f"{checks['training']['read']} rows read" in made.said[0]
    again = read_config(out / "config.yaml")
    assert again == config_of(made.data)


def test_the_guard_opens_with_its_policy_and_its_calibration(made: Made) -> None:
    with load(made.outcome.model) as guard:
        assert guard.backend.name == made.outcome.name
        assert guard.taxonomy.digest == TAXONOMY.digest
        (fitted,) = (line for line in made.outcome.calibration if line["fitted"])
        assert guard.policy.user.verdict == fitted["threshold"]
        assert guard.calibration.model == guard.backend.name
        items = rows(60, seed=7)
        decisions = list(guard.check_many([item["text"] for item in items]))
    unsafe = [item["label"] == "unsafe" for item in items]
    area = auprc(torch.tensor(unsafe).numpy(), torch.tensor([found.score or 0.0 for found in decisions]).numpy())
    assert area is not None
    assert area > 0.9
    # And the codes: the category of an unsafe text is mostly the one that its row names.
    named = [(item["categories"][0], max(found.categories, key=lambda category: category.score).code)
             for item, found in zip(items, decisions, strict=True) if "categories" in item]  # fmt: skip
    assert sum(code == found for code, found in named) > 0.8 * len(named)


def test_the_report_is_that_of_the_calibrated_model(made: Made) -> None:
    report = json.loads((made.outcome.folder / "report" / "after" / "report.json").read_text(encoding="utf-8"))
    (run,) = report["runs"]
    assert run["model"] == made.outcome.name
    assert run["threshold"] == made.outcome.calibration[0]["threshold"]
    assert "The calibration was fitted on texts of this set" in run["suite"]["caveat"]


def test_the_card_tells_the_numbers_and_quotes_no_row(made: Made) -> None:
    card = (made.outcome.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == (made.outcome.model / "MODEL_CARD.md").read_text(encoding="utf-8")
    after = made.outcome.comparison[0]["metrics"]["auprc"]["after"]
    assert f"| auprc | - | {after:.3f} |" in card
    assert f"`{made.outcome.name}`" in card
    assert "The best step was chosen and the calibration fitted\non them" in card
    assert "in town" not in card
    assert "bomb" not in card


def test_a_complete_run_is_only_read(made: Made) -> None:
    weights = made.outcome.model / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert train(config_of(made.data), made.outcome.folder, resume=True) == made.outcome
    assert weights.stat().st_mtime_ns == before


def test_a_folder_that_is_there_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is there already") as caught:
        train(config_of(made.data), made.outcome.folder)
    assert "--resume" in (caught.value.hint or "")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="is no training run"):
        train(config_of(made.data), tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="is not a folder"):
        train(config_of(made.data), tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").is_file()


def test_another_configuration_is_not_resumed(made: Made) -> None:
    other = {**made.data, "train": {**made.data["train"], "steps": 3}}
    with pytest.raises(ResumeError, match="was started with another train"):
        train(config_of(other), made.outcome.folder, resume=True)


def begun(data: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    """The configuration of a run that was cut off as it had begun to train."""
    config = config_of(data)
    cut_off(config, out, monkeypatch)
    return config


def cut_off(config: TrainingConfig, out: Path, monkeypatch: pytest.MonkeyPatch, *, resume: bool = False) -> None:
    """Begin a run, or go on with one, up to where it trains."""

    def stop(*_: Any) -> Any:
        raise _CutOffError

    with monkeypatch.context() as patched:
        patched.setattr(run, "_trained", stop)
        with pytest.raises(_CutOffError):
            train(config, out, resume=resume, say=lambda line: None)


class _CutOffError(Exception):
    pass


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_other_rows_are_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = begun(settings(tmp_path), tmp_path / "out", monkeypatch)
    changed(tmp_path / "rows.jsonl", "in town 7", "in town 7 and more")
    with pytest.raises(ResumeError, match="was started with other rows"):
        train(config, tmp_path / "out", resume=True, say=lambda line: None)


@pytest.mark.parametrize(
    ("key", "name", "old", "new"),
    [
        ("taxonomy", "shop.yaml", "Asks for money back.", "Asks for money."),
        ("result_taxonomy", "result.yaml", "Asks for money back.", "Asks for money."),
        ("policies.FOLDER/other.yaml", "other.yaml", "Asks for money back.", "Asks for money."),
        ("template", "mine.jinja", "Task: Check", "Please check"),
        ("data.related", "related.yaml", "wordings: []", "wordings: [Chargebacks]"),
    ],
)
def test_a_file_with_another_content_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str, old: str, new: str
) -> None:
    out = tmp_path / "out"
    # Labels are shown under other taxonomies where they are hazards.
    by_code = {"S1": "indiscriminate_weapons", "S2": "fraud"}
    whole = replace(TAXONOMY, categories=tuple(replace(each, hazards=(by_code[each.code],)) for each in TAXONOMY))
    data = settings(tmp_path, template=str(tmp_path / "mine.jinja"), result_taxonomy=str(tmp_path / "result.yaml"),
                    policies={"own": 1, str(tmp_path / "other.yaml"): 1})  # fmt: skip
    for each in ("shop", "result", "other"):
        write_taxonomy(tmp_path, replace(whole, id=each))
    (tmp_path / "mine.jinja").write_text(Template.load("llama-guard-3").source, encoding="utf-8")
    (tmp_path / "related.yaml").write_text("fraud: {wordings: []}\n", encoding="utf-8")
    data["data"]["related"] = str(tmp_path / "related.yaml")
    begun(data, out, monkeypatch)
    changed(tmp_path / name, old, new)
    with pytest.raises(ResumeError) as caught:
        train(config_of(data), out, resume=True, say=lambda line: None)
    field = key.replace("FOLDER", str(tmp_path))
    assert str(caught.value) == f"{tmp_path / name}: {field}: has changed since the run in {out} was started"
    assert caught.value.hint == f"undo the change, or start anew with --overwrite: guardrail train {out}/config.yaml"


def test_other_weights_to_start_from_are_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, words = tmp_path / "base", tmp_path / "words"
    model, tokenizer = tiny_checkpoint(Template.load("llama-guard-3"))
    for folder in (base, words):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    of_base = settings(tmp_path, base=str(base), scratch=None, template="llama-guard-3")
    of_words = settings(tmp_path)
    of_words["scratch"]["words_from"] = str(words)
    for key, data, folder in (("base", of_base, base), ("scratch.words_from", of_words, words)):
        out = tmp_path / f"out-{key}"
        config = begun(data, out, monkeypatch)
        (folder / "README.md").write_text("more about it", encoding="utf-8")
        cut_off(config, out, monkeypatch, resume=True)
        weights = bytearray((folder / "model.safetensors").read_bytes())
        weights[-100:] = bytes(100)
        (folder / "model.safetensors").write_bytes(weights)
        with pytest.raises(ResumeError) as caught:
            train(config, out, resume=True, say=lambda line: None)
        assert str(caught.value) == f"{folder}: {key}: has changed since the run in {out} was started"


def test_a_run_that_does_not_say_what_it_was_started_with_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    config = begun(settings(tmp_path), out, monkeypatch)
    checks = json.loads((out / "checks.json").read_text(encoding="utf-8"))
    del checks["inputs"]
    (out / "checks.json").write_text(json.dumps(checks), encoding="utf-8")
    with pytest.raises(ResumeError, match=r"checks\.json: does not say what taxonomy the run was started with"):
        train(config, out, resume=True)
    (out / "checks.json").write_text("{", encoding="utf-8")
    with pytest.raises(ResumeError, match=r"checks\.json: cannot be read"):
        train(config, out, resume=True)
    (out / "checks.json").unlink()
    (out / "checkpoints").mkdir()
    with pytest.raises(ResumeError, match=r"out: there is no checks\.json"):
        train(config, out, resume=True)


def test_a_run_goes_on_as_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    config = begun(settings(tmp_path), out, monkeypatch)
    with pytest.raises(ResumeError) as caught:
        train(config, out, resume=True, suites=[str(write_suite(tmp_path))], suite_data=tmp_path, say=lambda line: None)
    assert str(caught.value) == f"--suite: the run in {out} was started with other suites"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ResumeError) as caught:
        train(config, out, resume=True, say=lambda line: None)
    assert str(caught.value) == f"{out / 'checks.json'}: processes: the run was started with 1, not with 2"


def test_a_complete_run_is_not_read_for_other_inputs(made: Made) -> None:
    out, config = made.outcome.folder, config_of(made.data)
    with pytest.raises(UsageError, match="toxic-chat") as caught:
        train(config, out, resume=True, suites=["toxic-chat"])
    assert str(caught.value) == f"--suite: the run in {out} is complete, and was not compared on toxic-chat"
    assert caught.value.hint == f"guardrail eval toxic-chat --model {made.outcome.model} measures it"
    with pytest.raises(UsageError, match="there is no 'toxic-chatt' among the shipped evals/suites"):
        train(config, out, resume=True, suites=["toxic-chatt"])
    taxonomy, rows_file = Path(made.data["taxonomy"]), Path(made.data["data"]["train"][0])
    for file, old, message in (
        (taxonomy, "Asks for a weapon", r"shop\.yaml: taxonomy: has changed"),
        (rows_file, "in town 7", r"checks\.json: the run was started with other rows"),
    ):
        text = file.read_text(encoding="utf-8")
        changed(file, old, f"{old} and more")
        try:
            with pytest.raises(ResumeError, match=message):
                train(config_of(made.data), out, resume=True)
        finally:
            file.write_text(text, encoding="utf-8")
    assert train(config, out, resume=True) == made.outcome


def test_overwriting_begins_when_all_inputs_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = settings(tmp_path), tmp_path / "out"
    config = begun(data, out, monkeypatch)
    (out / "model").mkdir()
    (out / "model" / "weights").touch()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="there is no 'toxic-chatt'"):
        train(config, out, overwrite=True, suites=["toxic-chatt"])
    rows_file = tmp_path / "rows.jsonl"
    with rows_file.open("a", encoding="utf-8") as stream:
        stream.write('{"text": "a bomb", "label": "unsafe", "categories": ["S9"]}\n')
    with pytest.raises(InputError, match="has no category 'S9'"):
        train(config, out, overwrite=True)
    write_rows(rows_file, rows(200))
    misnamed = {**data, "base": str(tmp_path / "absent")}
    del misnamed["scratch"]
    for place, overwrite in ((out, True), (tmp_path / "new", False)):
        with pytest.raises(ModelError, match="there is no folder"):
            train(config_of(misnamed), place, overwrite=overwrite)
    assert not (tmp_path / "new").exists()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    data["train"] |= {"steps": 2, "evaluate_every": 2}
    outcome = train(config_of(data), out, overwrite=True, say=lambda line: None)
    assert outcome is not None
    assert not (out / "model" / "weights").exists()


def test_too_few_validation_rows_are_said(tmp_path: Path) -> None:
    data = settings(tmp_path, calibration={"at_least": 1000})
    data["train"] |= {"steps": 2, "evaluate_every": 2, "keep": "last"}
    outcome = train(config_of(data), tmp_path / "out", say=lambda line: None)
    assert outcome is not None
    (note,) = outcome.notes
    assert note.startswith("there is no calibration: too few labelled rows")
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "There is no calibration" in card
    assert "The best step was chosen" not in card
    assert not (outcome.model / "calibration.json").exists()


def test_adapters_are_kept_beside_the_merged_weights(made: Made, tmp_path: Path) -> None:
    hyper = {"method": "lora", "dtype": "float32", "weights": "float32", "steps": 4, "evaluate_every": 4,
             "pack_tokens": 512, "learning_rate": 1e-2, "lora": {"rank": 2}}  # fmt: skip
    data = settings(tmp_path, id="tuned", base=str(made.outcome.model), scratch=None, train=hyper)
    outcome = train(config_of(data), tmp_path / "out", say=lambda line: None)
    assert outcome is not None
    assert outcome.before == made.outcome.name
    found = outcome.comparison[0]["metrics"]["auprc"]
    assert found["before"] == pytest.approx(made.outcome.comparison[0]["metrics"]["auprc"]["after"])
    assert {"before", "after", "low", "high", "p"} <= found.keys()
    with quiet():
        name = export_checkpoint(outcome.model / "adapter", tmp_path / "whole")
    assert name == outcome.name
    assert (tmp_path / "whole" / "calibration.json").is_file()
    weights = load_file(outcome.model / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert json.loads((outcome.model / "config.json").read_text(encoding="utf-8"))["use_cache"]


def test_the_result_may_have_another_taxonomy_than_the_labels(tmp_path: Path) -> None:
    codes = {"S1": "indiscriminate_weapons", "S2": "fraud"}
    by_hazard = {category.hazards[0]: category.code for category in Taxonomy.load("canonical")}
    items = [{**row, "categories": [by_hazard[codes[code]] for code in row["categories"]]} if "categories" in row
             else row for row in rows(200)]  # fmt: skip
    data = settings(tmp_path, taxonomy="canonical", result_taxonomy="default", policies={"default": 1, "own": 0})
    data["data"]["train"] = [str(write_rows(tmp_path / "canonical.jsonl", items))]
    data["scratch"]["positions"] = 4096
    data["train"] |= {"steps": 2, "evaluate_every": 2, "pack_tokens": 4096}
    outcome = train(config_of(data), tmp_path / "out", say=lambda line: None)
    assert outcome is not None
    with load(outcome.model) as guard:
        assert guard.taxonomy.digest == Taxonomy.load("default").digest
    suite = json.loads((tmp_path / "out" / "report" / "after" / "report.json").read_text(encoding="utf-8"))["runs"][0]
    assert suite["taxonomy"] == Taxonomy.load("default").ref


def test_an_encoder_goes_the_same_way(tmp_path: Path) -> None:
    hyper = {"passes": 1, "tokens_per_batch": 512, "category_tokens": 24, "max_tokens": 32, "evaluate_every": 8,
             "rehearsal": 0}  # fmt: skip
    base = tiny_folder(tmp_path / "base")
    data = settings(tmp_path, kind="encoder", base=str(base), scratch=None, train=hyper)
    outcome = train(config_of(data), tmp_path / "out", say=lambda line: None)
    assert outcome is not None
    assert outcome.before is not None
    assert outcome.before.startswith("tiny@")
    with load(outcome.model) as guard:
        assert guard.taxonomy.digest == TAXONOMY.digest
        assert guard.backend.name == outcome.name
    assert (tmp_path / "out" / "MODEL_CARD.md").is_file()


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    data = settings(tmp_path)
    data["train"] |= {"steps": 40, "evaluate_every": 10, "average": 0.9}
    file = tmp_path / "config.yaml"
    file.write_text(dump(data), encoding="utf-8")
    command = [sys.executable, "-m", "guardrail", "train", str(file), "--json", "-o"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not (tmp_path / "killed/checkpoints/checkpoint-10/trainer_state.json").exists():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    told = [json.loads(line) for line in (tmp_path / "killed/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any(entry["step"] == 10 and "eval_auprc" in entry for entry in told)
    ends = []
    for name, options in (("killed", ["--resume"]), ("whole", [])):
        done = subprocess.run(
            [*command, str(tmp_path / name), *options], env=environment, check=True, capture_output=True, text=True
        )
        ends.append(json.loads(done.stdout))
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("killed", "whole")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    metrics = [(tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8") for name in ("killed", "whole")]
    assert metrics[0] == metrics[1]
    for key in ("name", "best_step", "metrics", "comparison", "calibration"):
        assert ends[0][key] == ends[1][key]
