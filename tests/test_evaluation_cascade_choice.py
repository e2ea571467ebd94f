"""The choice of a band against trying all of them, and an AUPRC worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.cascade import Band
from guardrail.errors import InputError, UsageError
from guardrail.evaluation import metrics
from guardrail.evaluation.cascade_choice import PLACES, Chooser, Rows

THRESHOLD = 0.5
SCORES = st.sampled_from([0.05, 0.2, 0.35, 0.45, 0.5, 0.6, 0.75, 0.95])


def rows_of(
    unsafe: list[bool], first: list[float], second: list[float], unjudged: list[float] | None = None, always: int = 0
) -> Rows:
    one, two = np.array(first), np.array(second)
    return Rows(
        np.array(unsafe, dtype=bool),
        one,
        two,
        np.log(one / (1 - one)),
        np.log(two / (1 - two)),
        one >= THRESHOLD,
        two >= THRESHOLD,
        np.array(unjudged or [], dtype=float),
        always,
    )


@st.composite
def labelled(draw: st.DrawFn) -> Rows:
    size = draw(st.integers(2, 14))
    unsafe = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(lambda found: len(set(found)) == 2))
    first, second = (draw(st.lists(SCORES, min_size=size, max_size=size)) for _ in range(2))
    return rows_of(unsafe, first, second, draw(st.lists(SCORES, max_size=2)), draw(st.integers(0, 2)))


def bands(rows: Rows) -> Iterator[Band | None]:
    """All that hold or touch the threshold, each by the scores at its ends."""
    levels = sorted({*rows.first.tolist(), *rows.unjudged.tolist()})
    split = sum(level < THRESHOLD for level in levels)
    yield None
    for low in range(split + 1):
        for high in range(split, len(levels) + 1):
            if low < high:
                yield Band(levels[low], levels[high - 1])


def auprc(rows: Rows, band: Band | None) -> float:
    inside = rows.inside(band)
    value = metrics.auprc(rows.unsafe, np.where(inside, rows.second_margin, rows.first_margin))
    assert value is not None
    return value


def recall(rows: Rows, band: Band | None) -> float:
    flagged = np.where(rows.inside(band), rows.second_flagged, rows.first_flagged)
    return float(flagged[rows.unsafe].mean())


@given(labelled(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]))
def test_for_a_cost_no_affordable_band_has_a_higher_auprc(rows: Rows, cost: float) -> None:
    affordable = [band for band in bands(rows) if rows.share(band) <= cost + 1e-9]
    if not affordable:
        with pytest.raises(UsageError, match="the first model failed on"):
            Chooser(rows, THRESHOLD).for_cost(cost)
        return
    chosen = Chooser(rows, THRESHOLD).for_cost(cost)
    best = max(auprc(rows, band) for band in affordable)
    assert auprc(rows, chosen) == pytest.approx(best, abs=1e-9)
    assert rows.share(chosen) <= cost + 1e-9
    equal = [rows.share(band) for band in affordable if auprc(rows, band) >= best - 1e-12]
    assert rows.share(chosen) == pytest.approx(min(equal))


@given(labelled(), st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
def test_for_a_recall_no_band_that_has_it_asks_about_fewer_rows(rows: Rows, target: float) -> None:
    enough = [band for band in bands(rows) if recall(rows, band) >= target - 1e-9]
    if not enough:
        most = max(recall(rows, band) for band in bands(rows))
        with pytest.raises(InputError, match=f"at most {most:.3f} is reached"):
            Chooser(rows, THRESHOLD).for_recall(target)
        return
    chosen = Chooser(rows, THRESHOLD).for_recall(target)
    assert recall(rows, chosen) >= target - 1e-9
    fewest = min(rows.share(band) for band in enough)
    assert rows.share(chosen) == pytest.approx(fewest)
    equal = [auprc(rows, band) for band in enough if rows.share(band) <= fewest + 1e-9]
    # Several bands about the same rows below the threshold can differ above it; those are not all tried.
    assert auprc(rows, chosen) >= min(equal) - 1e-9


def test_the_auprc_worked_out_by_hand() -> None:
    # First: unsafe .9 .4, safe .6 .1. In order: unsafe, safe, unsafe, safe: (1/1 + 2/3) / 2 = 5/6.
    rows = rows_of([True, False, True, False], [0.9, 0.6, 0.4, 0.1], [0.2, 0.5, 0.55, 0.7])
    assert auprc(rows, None) == pytest.approx(5 / 6)
    # The second alone: .7 safe, .55 unsafe, .5 safe, .2 unsafe: (1/2 + 2/4) / 2 = 1/2.
    assert auprc(rows, Band(0, 1)) == pytest.approx(1 / 2)
    # Asked about the middle two: .9 unsafe, .55 unsafe, .5 safe, .1 safe: 1.
    chooser = Chooser(rows, THRESHOLD)
    band = chooser.for_cost(0.5)
    assert band == Band(0.25, 0.75)
    assert rows.inside(band).tolist() == [False, True, True, False]
    assert auprc(rows, band) == 1
    # About one of them only: unsafe, safe, unsafe, safe as before, so that asking gains nothing.
    assert chooser.for_cost(0.25) is None
    assert chooser.for_recall(0.5) is None
    # The second finds the unsafe one at .4, and that is all that recall 1 needs.
    assert chooser.for_recall(1.0) == Band(0.25, 0.5)


def test_ends_lie_between_two_scores_or_at_the_end() -> None:
    rows = rows_of([True, False] * 4, [0.9, 0.1] * 4, [0.9, 0.1] * 4)
    assert Chooser(rows, THRESHOLD).for_cost(1.0) is None
    swapped = rows_of([True, False], [0.51, 0.49], [0.9, 0.1])
    assert Chooser(swapped, THRESHOLD).for_recall(1.0) is None
    wrong = rows_of([False, True], [0.51, 0.49], [0.1, 0.9])
    assert Chooser(wrong, THRESHOLD).for_cost(1.0) == Band(0.5, 1.0)
    close = rows_of([False, True, False], [0.5, 0.49999999999999994, 0.1], [0.1, 0.9, 0.1])
    band = Chooser(close, THRESHOLD).for_recall(1.0)
    assert close.inside(band).tolist() == [False, True, False]


def test_many_scores_are_searched_in_steps_that_keep_the_cost() -> None:
    random = np.random.default_rng(3)
    truth = random.random(3000) < 0.3
    first = 1 / (1 + np.exp(-(2.0 * truth - 1 + random.normal(size=3000) * 1.5)))
    second = 1 / (1 + np.exp(-(4.0 * truth - 2 + random.normal(size=3000) * 1.5)))
    rows = rows_of(truth.tolist(), first.tolist(), second.tolist())
    chooser = Chooser(rows, THRESHOLD)
    curve = [chooser.for_cost(share) for share in (0.0, 0.1, 0.3, 0.6, 1.0)]
    values = [auprc(rows, band) for band in curve]
    assert values == sorted(values)
    assert values[0] == auprc(rows, None)
    assert values[-1] >= auprc(rows, Band(0, 1)) - 1e-9
    shares = [rows.share(band) for band in curve]
    assert all(share <= most for share, most in zip(shares, (0.0, 0.1, 0.3, 0.6, 1.0), strict=True))
    # Not more than one step of the search is left unused where more helps.
    assert shares[1] > 0.1 * (1 - 2 / PLACES)
    assert chooser.for_cost(0.3) == Chooser(rows, THRESHOLD).for_cost(0.3)


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(InputError, match="only one class"):
        Chooser(rows_of([True, True], [0.2, 0.3], [0.2, 0.3]), THRESHOLD)
