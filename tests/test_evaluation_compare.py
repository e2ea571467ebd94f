"""Comparisons of two evaluations, and bounds for continuous integration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guardrail.backends.scripted import ScriptedBackend
from guardrail.calibration import Calibration, Side
from guardrail.errors import BackendError, GuardrailError, InputError, UsageError
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.compare import compare, only_in
from guardrail.evaluation.evaluate import Plan, evaluate
from guardrail.evaluation.gate import Bound, check_bounds
from guardrail.evaluation.report import write_report
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import load_items
from guardrail.evaluation.summary import Resampling
from guardrail.policy import Thresholds
from guardrail.prompting import Prompt
from guardrail.scoring import Logits
from tests.evaluation_suite import write_suite

FEW = Resampling(200, 0)
PLAN = Plan(resampling=FEW)
GOOD = "bomb?,neighbour,death,vermin,stupid"


def score(folder: Path, data: Path, script: ScriptedBackend, plan: Plan = PLAN) -> list[dict[str, Any]]:
    with Cache(None) as cache:
        results = evaluate(script, [load_items(Suite.load(data / "small.yaml"), data)], folder, plan, cache)
    write_report(results, folder)
    return results


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_suite(tmp_path, copies=5)
    return tmp_path


def test_the_better_system_is_better_by_the_difference(data: Path, tmp_path: Path) -> None:
    score(tmp_path / "a", data, ScriptedBackend.load("bomb,death"))
    score(tmp_path / "b", data, ScriptedBackend.load(GOOD))
    (found,) = compare(tmp_path / "a", tmp_path / "b", FEW)
    assert (found["run"], found["items"], found["left_out"]) == ("small", 60, 0)
    recall = found["metrics"]["recall"]
    # a: bomb and death of six; b: all six.
    assert (recall["a"], recall["b"]) == (pytest.approx(2 / 6), 1.0)
    assert recall["value"] == pytest.approx(4 / 6)
    assert recall["low"] <= recall["value"] <= recall["high"]
    assert recall["p"] < 0.05
    # "bombed" makes a false alarm of a; "neighbour" none of b.
    assert found["metrics"]["fpr"]["value"] == pytest.approx(-1 / 6)
    assert len(found["changed"]) == 25
    assert {row["better"] for row in found["changed"]} == {"b"}
    assert all(row["text"] for row in found["changed"])


def test_swapped_sides_turn_the_sign(data: Path, tmp_path: Path) -> None:
    score(tmp_path / "a", data, ScriptedBackend.load("bomb,death"))
    score(tmp_path / "b", data, ScriptedBackend.load(GOOD))
    one, other = compare(tmp_path / "a", tmp_path / "b", FEW)[0], compare(tmp_path / "b", tmp_path / "a", FEW)[0]
    assert one["metrics"]["f1"]["value"] == -other["metrics"]["f1"]["value"]
    assert one["metrics"]["f1"]["p"] == other["metrics"]["f1"]["p"]
    same = compare(tmp_path / "a", tmp_path / "a", FEW)[0]
    assert (same["metrics"]["auprc"]["value"], same["metrics"]["auprc"]["p"], same["changed"]) == (0.0, 1.0, [])


def sure(prompt: Prompt) -> Logits:
    """Sure of every text, and surer of the longer of them."""
    bad = "bomb" in prompt.text or "death" in prompt.text
    return Logits(0.0, (40.0 if bad else 38.0) + len(prompt.text) / 100, tuple(0.0 for _ in prompt.taxonomy))


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("b", "a")])
def test_scores_that_are_all_one_rank_as_in_the_report(data: Path, tmp_path: Path, one: str, other: str) -> None:
    backends = {"a": ScriptedBackend(sure), "b": ScriptedBackend.load(GOOD)}
    results = {name: score(tmp_path / name, data, backend)[0] for name, backend in backends.items()}
    # All equal, rows would be ranked by chance, and the area be the share of unsafe ones.
    assert results["a"]["metrics"]["auprc"]["value"] > 0.6
    (found,) = compare(tmp_path / one, tmp_path / other, FEW)
    for side, name in (("a", one), ("b", other)):
        report = {metric: entry and entry["value"] for metric, entry in results[name]["metrics"].items()}
        assert {metric: entry[side] for metric, entry in found["metrics"].items()} == report
    auprc = found["metrics"]["auprc"]
    assert auprc["value"] == pytest.approx(auprc["b"] - auprc["a"])
    assert auprc["low"] < auprc["value"] < auprc["high"]


def half_broken(prompt: Prompt) -> Logits:
    if "France" in prompt.text or "vaccines" in prompt.text:
        raise BackendError("out of order")
    return Logits(0.0, 1.0 if "bomb" in prompt.text else -1.0, tuple(0.0 for _ in prompt.taxonomy))


def test_what_one_side_could_not_judge_is_left_out_and_counted(data: Path, tmp_path: Path) -> None:
    score(tmp_path / "a", data, ScriptedBackend.load(GOOD))
    score(tmp_path / "b", data, ScriptedBackend(half_broken))
    (found,) = compare(tmp_path / "a", tmp_path / "b", FEW)
    assert (found["items"], found["left_out"], found["b"]["errors"]) == (50, 10, 10)


def test_what_cannot_be_compared_is_refused(data: Path, tmp_path: Path) -> None:
    script = ScriptedBackend.load(GOOD)
    score(tmp_path / "a", data, script)
    score(tmp_path / "z", data, script, Plan(("zero-shot",), resampling=FEW))
    with pytest.raises(InputError, match="no suite and adaptation in common") as caught:
        compare(tmp_path / "a", tmp_path / "z")
    assert caught.value.hint == "a has small/none; b has small/zero-shot"
    write_suite(data, copies=2)
    score(tmp_path / "c", data, script)
    with pytest.raises(InputError, match="the data of the two runs differs"):
        compare(tmp_path / "a", tmp_path / "c")
    with pytest.raises(InputError, match=r"report\.json: cannot be read"):
        compare(tmp_path / "a", tmp_path)


def test_bounds_are_kept_or_named(data: Path, tmp_path: Path) -> None:
    results = score(tmp_path / "a", data, ScriptedBackend.load("bomb,death"))
    under, over = "--fail-under", "--fail-over"
    check_bounds([Bound.parse(under, "small:recall=0.3"), Bound.parse(over, "small:fpr=0.2")], results)
    with pytest.raises(GuardrailError) as caught:
        check_bounds([Bound.parse(under, "small:recall=0.5"), Bound.parse(over, "small:fpr=0.1")], results)
    assert str(caught.value) == "small: recall is 0.3333, under 0.5; small: fpr is 0.1667, over 0.1"
    assert caught.value.exit_status == 1
    with pytest.raises(UsageError, match="--fail-under: there is no run 'large'"):
        check_bounds([Bound.parse(under, "large:recall=0.5")], results)


def test_a_bound_cannot_be_passed_by_failing(data: Path, tmp_path: Path) -> None:
    results = score(tmp_path / "b", data, ScriptedBackend(half_broken))
    assert results[0]["metrics"]["fpr"]["value"] == pytest.approx(1 / 4)
    with pytest.raises(GuardrailError, match=r"small: fpr is 0.5000, over 0.3"):
        check_bounds([Bound.parse("--fail-over", "small:fpr=0.3")], results)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("toxic-chat", "cannot read 'toxic-chat'"),
        ("toxic-chat:auprc", "cannot read"),
        ("toxic-chat:auprc=e", "cannot read"),
        ("toxic-chat:auprcc=0.5", "there is no metric 'auprcc'"),
    ],
)
def test_an_unreadable_bound_names_the_flag(text: str, words: str) -> None:
    with pytest.raises(UsageError, match="--fail-under") as caught:
        Bound.parse("--fail-under", text)
    assert words in str(caught.value)


def test_a_comparison_is_plain_json(data: Path, tmp_path: Path) -> None:
    score(tmp_path / "a", data, ScriptedBackend.load("bomb"))
    found = compare(tmp_path / "a", tmp_path / "a", FEW)
    assert json.loads(json.dumps(found)) == found


def test_a_suite_that_was_changed_in_between_is_refused(data: Path, tmp_path: Path) -> None:
    score(tmp_path / "a", data, ScriptedBackend.load(GOOD))
    suite = data / "small.yaml"
    suite.write_text(
        suite.read_text().replace('unsafe: ["true"], safe: ["false"]', 'unsafe: ["false"], safe: ["true"]')
    )
    score(tmp_path / "b", data, ScriptedBackend.load(GOOD))
    with pytest.raises(InputError, match="small/none: the labels of 60 items differ") as caught:
        compare(tmp_path / "a", tmp_path / "b", FEW)
    assert caught.value.hint


def test_runs_that_only_one_side_has_are_named(data: Path, tmp_path: Path) -> None:
    score(tmp_path / "a", data, ScriptedBackend.load(GOOD), Plan(("none", "zero-shot"), resampling=FEW))
    score(tmp_path / "b", data, ScriptedBackend.load(GOOD))
    assert only_in(tmp_path / "a", tmp_path / "b") == [f"small/zero-shot is only in {tmp_path / 'a'}"]


def test_an_error_makes_no_bound_easier(data: Path, tmp_path: Path) -> None:
    (result,) = score(tmp_path / "b", data, ScriptedBackend(half_broken))
    pessimistic = result["pessimistic"]
    lower_is_better = {"fpr", "fnr", "brier", "ece"}
    for name, found in result["metrics"].items():
        if found is not None and name != "best_threshold":
            worse = pessimistic[name] - found["value"]
            assert worse >= 0 if name in lower_is_better else worse <= 0, name


def test_a_bound_on_what_says_nothing_is_not_kept(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    suite.write_text(
        suite.read_text().replace(
            'label: {column: bad, unsafe: ["true"], safe: ["false"], unknown: [""]}', "label: unsafe"
        )
    )
    results = score(tmp_path / "a", tmp_path, ScriptedBackend.load(GOOD))
    check_bounds([Bound.parse("--fail-under", "small:recall=0.1")], results)
    with pytest.raises(GuardrailError, match="precision says nothing about this set"):
        check_bounds([Bound.parse("--fail-under", "small:precision=0.5")], results)


def test_a_verdict_of_a_services_own_is_not_called_a_threshold(data: Path, tmp_path: Path) -> None:
    def script(prompt: Prompt) -> Logits:
        return Logits(0.0, -1.0, tuple(0.0 for _ in prompt.taxonomy), own="bomb" in prompt.text)

    side = Side(thresholds=Thresholds(0.5, own=True))
    service = ScriptedBackend(script)
    service.calibration = Calibration(side, side)
    score(tmp_path / "a", data, service)
    score(tmp_path / "b", data, service, Plan(resampling=FEW, threshold=0.5))
    (found,) = compare(tmp_path / "a", tmp_path / "b", FEW)
    assert (found["a"]["thresholds"], found["b"]["thresholds"]) == ("the service's own verdict", "0.5")
    assert len(found["changed"]) == 10
