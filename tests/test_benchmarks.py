"""What the benchmarks compute from their measurements, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.comparing import Comparison, Contestant, compare, exponent, save


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """A slow round slows both: the ratio of the medians would be 4/2."""
    found = Comparison("a", {"ours": [1.0, 2.0, 10.0], "theirs": [3.0, 4.0, 50.0]})
    assert found.ratios == {"ours": 1.0, "theirs": 3.0}
    assert "3.00x" in found.table()


def test_contestants_take_turns_and_the_first_round_warms_up() -> None:
    calls: list[str] = []
    contestants = {name: Contestant(lambda name=name: calls.append(name), 4) for name in ("a", "b")}  # type: ignore[misc]
    found = compare("turns", contestants, 3, {"what": 1})
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in found.seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_law(power: float) -> None:
    sizes = [10.0, 100.0, 1000.0]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_figures_are_written_with_their_ratios(tmp_path: Path) -> None:
    save(tmp_path / "f.json", [Comparison("a", {"ours": [1.0], "theirs": [2.0]}, {"threads": 2})])
    (only,) = json.loads((tmp_path / "f.json").read_text())
    assert only["ratios"] == {"ours": 1.0, "theirs": 2.0}
    assert only["facts"] == {"threads": 2}
