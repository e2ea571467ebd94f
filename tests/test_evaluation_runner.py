"""Scoring a suite: every row kept, judged once, resumed after a kill, and decided anew without a classifier."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import guardrail
from guardrail.backends.encoder import EncoderBackend
from guardrail.backends.scripted import ScriptedBackend
from guardrail.calibration import Calibration, Side
from guardrail.errors import BackendError, InputError, ResumeError, UsageError
from guardrail.evaluation.cache import Cache, default_folder, key
from guardrail.evaluation.calibrate import Recipe, calibrate, check_purpose
from guardrail.evaluation.calibration_fit import Target
from guardrail.evaluation.evaluate import Plan, check_overlap, evaluate, foreign_runs, results_of
from guardrail.evaluation.overlap import digests_of, overlap
from guardrail.evaluation.report import write_report
from guardrail.evaluation.runner import Run, run_suite
from guardrail.evaluation.scored import read_scores, write_scores
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import Item, LoadedSuite, load_items
from guardrail.evaluation.summary import Resampling, summarise
from guardrail.guard import Guard
from guardrail.judgement import Judgement
from guardrail.policy import Thresholds
from guardrail.prompting import Prompt
from guardrail.scoring import Curve, Logits, Margins, sigmoid
from guardrail.types import Conversation, Role
from tests.evaluation_suite import ROWS, write_suite

FEW = Resampling(50, 0)
PLAN = Plan(resampling=FEW)


@pytest.fixture(scope="module")
def backend() -> EncoderBackend:
    return EncoderBackend.load()


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedSuite:
    return load_items(Suite.load(write_suite(tmp_path)), tmp_path)


def score(backend: EncoderBackend, loaded: LoadedSuite, folder: Path, plan: Plan = PLAN) -> list[dict[str, Any]]:
    with Cache(None) as cache:
        return evaluate(backend, [loaded], folder, plan, cache)


def report(backend: EncoderBackend, loaded: LoadedSuite, folder: Path, plan: Plan = PLAN) -> list[dict[str, Any]]:
    """Scores the suite and writes the report, which is what other commands read."""
    results = score(backend, loaded, folder, plan)
    write_report(results, folder)
    return results


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_row_is_kept_with_the_guards_own_decision(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    score(backend, loaded, tmp_path / "out")
    rows = rows_of(tmp_path / "out/runs/small/none")
    assert [row["id"] for row in rows] == [f"{number}-0" for number in range(len(ROWS))]
    guard = guardrail.load()
    for row, (text, label, _, topic) in zip(rows, ROWS, strict=True):
        decision = guard.check(text)
        assert row["score"] == pytest.approx(decision.score, abs=1e-9)
        assert (row["verdict"], row["flagged"]) == (decision.verdict.value, decision.flagged)
        assert row["scores"] == pytest.approx({c.code: c.score for c in decision.categories}, abs=1e-9)
        assert row["unsafe"] is label
        assert row["slices"]["topic"] == topic
        assert row["messages"] == [{"role": "user", "content": text}]


def test_the_result_is_computed_from_the_rows(backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path) -> None:
    (result,) = score(backend, loaded, tmp_path / "out")
    rows = [row for row in rows_of(tmp_path / "out/runs/small/none") if row["unsafe"] is not None]
    truth, scores = np.array([row["unsafe"] for row in rows]), np.array([row["score"] for row in rows])
    metrics: dict[str, dict[str, float]] = result["metrics"]
    assert metrics["auprc"]["value"] == pytest.approx(average_precision_score(truth, scores))
    assert metrics["auprc"]["low"] <= metrics["auprc"]["value"] <= metrics["auprc"]["high"]
    flagged = np.array([row["flagged"] for row in rows])
    assert metrics["recall"]["value"] == pytest.approx((flagged & truth).sum() / truth.sum())
    assert result["counts"] == {"items": 13, "unsafe": 6, "safe": 6, "unknown": 1, "errors": 0, "truncated": 0}
    assert result["published"] == []
    categories = {entry["code"]: entry for entry in result["categories"]}
    assert (categories["hate"]["unsafe"], categories["hate"]["known"]) == (2, 10)
    assert categories["violence"]["from"] == ["G1"]
    topics = {entry["value"]: entry for entry in result["slices"] if entry["slice"] == "topic"}
    assert topics["crime"]["items"] == 3
    assert sum(entry["items"] for entry in topics.values()) == 12


def test_adaptations_use_the_taxonomy_of_the_suite(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    results = score(backend, loaded, tmp_path / "out", Plan(("none", "zero-shot", "few-shot"), resampling=FEW))
    assert [result["adaptation"] for result in results] == ["none", "zero-shot", "few-shot"]
    taxonomies = [Run.read(tmp_path / "out/runs/small" / str(r["adaptation"])).taxonomy for r in results]
    assert [len(taxonomy) for taxonomy in taxonomies] == [14, 2, 2]
    assert [any(category.examples for category in taxonomy) for taxonomy in taxonomies] == [False, False, True]
    assert len({str(result["classifier"]) for result in results}) == 3
    zero_shot = {entry["code"]: entry["from"] for entry in results[1]["categories"]}
    assert zero_shot == {"hate": ["hate"], "violence": ["violence"]}


def test_a_suite_without_a_taxonomy_cannot_be_adapted_to(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    plain = replace(loaded, suite=replace(loaded.suite, taxonomy=None, examples={}, categories=None))
    with pytest.raises(UsageError, match="the suite small has no taxonomy of its own"):
        score(backend, plain, tmp_path / "out", Plan(("zero-shot",)))
    told: list[str] = []
    with Cache(None) as cache:
        plan = Plan(("none", "zero-shot", "few-shot"), resampling=FEW)
        results = evaluate(backend, [plain], tmp_path / "out", plan, cache, skipped=told.append)
    assert [result["adaptation"] for result in results] == ["none"]
    assert [line.split(":")[0] for line in told] == ["small, zero-shot", "small, few-shot"]


def test_judgements_are_made_once_and_kept_without_texts(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    guard = Guard(backend)
    with Cache(tmp_path / "cache") as cache:
        first = run_suite(guard, loaded, "none", tmp_path / "a", cache)
        again = run_suite(guard, loaded, "none", tmp_path / "b", cache)
    assert (first.scored, first.cached) == (13, 0)
    assert (again.scored, again.cached) == (0, 13)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    data = b"".join(file.read_bytes() for file in (tmp_path / "cache").iterdir())
    assert b"pipe" not in data


def test_the_cache_tells_models_taxonomies_and_conversations_apart() -> None:
    one, other = Conversation.parse("a"), Conversation.parse("b")
    answer = Conversation.parse([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    names = {key(classifier, each) for classifier in ("m1", "m2") for each in (one, other, answer)}
    assert len(names) == 6
    backend = ScriptedBackend.load("x")
    guards = [
        Guard(backend),
        Guard(backend, taxonomy=backend.default_taxonomy.exclude(["G1"])),
        Guard(ScriptedBackend.load("y")),
    ]
    assert len({guard.classifier for guard in guards}) == 3


def test_what_the_cache_gives_back_is_what_it_was_given(tmp_path: Path) -> None:
    judgement = Judgement(Margins(1.25, (0.1, -3.0), own=True), Role.ASSISTANT, True, ("[INST]",))
    with Cache(tmp_path) as cache:
        cache.put({b"k": judgement, b"f": Judgement(None, error=BackendError("no"))})
    with Cache(tmp_path) as cache:
        assert cache.get([b"k", b"f", b"?"]) == {b"k": judgement}


def test_a_broken_cache_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "judgements-1.sqlite").write_text("this is no database, and long enough to be noticed as none" * 20)
    with pytest.raises(guardrail.GuardrailError, match=r"the cache .*judgements-1\.sqlite") as caught:
        Cache(tmp_path)
    assert caught.value.hint == "name another one with --cache, or use --no-cache"


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GUARDRAIL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "guardrail"
    monkeypatch.setenv("GUARDRAIL_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"


KILLED = """
import sys
from pathlib import Path
from guardrail.backends.scripted import ScriptedBackend
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.report import write_report
from guardrail.evaluation.runner import run_suite
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import load_items
from guardrail.guard import Guard

folder = Path(sys.argv[1])
loaded = load_items(Suite.load(folder / "small.yaml"), folder)
with Cache(folder / "cache") as cache:
    guard = Guard(ScriptedBackend.load("bomb", delay=float(sys.argv[2])))
    report = lambda done: print(done, flush=True)
    run = run_suite(guard, loaded, "none", folder / "out", cache, batch_size=4, report=report)
print("scored", run.scored, "cached", run.cached)
"""


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    write_suite(tmp_path, copies=4)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen([*command, "0.3"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 9:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out/scores.jsonl").exists()
    done = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    words = done.stdout.split()
    scored, cached = int(words[-3]), int(words[-1])
    assert scored + cached == 52
    assert cached >= 8
    assert len(rows_of(tmp_path / "out")) == 52


def failing(prompt: Prompt) -> Logits:
    if "bomb?" in prompt.text or "France" in prompt.text:
        raise BackendError("out of order")
    bad = any(word in prompt.text for word in ("neighbour", "death", "vermin", "stupid"))
    return Logits(0.0, 2.0 if bad else -2.0, tuple(0.0 for _ in prompt.taxonomy))


def test_an_error_is_counted_as_one_and_never_as_safe(loaded: LoadedSuite, tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        run = run_suite(Guard(ScriptedBackend(failing)), loaded, "none", tmp_path / "out", cache)
        result = summarise(tmp_path / "out", run, FEW)
    by_id = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert (by_id["0-0"]["verdict"], by_id["0-0"]["score"], by_id["0-0"]["error"]) == ("error", None, "out of order")
    assert result["counts"]["errors"] == 2
    assert sum(result["confusion"].values()) == 10
    assert result["metrics"]["recall"]["value"] == 1.0
    assert result["metrics"]["fpr"]["value"] == 0.0
    assert result["pessimistic"]["recall"] == pytest.approx(5 / 6)
    assert result["pessimistic"]["fpr"] == pytest.approx(1 / 6)
    assert result["pessimistic"]["auprc"] < result["metrics"]["auprc"]["value"]
    topics = {entry["value"]: entry for entry in result["slices"] if entry["slice"] == "topic"}
    assert (topics["weapons"]["items"], topics["weapons"]["errors"]) == (1, 1)


def test_what_failed_is_tried_again(loaded: LoadedSuite, tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        run_suite(Guard(ScriptedBackend(failing)), loaded, "none", tmp_path / "out", cache)
        again = run_suite(Guard(ScriptedBackend.load()), loaded, "none", tmp_path / "out", cache)
    assert again.scored == 13  # another classifier
    with Cache(tmp_path / "cache") as cache:
        once_more = run_suite(Guard(ScriptedBackend(failing)), loaded, "none", tmp_path / "out", cache)
    assert (once_more.scored, once_more.cached) == (2, 11)


def test_an_item_that_cannot_be_judged_is_an_error(loaded: LoadedSuite, tmp_path: Path) -> None:
    empty = replace(loaded.items[0], conversation=None, error="the message to judge is empty")
    with Cache(None) as cache:
        run = run_suite(
            Guard(ScriptedBackend.load()), replace(loaded, items=(empty, *loaded.items[1:])), "none", tmp_path, cache
        )
    assert rows_of(tmp_path)[0]["error"] == "the message to judge is empty"
    assert summarise(tmp_path, run, FEW)["counts"]["errors"] == 1


def test_texts_can_be_left_out(backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path) -> None:
    plan = Plan(texts=False, resampling=FEW, threshold=0.999)
    (result,) = score(backend, loaded, tmp_path / "out", plan)
    assert "vermin" not in (tmp_path / "out/runs/small/none/scores.jsonl").read_text()
    assert result["worst"] == {"false_positives": [], "false_negatives": []}


def test_the_worst_mistakes_come_first(backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path) -> None:
    (result,) = score(backend, loaded, tmp_path / "out", Plan(resampling=FEW, threshold=0.999))
    misses = result["worst"]["false_negatives"]
    scores = [entry["score"] for entry in misses]
    assert scores == sorted(scores)
    assert len(misses) == 6 - result["confusion"]["tp"]
    assert all(entry["messages"][0]["content"] for entry in misses)
    assert len(misses[0]["categories"]) == 3


def test_another_threshold_or_calibration_needs_no_classifier(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (before,) = report(backend, loaded, out)
    (strict,) = results_of(out, FEW, threshold=1.0)
    assert strict["metrics"]["recall"]["value"] == 0.0
    assert strict["metrics"]["auprc"]["value"] == before["metrics"]["auprc"]["value"]
    assert strict["threshold"] == 1.0
    assert not any(row["flagged"] for row in rows_of(out / "runs/small/none"))
    shifted = Calibration(user=Side(Curve.line(1.0, -2.0), Thresholds(0.25)))
    (anew,) = results_of(out, FEW, calibration=shifted)
    assert anew["calibration"]["text"] == "Platt, slope 1, intercept -2"
    assert anew["threshold"] == 0.25
    row = rows_of(out / "runs/small/none")[0]
    assert row["score"] == pytest.approx(sigmoid(row["margin"] - 2.0))
    with pytest.raises(UsageError, match="fitted for other@1"):
        results_of(out, FEW, calibration=replace(shifted, model="other@1"))


def test_a_record_is_read_back_as_it_was(backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path) -> None:
    with Cache(None) as cache:
        run = run_suite(Guard(backend), loaded, "none", tmp_path, cache)
    assert Run.read(tmp_path) == run
    rows = list(read_scores(tmp_path / "scores.jsonl", run.taxonomy, run.rows_sha256))
    assert [row.judgement.margins is not None for row in rows] == [True] * 13


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"format": 1}'])
def test_what_is_no_record_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run.json: this is not the record of a run") as caught:
        Run.read(tmp_path)
    assert caught.value.hint
    with pytest.raises(InputError, match=r"report\.json: cannot be read"):
        results_of(tmp_path, FEW)


def test_rows_that_are_not_those_of_the_record_are_refused(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    with Cache(None) as cache:
        run = run_suite(Guard(backend), loaded, "none", tmp_path, cache)
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(InputError, match=r"scores.jsonl: these are not the rows that run.json tells of"):
        list(read_scores(file, run.taxonomy, run.rows_sha256))
    file.write_text('{"id": "x"}\n')
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=r"scores.jsonl:1: this is no row of a scores file"):
        list(read_scores(file, run.taxonomy, sha256))


def calibrated(
    backend: EncoderBackend, suites: Sequence[LoadedSuite], recipe: Recipe
) -> tuple[Calibration, list[dict[str, object]]]:
    with Cache(None) as cache:
        return calibrate(Guard(backend), suites, recipe, cache)


def test_calibrating_fits_the_judged_role_and_leaves_the_other(backend: EncoderBackend, loaded: LoadedSuite) -> None:
    found, lines = calibrated(backend, [loaded], Recipe(target=Target("recall", 1.0), at_least=5))
    assert found.model == backend.name
    assert found.assistant == backend.calibration.assistant
    assert found.user != backend.calibration.user
    (user, assistant) = lines
    assert (user["role"], user["fitted"], user["recall"]) == ("user", True, 1.0)
    assert not assistant["fitted"]
    guard = Guard(backend, calibration=found)
    unsafe = [text for text, label, _, _ in ROWS if label]
    assert all(decision.flagged for decision in guard.check_many(unsafe))


def test_categories_are_fitted_where_their_labels_are_the_guards(backend: EncoderBackend, loaded: LoadedSuite) -> None:
    with pytest.raises(UsageError, match="--categories: the labels are not of the guard's taxonomy default"):
        calibrated(backend, [loaded], Recipe(categories=True, at_least=2))
    guard = Guard(backend, taxonomy=loaded.suite.taxonomy)
    with Cache(None) as cache:
        found, lines = calibrate(guard, [loaded], Recipe(categories=True, at_least=2), cache)
    assert set(found.user.categories) == {"hate", "violence"}
    assert set(found.user.thresholds.categories) == {"hate", "violence"}
    assert [line["part"] for line in lines if line["role"] == "user"] == ["verdict", "hate", "violence"]
    assert Guard(backend, taxonomy=loaded.suite.taxonomy, calibration=found).calibration == found
    assert not Guard(backend, calibration=found).calibration.user.categories


def messages_of_two_kinds(loaded: LoadedSuite, count: int = 400) -> tuple[Guard, LoadedSuite]:
    """Half are unsafe, 50 by hate and the others by violence; texts tell the log-odds that the guard gives."""
    chosen = np.random.default_rng(0)
    items = []
    for at in range(count):
        labels = (at % 2 == 0, at % 8 == 0, at % 8 in (2, 4, 6))
        text = " ".join(f"{value:.3f}" for value in chosen.normal(np.where(labels, 1.0, -1.0)))
        categories = {"hate": labels[1], "violence": labels[2]}
        items.append(Item(str(at), Conversation.parse(text), labels[0], categories, {}))

    def script(prompt: Prompt) -> Logits:
        verdict, *categories = map(float, re.findall(r"-?\d\.\d+", prompt.text))
        return Logits(0.0, verdict, tuple(categories))

    guard = Guard(ScriptedBackend(script), taxonomy=loaded.suite.taxonomy)
    return guard, replace(loaded, items=tuple(items))


def test_the_prior_is_a_share_of_the_messages_for_categories_too(loaded: LoadedSuite) -> None:
    guard, suite = messages_of_two_kinds(loaded)
    with Cache(None) as cache:
        found, _ = calibrate(guard, [suite], Recipe(prior=0.2, categories=True), cache)
    fitted = Guard(guard.backend, taxonomy=loaded.suite.taxonomy, calibration=found)
    decisions = list(fitted.check_many([item.conversation for item in suite.items if item.conversation]))
    weights = [0.4 if item.unsafe else 1.6 for item in suite.items]
    mean = {
        code: np.average([decision.categories[at].score or 0.0 for decision in decisions], weights=weights)
        for at, code in enumerate(("hate", "violence"))
    }
    # Of the unsafe messages a quarter are hate, and a fifth of all messages are unsafe.
    assert mean == pytest.approx({"hate": 0.05, "violence": 0.15}, abs=0.005)
    verdicts = np.average([decision.score or 0.0 for decision in decisions], weights=weights)
    assert verdicts == pytest.approx(0.2, abs=0.005)


def test_with_a_prior_categories_are_fitted_on_rows_whose_verdict_is_labelled(loaded: LoadedSuite) -> None:
    guard, suite = messages_of_two_kinds(loaded)
    open_verdicts = tuple(replace(item, id=f"open {item.id}", unsafe=None) for item in suite.items[:80])
    answers = tuple(
        replace(item, id=f"answer {item.id}", unsafe=True,
                conversation=Conversation.parse([{"role": "user", "content": "?"},
                                                 {"role": "assistant", "content": item.conversation.judged.text}]))
        for item in suite.items if item.conversation
    )  # fmt: skip
    suite = replace(suite, items=(*suite.items, *open_verdicts, *answers))
    lines = {}
    for prior in (None, 0.2):
        with Cache(None) as cache:
            _, found = calibrate(guard, [suite], Recipe(prior=prior, categories=True), cache)
        lines[prior] = {(line["role"], line["part"]): (line["unsafe"], line["safe"], line["fitted"]) for line in found}
    assert lines[None]["user", "hate"] == (60, 420, True)
    assert lines[0.2]["user", "hate"] == (50, 350, True)
    assert lines[None]["assistant", "verdict"] == lines[0.2]["assistant", "verdict"] == (400, 0, False)
    assert lines[None]["assistant", "hate"] == (50, 350, True)
    # No weights make a fifth of these answers unsafe.
    assert ("assistant", "hate") not in lines[0.2]


def test_a_target_that_cannot_be_met_names_role_and_category(loaded: LoadedSuite) -> None:
    def script(prompt: Prompt) -> Logits:
        unsafe = next(bool(label) for text, label, _, _ in ROWS if text in prompt.text)
        hate = any(word in prompt.text for word in ("vermin", "stupid"))
        violent = any(word in prompt.text for word in ("pipe bomb", "poison", "death"))
        values = {"hate": 2.0 if hate else -2.0, "violence": 3.0 if "lemon" in prompt.text else 2.0 * violent - 1.0}
        return Logits(0.0, 2.0 if unsafe else -2.0, tuple(values[code] for code in prompt.taxonomy.codes))

    guard = Guard(ScriptedBackend(script), taxonomy=loaded.suite.taxonomy)
    recipe = Recipe(target=Target("precision", 0.98), categories=True, at_least=2)
    with Cache(None) as cache, pytest.raises(InputError) as caught:
        calibrate(guard, [loaded], recipe, cache)
    assert str(caught.value) == "user violence: no threshold has precision>=0.98"
    assert caught.value.hint == "ask for less, or give rows of more kinds"


def test_too_few_rows_are_refused(backend: EncoderBackend, loaded: LoadedSuite) -> None:
    with pytest.raises(InputError, match="small: too few labelled rows: 6 unsafe and 6 safe") as caught:
        calibrated(backend, [loaded], Recipe())
    assert caught.value.hint == "give at least 30 of each, or lower --at-least"
    with pytest.raises(UsageError, match="--at-least is 1"):
        Recipe(at_least=1)


def test_an_evaluation_set_is_not_calibrated_on(loaded: LoadedSuite, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="small is an evaluation set") as caught:
        check_purpose([loaded])
    assert caught.value.hint is not None
    assert "--allow-evaluation-set" in caught.value.hint
    check_purpose([load_items(Suite.load(write_suite(tmp_path, name="mine", use="validation")), tmp_path)])


def test_a_suite_that_the_calibration_was_fitted_on_is_refused(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    found, _ = calibrated(backend, [loaded], Recipe(at_least=5))
    again = load_items(Suite.load(write_suite(tmp_path, name="renamed", copies=2)), tmp_path)
    with pytest.raises(UsageError, match="fitted on texts of renamed: about 100% of one are in the other"):
        check_overlap(found, [again])
    check_overlap(Calibration(), [again])


@pytest.mark.parametrize(
    ("fitted", "texts", "share"),
    [
        (range(3_000), range(2_900, 8_000), 0.033),
        (range(10_000), range(9_978, 10_428), 0.049),
        (range(100_000), range(50_000, 50_450), 1.0),
        (range(100_000), range(99_800, 101_000), 0.17),
        (range(10_000), range(10_000, 15_000), 0.0),
        (range(10_000), range(9_999, 15_000), 0.0),  # one text in common is no copy
        (range(0), range(10), 0.0),
    ],
)
def test_overlap_is_found_between_sets_of_any_size(
    loaded: LoadedSuite, fitted: range, texts: range, share: float
) -> None:
    def items(numbers: range) -> list[Item]:
        return [replace(loaded.items[0], conversation=Conversation.parse(f"text number {n}")) for n in numbers]

    found = overlap(digests_of(items(fitted)), digests_of(items(texts)))
    assert found == pytest.approx(share, abs=0.06 if len(fitted) > 50_000 else 0.001)


def test_another_calibration_of_a_report_is_checked_like_that_of_a_run(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    found, _ = calibrated(backend, [loaded], Recipe(at_least=5))
    report(backend, loaded, tmp_path / "out", Plan(texts=False, resampling=FEW))
    before = rows_of(tmp_path / "out/runs/small/none")
    with pytest.raises(UsageError, match="fitted on texts of small"):
        results_of(tmp_path / "out", FEW, calibration=found)
    unknown = Calibration(user=Side(thresholds=Thresholds(0.5, {"NOPE": 0.1})))
    with pytest.raises(InputError, match="no category 'NOPE'"):
        results_of(tmp_path / "out", FEW, calibration=unknown)
    assert rows_of(tmp_path / "out/runs/small/none") == before
    (result,) = results_of(tmp_path / "out", FEW, calibration=found, allow_overlap=True, command="again")
    assert "fitted on texts of this set (about 100%)" in result["suite"]["caveat"]
    assert result["command"] == "again"


def test_thresholds_of_categories_are_told(backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path) -> None:
    report(backend, loaded, tmp_path / "out")
    eager = Calibration(user=Side(thresholds=Thresholds(0.5, {"G1": 0.01})))
    (result,) = results_of(tmp_path / "out", FEW, calibration=eager)
    assert result["thresholds"] == "0.5; G1 0.01 by itself"
    direct = Guard(backend, calibration=eager)
    texts = [text for text, label, _, _ in ROWS if label is not None]
    flagged = sum(decision.flagged for decision in direct.check_many(texts))
    assert result["confusion"]["tp"] + result["confusion"]["fp"] == flagged


def test_a_report_is_of_its_own_runs_alone(backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path) -> None:
    report(backend, loaded, tmp_path / "out", Plan(("none", "zero-shot"), resampling=FEW))
    report(backend, loaded, tmp_path / "out")
    assert [result["adaptation"] for result in results_of(tmp_path / "out", FEW)] == ["none"]
    assert foreign_runs(tmp_path / "out") == ["small/zero-shot"]


def test_a_sharp_calibration_changes_no_ranking(backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path) -> None:
    (before,) = report(backend, loaded, tmp_path / "out")
    sharp = Calibration(user=Side(Curve.line(1000.0), Thresholds(0.5)))
    (after,) = results_of(tmp_path / "out", FEW, calibration=sharp)
    scores = {row["score"] for row in rows_of(tmp_path / "out/runs/small/none")}
    assert len(scores) < 13
    for name in ("auprc", "auroc", "best_f1", "recall_at_fpr_5"):
        assert after["metrics"][name] == pytest.approx(before["metrics"][name])
    assert [entry["one_vs_all"] for entry in after["categories"]] == [
        pytest.approx(entry["one_vs_all"]) for entry in before["categories"]
    ]


def test_one_vs_benign_is_against_all_safe_rows(backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path) -> None:
    (result,) = report(backend, loaded, tmp_path / "out")
    hate = next(entry for entry in result["categories"] if entry["code"] == "hate")
    rows = rows_of(tmp_path / "out/runs/small/none")
    kept = [row for row in rows if row["labels"]["hate"] or row["unsafe"] is False]
    assert len(kept) == 8
    truth = [bool(row["labels"]["hate"]) for row in kept]
    expected = average_precision_score(truth, [row["scores"]["G9"] for row in kept])
    assert hate["one_vs_benign"]["value"] == pytest.approx(expected)


def test_calibrating_one_role_leaves_the_other_as_it_was(loaded: LoadedSuite) -> None:
    def script(prompt: Prompt) -> Logits:
        bad = any(word in prompt.text for word in ("neighbour", "death", "vermin", "stupid"))
        return Logits(0.0, 2.0 if bad else -2.0, tuple(0.0 for _ in prompt.taxonomy), own=bad)

    assistant = Side(Curve.line(2.0), Thresholds(None, {"G1": 0.3}, own=True), {"G1": Curve.line(3.0)})
    guard = Guard(ScriptedBackend(script), calibration=Calibration(assistant=assistant))
    with Cache(None) as cache:
        found, _ = calibrate(guard, [loaded], Recipe(at_least=5), cache)
    assert found.assistant == assistant
    assert not found.user.thresholds.own


@pytest.mark.parametrize("value", ["[1]", '{"unsafe": NaN}', "null", "{"])
def test_a_damaged_judgement_is_made_anew(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path, value: str
) -> None:
    with Cache(tmp_path / "cache") as cache:
        first = run_suite(Guard(backend), loaded, "none", tmp_path / "a", cache)
    with sqlite3.connect(tmp_path / "cache/judgements-1.sqlite") as database:
        one = database.execute("SELECT key FROM judgements LIMIT 1").fetchone()
        database.execute("UPDATE judgements SET value = ? WHERE key = ?", (value, *one))
    with Cache(tmp_path / "cache") as cache:
        again = run_suite(Guard(backend), loaded, "none", tmp_path / "b", cache)
    assert (again.scored, again.cached) == (1, 12)
    assert again.rows_sha256 == first.rows_sha256


def test_judgements_of_another_taxonomy_size_are_not_used(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    guard = Guard(backend)
    conversation = loaded.items[0].conversation
    assert conversation is not None
    with Cache(tmp_path) as cache:
        cache.put({key(guard.classifier, conversation): Judgement(Margins(9.0, (1.0, 2.0)), Role.USER)})
        assert run_suite(guard, loaded, "none", tmp_path / "out", cache).scored == 13


def test_wrong_plans_are_refused_before_scoring(loaded: LoadedSuite) -> None:
    with pytest.raises(UsageError, match="--batch-size is 0"):
        Plan(batch_size=0)
    with pytest.raises(UsageError, match="--taxonomy is for the adaptation 'none'"):
        Plan(("zero-shot",), taxonomy=loaded.suite.taxonomy)
    with pytest.raises(UsageError, match="--resamples is 1"):
        Resampling(1)
    with pytest.raises(UsageError, match="--seed is -1"):
        Resampling(100, -1)
    with pytest.raises(UsageError, match="--method is 'foo'"):
        Recipe(method="foo")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--prior is 2"):
        Recipe(prior=2)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    inner: list[Exception] = []

    def rows() -> Iterator[dict[str, object]]:
        try:
            write_scores(tmp_path / "scores.jsonl", [{"id": "other"}])
        except ResumeError as error:
            inner.append(error)
        yield {"id": "mine"}

    write_scores(tmp_path / "scores.jsonl", rows())
    assert "another process is writing it" in str(inner[0])
    assert (tmp_path / "scores.jsonl").read_text() == '{"id": "mine"}\n'


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Cache(None) as cache, pytest.raises(guardrail.GuardrailError, match=r"file/runs.*: cannot be written"):
        run_suite(
            Guard(ScriptedBackend.load()),
            load_items(Suite.load(write_suite(tmp_path)), tmp_path),
            "none",
            tmp_path / "file" / "runs",
            cache,
        )


def test_a_class_that_could_not_be_judged_at_all_is_told_of(loaded: LoadedSuite, tmp_path: Path) -> None:
    def script(prompt: Prompt) -> Logits:
        if any(text in prompt.text for text, label, _, _ in ROWS if label is False):
            raise BackendError("out of order")
        return Logits(0.0, 1.0, tuple(0.0 for _ in prompt.taxonomy))

    chat = replace(loaded, suite=replace(loaded.suite, id="toxic-chat"))
    with Cache(None) as cache:
        run = run_suite(Guard(ScriptedBackend(script)), chat, "none", tmp_path, cache)
    result = summarise(tmp_path, run, FEW)
    assert result["counts"]["errors"] == 6
    assert result["metrics"]["auprc"] is None
    assert {point["system"] for point in result["published_points"]} >= {"ToxicChat-T5-Large"}
    write_report([result], tmp_path)


def test_categories_without_any_label_are_not_listed(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    items = tuple(
        replace(item, categories={"hate": None, "violence": item.categories.get("violence")}) for item in loaded.items
    )
    (result,) = score(backend, replace(loaded, items=items), tmp_path)
    assert [entry["code"] for entry in result["categories"]] == ["violence"]


def test_what_fails_altogether_says_why_it_cannot_be_calibrated(loaded: LoadedSuite) -> None:
    def broken(prompt: Prompt) -> Logits:
        raise BackendError("the key was refused")

    with Cache(None) as cache, pytest.raises(BackendError, match="no item could be judged: the key was refused"):
        calibrate(Guard(ScriptedBackend(broken)), [loaded], Recipe(), cache)


def test_runs_are_announced_before_the_first_is_scored(
    backend: EncoderBackend, loaded: LoadedSuite, tmp_path: Path
) -> None:
    plain = replace(loaded, suite=replace(loaded.suite, examples={}))
    told: list[str] = []

    def planned(names: list[str]) -> None:
        told.extend(names)
        raise UsageError("stop")

    plan = Plan(("none", "zero-shot", "few-shot"), resampling=FEW)
    with Cache(None) as cache, pytest.raises(UsageError, match="stop"):
        evaluate(backend, [plain], tmp_path / "out", plan, cache, skipped=lambda line: None, planned=planned)
    assert told == ["small", "small/zero-shot"]
    assert not (tmp_path / "out").exists()
    with Cache(None) as cache, pytest.raises(UsageError, match="no suite allows any of the adaptations"):
        evaluate(backend, [plain], tmp_path / "out", Plan(("few-shot",)), cache, skipped=lambda line: None)
