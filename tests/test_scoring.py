"""Logits to probabilities, against hand calculations."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.scoring import Logits, Scores, highest, scores, sigmoid

finite = st.floats(-1e4, 1e4)


def test_verdict_is_the_softmax_over_two_logits() -> None:
    assert scores(Logits(1.0, 3.0)).unsafe == pytest.approx(math.exp(3) / (math.exp(1) + math.exp(3)))


def test_binary_categories_are_independent() -> None:
    result = scores(Logits(0.0, 0.0, (0.0, math.log(3))))
    assert result.categories == pytest.approx((0.5, 0.75))


def test_first_categories_share_the_probability_of_unsafe() -> None:
    logits = Logits(0.0, math.log(4), (math.log(0.25), math.log(0.75)), form="first")
    assert scores(logits).categories == pytest.approx((0.2, 0.6))


def test_temperature_divides_the_logits() -> None:
    assert scores(Logits(0.0, 2.0, (4.0,)), temperature=2.0).unsafe == pytest.approx(sigmoid(1.0))
    assert scores(Logits(0.0, 2.0, (4.0,)), temperature=2.0).categories[0] == pytest.approx(sigmoid(2.0))


@pytest.mark.parametrize("logits", [Logits(math.nan, 0.0), Logits(0.0, math.nan), Logits(0.0, 0.0, (math.nan,))])
def test_nan_is_no_score(logits: Logits) -> None:
    with pytest.raises(ValueError, match="NaN"):
        scores(logits)


@given(finite)
def test_sigmoid_is_a_probability_and_symmetric(value: float) -> None:
    assert 0.0 <= sigmoid(value) <= 1.0
    assert sigmoid(value) + sigmoid(-value) == pytest.approx(1.0)


@given(finite, finite)
def test_a_higher_unsafe_logit_never_lowers_the_score(low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert scores(Logits(0.0, low)).unsafe <= scores(Logits(0.0, high)).unsafe


def test_the_highest_window_counts_for_each_score_by_itself() -> None:
    assert highest([Scores(0.2, (0.9, 0.1)), Scores(0.4, (0.3, 0.2))]) == Scores(0.4, (0.9, 0.2))
