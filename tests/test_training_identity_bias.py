"""Error rates by identity term, with guards whose bias is known."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from guardrail.backends.scripted import ScriptedBackend
from guardrail.errors import BackendError
from guardrail.guard import Guard
from guardrail.prompting import Prompt
from guardrail.scoring import Logits
from guardrail.training.identity_bias import SOURCE, TERMS, identity_bias, terms_of
from guardrail.training.labels import HazardTable
from guardrail.training.rows import Row
from guardrail.training.sources import SOURCES
from guardrail.training.sources_prompts import LoaderContext
from guardrail.types import Conversation


def row(text: str, unsafe: float, source: str = SOURCE) -> Row:
    return Row(source, Conversation.parse(text), unsafe)


ROWS = [
    *(row(f"{name} is a nice {term}", 0.0) for name in ("Ana", "Bo", "Cy", "Di") for term in ("gay", "blind")),
    *(row(f"{name} is a vile {term}", 0.95) for name in ("Ana", "Bo", "Cy", "Di") for term in ("gay", "blind")),
    row("You are a vile lawyer", 0.95),
    row("Ana is a nice gay", 0.0, "elsewhere"),
]


def guard_of(*words: str) -> Guard:
    return Guard(ScriptedBackend.load(",".join(words)))


def test_longest_term_counts() -> None:
    assert terms_of("An African American and a trans woman") == {"african american", "trans"}
    assert terms_of("transgender, not bold, not guys") == {"transgender"}
    assert len(set(TERMS)) == len(TERMS) == 50


def test_a_guard_that_flags_a_term_is_found_out() -> None:
    found = identity_bias(guard_of("gay"), ROWS)
    assert (found["rows"], found["not_judged"]) == (16, 0)
    assert found["terms"]["gay"] == {"fpr": 1.0, "fpr_rows": 4, "fnr": 0.0, "fnr_rows": 4}
    assert found["terms"]["blind"] == {"fpr": 0.0, "fpr_rows": 4, "fnr": 1.0, "fnr_rows": 4}
    assert found["fpr"]["overall"] == found["fnr"]["overall"] == 0.5
    assert found["fpr"]["mean_gap"] == found["fnr"]["mean_gap"] == 0.5
    assert set(found["terms"]) == {"gay", "blind"}


def test_a_guard_that_reads_the_rest_has_no_gap() -> None:
    found = identity_bias(guard_of("vile"), ROWS)
    assert found["fpr"] == found["fnr"] == {"overall": 0.0, "mean_gap": 0.0, "mean_gap_by_chance": 0.0}


def test_chance_alone_gives_about_the_gap_that_is_told() -> None:
    chosen = random.Random(0)
    names = ("Zed" if chosen.random() < 0.3 else "Ana" for _ in range(50 * len(TERMS)))
    rows = [row(f"{name} is a nice {TERMS[at % len(TERMS)]}", 0.0) for at, name in enumerate(names)]
    found = identity_bias(guard_of("zed"), [*rows, row("Bo is a vile gay", 0.95)])["fpr"]
    assert found["mean_gap"] == pytest.approx(found["mean_gap_by_chance"], rel=0.35)
    assert found["mean_gap_by_chance"] > 0.03


def test_failures_are_counted_not_taken_for_safe() -> None:
    def script(prompt: Prompt) -> Logits:
        if "Ana" in prompt.segments[1].text:
            raise BackendError("no")
        return Logits(0.0, -3.0, (-3.0,) * len(prompt.taxonomy))

    found = identity_bias(Guard(ScriptedBackend(script)), ROWS)
    assert found["not_judged"] == 4
    assert found["terms"]["gay"]["fnr_rows"] == 3


@pytest.mark.parametrize("rows", [[], ROWS[8:], ROWS[:8], ROWS[-2:]])
def test_without_both_sides_nothing_is_measured(rows: list[Row]) -> None:
    assert identity_bias(guard_of("vile"), rows) == {}


def test_every_term_is_in_the_real_set(data_dir: Path) -> None:
    table = HazardTable({"hate": {"related": [], "wordings": []}})
    source = SOURCES[SOURCE]
    rows = list(source.load(LoaderContext(data_dir / "train" / source.folder, table), SOURCE))
    found = [terms_of(item.text) for item in rows[::7]]
    assert frozenset().union(*found) == set(TERMS)
    assert sum(map(bool, found)) > 0.95 * len(found)
