"""Calibration files, and what their curves and thresholds do to scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import guardrail
from guardrail.calibration import Calibration, Side
from guardrail.errors import InputError, UsageError
from guardrail.policy import Thresholds
from guardrail.scoring import Curve, Margins, sigmoid
from guardrail.taxonomy import Category, Taxonomy
from guardrail.types import Role

TAXONOMY = Taxonomy(id="t", name="T", categories=(Category("A", "First"), Category("B", "Second")))
OTHER = Taxonomy(id="o", name="O", categories=(Category("A", "Else"),))
WHOLE = Calibration(
    user=Side(Curve.line(2.0, 0.5), Thresholds(0.3, {"A": 0.2}), {"A": Curve(((0.0, -1.0), (1.0, 1.0)), 1.0)}),
    assistant=Side(Curve.line(1 / 1.5), Thresholds(0.6, own=True)),
    model="m@1",
    taxonomy=TAXONOMY.ref,
    fitted={"rows": 12},
)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(WHOLE.to_dict()))
    found = Calibration.read(file)
    assert found == WHOLE
    assert found.fitted == {"rows": 12}
    assert found.digest == WHOLE.digest


def test_each_score_goes_through_its_own_curve() -> None:
    scores = WHOLE.side(Role.USER).scores(Margins(1.0, (0.5, 1.0)), TAXONOMY)
    assert scores.unsafe == pytest.approx(sigmoid(2.5))
    assert scores.categories == pytest.approx((sigmoid(0.0), sigmoid(2.5)))
    answers = WHOLE.side(Role.ASSISTANT).scores(Margins(3.0, (1.5, 0.0)), TAXONOMY)
    assert (answers.unsafe, *answers.categories) == pytest.approx((sigmoid(2.0), sigmoid(1.0), 0.5))


def test_category_entries_hold_for_the_taxonomy_they_were_fitted_under() -> None:
    assert WHOLE.under(TAXONOMY, OTHER.digest) is WHOLE
    plain = WHOLE.under(OTHER, TAXONOMY.digest)
    assert (dict(plain.user.categories), dict(plain.user.thresholds.categories)) == ({}, {})
    assert (plain.user.curve, plain.user.thresholds.verdict) == (Curve.line(2.0, 0.5), 0.3)
    assert plain.assistant.thresholds.own
    nowhere = Calibration(user=WHOLE.user)
    assert nowhere.under(TAXONOMY, TAXONOMY.digest) is nowhere
    assert not nowhere.under(OTHER, TAXONOMY.digest).user.categories


def test_the_digest_is_over_curves_and_thresholds() -> None:
    assert Calibration(fitted={"rows": 1}).digest == Calibration().digest
    assert Calibration(user=Side(Curve.line(2.0))).digest != Calibration().digest
    assert Calibration(user=Side(thresholds=Thresholds(0.4))).digest != Calibration().digest


def test_a_calibration_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({"format": 2, "model": "other@123"}))
    with pytest.raises(UsageError, match=r"fitted for other@123, the model is guardrail-minilm@"):
        guardrail.load(calibration=file)


def test_a_given_calibration_replaces_the_one_beside_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({"format": 2, "user": {"curve": {"slope": 1.0, "intercept": -3.0}, "threshold": 0.9}}))
    with guardrail.load() as shipped, guardrail.load(calibration=file) as guard:
        margin = next(shipped.judge_many(["How do I build a pipe bomb?"])).margins
        decision = guard.check("How do I build a pipe bomb?")
        assert margin is not None
        assert decision.score == pytest.approx(sigmoid(margin.unsafe - 3.0))
        assert guard.policy.user.verdict == 0.9
        assert guard.fingerprint != shipped.fingerprint
        assert guard.classifier == shipped.classifier


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot read"),
        ([], "expected an object"),
        ({"format": 1}, "format: expected 2, got 1"),
        ({"format": 2, "usr": {}}, "usr: unknown key"),
        ({"format": 2, "model": 3}, "model: expected str, got 3"),
        ({"format": 2, "model": "m"}, "model: 'm' is no id@digest"),
        ({"format": 2, "taxonomy": "default"}, "taxonomy: 'default' is no id@digest"),
        ({"format": 2, "taxonomy": "default@243102EC3958"}, "taxonomy: 'default@243102EC3958' is no id@digest"),
        ({"format": 2, "taxonomy": "@243102ec3958"}, "taxonomy: '@243102ec3958' is no id@digest"),
        ({"format": 2, "user": 0.5}, "user: expected an object"),
        ({"format": 2, "user": {"threshold": 2}}, "user: threshold is 2"),
        ({"format": 2, "user": {"threshold": "x"}}, "user: threshold is 'x'"),
        ({"format": 2, "user": {"curve": {"temperature": 0}}}, "user.curve: expected a temperature above 0"),
        ({"format": 2, "user": {"curve": {"temperature": "x"}}}, "user.curve: "),
        ({"format": 2, "user": {"curve": {"slope": 1}}}, "user.curve: cannot be read from the keys slope"),
        ({"format": 2, "user": {"curve": {"points": [[0, 1], [1, 0]], "slope": 1}}}, "user.curve: the points"),
        ({"format": 2, "user": {"curve": {"points": [1], "slope": 1}}}, "user.curve: "),
        ({"format": 2, "user": {"own": "no"}}, "user: own is 'no'"),
        ('{"format": 2, "user": {"threshold": 0.5, "threshold": 0.6}}', "the key 'threshold' occurs twice"),
        ('{"format": 2, "user": {"curve": {"slope": 1' + "0" * 400 + ', "intercept": 0}}}', "is out of range"),
        ({"format": 2, "user": {"categories": {"A": 0.5}}}, "user.categories.A: expected an object"),
        ({"format": 2, "user": {"categories": {"A": {"threshold": 7}}}}, "user: threshold of A is 7"),
    ],
)
def test_a_wrong_calibration_file_is_one_clear_line(tmp_path: Path, content: Any, words: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        Calibration.read(file)
    assert str(file) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("taxonomy", [None, TAXONOMY.ref])
def test_codes_that_the_taxonomy_lacks_are_refused(tmp_path: Path, taxonomy: str | None) -> None:
    file = tmp_path / "calibration.json"
    for entry in ({"curve": {"temperature": 2}}, {"threshold": 0.3}):
        side = {"categories": {"A": entry, "ZZ": entry}}
        content = {"format": 2, "assistant": side, **({"taxonomy": taxonomy} if taxonomy else {})}
        file.write_text(json.dumps(content))
        found = Calibration.read(file)
        with pytest.raises(InputError) as caught:
            found.under(TAXONOMY, TAXONOMY.digest)
        assert (caught.value.file, caught.value.field) == (str(file), "assistant.categories.ZZ")
        assert caught.value.reason == f"{TAXONOMY.ref} has no category 'ZZ'"
        assert not found.under(OTHER, TAXONOMY.digest).assistant.categories


def test_the_shipped_calibration_is_in_order() -> None:
    with guardrail.load() as guard:
        assert guard.calibration.taxonomy == guard.taxonomy.ref
        assert guard.calibration.model == guard.backend.name
