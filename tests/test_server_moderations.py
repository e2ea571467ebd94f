"""OpenAI's thirteen keys from decisions under any taxonomy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.backends.scripted import ScriptedBackend
from guardrail.guard import Guard
from guardrail.server.moderations import Moderations
from guardrail.taxonomy import Taxonomy
from guardrail.taxonomy_map import mapping
from guardrail.types import CategoryScore, Decision, Role, Verdict

TARGET = Taxonomy.load("openai-moderation")
GUARDS = {
    name: Guard(ScriptedBackend.load(), taxonomy=Taxonomy.load(name))
    for name in ("default", "llama-guard-1", "llama-guard-3", "openai-moderation")
}
SCORED = {name: Moderations(guard) for name, guard in GUARDS.items()}
WAYS = {name: mapping(guard.taxonomy, TARGET) for name, guard in GUARDS.items()}


@pytest.mark.parametrize("name", GUARDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_scores_and_flags_are_those_of_the_mapping(name: str, data: st.DataObject) -> None:
    taxonomy = GUARDS[name].taxonomy
    scored = st.tuples(st.floats(0, 1), st.booleans())
    drawn = data.draw(st.lists(scored, min_size=len(taxonomy), max_size=len(taxonomy)))
    categories = tuple(
        CategoryScore(category.code, category.name, score, flagged)
        for category, (score, flagged) in zip(taxonomy, drawn, strict=True)
    )
    decision = Decision(Verdict.SAFE, False, 0.1, categories, Role.USER, "m@1", taxonomy.ref, "t@1")
    response = SCORED[name].response([decision, None])
    found, blank = response["results"]
    way = WAYS[name]
    scores = way.convert({category.code: category.score for category in categories})
    flags = way.convert({category.code: float(category.flagged) for category in categories})
    assert found["category_scores"] == {code: score or 0.0 for code, score in scores.items()}
    assert found["categories"] == {code: flag == 1.0 for code, flag in flags.items()}
    assert list(found["categories"]) == list(TARGET.codes)
    assert all(type(flag) is bool for flag in found["categories"].values())
    assert set(blank["category_scores"].values()) == {0.0}
    assert "guardrail" not in blank
    assert response["guardrail"]["unmapped"] == list(way.without_counterpart)
    assert response["guardrail"]["not_shown"] == list(way.going_nowhere)


def test_one_response_does_not_leak_into_the_next() -> None:
    taxonomy = GUARDS["default"].taxonomy
    worst = tuple(CategoryScore(category.code, category.name, 1.0, True) for category in taxonomy)
    decision = Decision(Verdict.UNSAFE, True, 1.0, worst, Role.USER, "m@1", taxonomy.ref, "t@1")
    flagged, clean = SCORED["default"].response([decision, None])["results"]
    assert flagged["flagged"] is True
    assert clean["flagged"] is False
    assert not any(clean["categories"].values())
    assert not any(SCORED["default"].response([None])["results"][0]["categories"].values())
