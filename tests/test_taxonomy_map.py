from __future__ import annotations

import json
import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from guardrail import resources
from guardrail.cli_taxonomy import app
from guardrail.errors import TaxonomyError
from guardrail.taxonomy import Category, Taxonomy
from guardrail.taxonomy_map import Relation, mapping

ALL = {name: Taxonomy.load(name) for name in resources.names("taxonomies", ".yaml")}
DISJOINT = [
    name
    for name, taxonomy in ALL.items()
    if all(not set(one.hazards) & set(other.hazards) for one, other in combinations(taxonomy, 2))
]


def relations(source: str, target: str) -> dict[tuple[str, str], str]:
    return {(pair.source, pair.target): pair.relation.value for pair in mapping(ALL[source], ALL[target]).pairs}


def test_relations_by_hand() -> None:
    def one(code: str, *hazards: str) -> Taxonomy:
        return Taxonomy("a", "A", (Category(code, "Name", hazards=hazards),))

    source = one("S1", "hate", "fraud")
    for hazards, relation in (
        (("fraud", "hate"), Relation.EXACT),
        (("fraud", "hate", "drugs"), Relation.BROADER),
        (("fraud",), Relation.NARROWER),
        (("fraud", "drugs"), Relation.OVERLAP),
    ):
        (pair,) = mapping(source, one("T1", *hazards)).pairs
        assert pair.relation is relation
        assert pair.hazards == tuple(hazard for hazard in ("hate", "fraud") if hazard in hazards)
    nothing = mapping(source, one("T1", "drugs"))
    assert (nothing.pairs, nothing.without_counterpart, nothing.going_nowhere) == ((), ("T1",), ("S1",))


def test_openai_to_default_by_hand() -> None:
    found = mapping(ALL["openai-moderation"], ALL["default"])
    scores = {code: (index + 1) / 100 for index, code in enumerate(found.source.codes)}
    assert found.convert(scores) == {
        **dict.fromkeys(found.target.codes),
        "G1": 0.13,
        "G3": 0.11,
        "G4": 0.09,
        "G5": 0.06,
        "G8": 0.05,
        "G9": 0.04,
        "G12": 0.10,
        "G13": 0.02,
    }
    assert found.without_counterpart == ("G2", "G6", "G7", "G10", "G11", "G14")
    assert found.going_nowhere == ()
    expected = relations("openai-moderation", "default")
    assert expected["sexual/minors", "G3"] == "exact"
    assert expected["hate", "G9"] == "broader"
    assert expected["illicit/violent", "G5"] == "narrower"
    assert expected["illicit/violent", "G1"] == "overlap"
    assert ("hate/threatening", "G13") not in expected


def test_default_to_openai_by_hand() -> None:
    found = mapping(ALL["default"], ALL["openai-moderation"])
    scores = {code: int(code[1:]) / 100 for code in found.source.codes}
    expected = (0.13, 0.13, 0.09, 0.09, 0.08, 0.05, 0.04, 0.04, 0.04, 0.12, 0.03, 0.01, 0.01)
    assert found.convert(scores) == dict(zip(found.target.codes, expected, strict=True))
    assert found.without_counterpart == ()
    assert found.going_nowhere == ("G2", "G6", "G7", "G10", "G11", "G14")


def test_the_same_code_is_another_category_in_the_next_version() -> None:
    found = relations("llama-guard-2", "llama-guard-3")
    assert ("S5", "S5") not in found
    assert found["S5", "S6"] == "exact"
    assert mapping(ALL["llama-guard-2"], ALL["llama-guard-3"]).without_counterpart == ("S5", "S13", "S14")
    scores = dict.fromkeys(ALL["llama-guard-3"].codes, 0.0) | {"S5": 0.9}
    back = mapping(ALL["llama-guard-3"], ALL["llama-guard-2"])
    assert back.going_nowhere == ("S5", "S13", "S14")
    assert set(back.convert(scores).values()) == {0.0}


@pytest.mark.parametrize("name", DISJOINT)
def test_a_taxonomy_maps_onto_itself(name: str) -> None:
    taxonomy = ALL[name]
    found = mapping(taxonomy, taxonomy)
    scores = {code: index / len(taxonomy) for index, code in enumerate(taxonomy.codes)}
    assert found.convert(scores) == scores
    assert {pair.relation for pair in found.pairs} == {Relation.EXACT}


def test_most_taxonomies_are_disjoint() -> None:
    assert set(DISJOINT) == set(ALL) - {"aegis-2", "ailuminate", "beavertails", "llama-guard-1"}


@given(st.sampled_from(sorted(ALL)), st.sampled_from(sorted(ALL)), st.data())
def test_laws(source: str, target: str, data: st.DataObject) -> None:
    found, back = mapping(ALL[source], ALL[target]), mapping(ALL[target], ALL[source])
    scores = {code: data.draw(st.floats(0, 1)) for code in found.source.codes}
    converted = found.convert(scores)
    assert tuple(converted) == found.target.codes
    for category in found.target:
        shared = [scores[c.code] for c in found.source if set(c.hazards) & set(category.hazards)]
        assert converted[category.code] == (max(shared) if shared else None)
    assert found.without_counterpart == back.going_nowhere
    turned = {"broader": "narrower", "narrower": "broader", "exact": "exact", "overlap": "overlap"}
    assert relations(source, target) == {(b, a): turned[r] for (a, b), r in relations(target, source).items()}


def test_scores_must_be_complete_known_and_finite() -> None:
    found = mapping(ALL["llama-guard-3"], ALL["llama-guard-2"])
    scores = dict.fromkeys(found.source.codes, 0.5)
    with pytest.raises(TaxonomyError, match="there is no score for 'S6'"):
        found.convert({code: score for code, score in scores.items() if code != "S6"})
    found.convert({code: score for code, score in scores.items() if code != "S13"})
    with pytest.raises(TaxonomyError, match="has no category 'S15'"):
        found.convert({**scores, "S15": 0.5})
    with pytest.raises(TaxonomyError, match="the score of 'S1' is nan"):
        found.convert({**scores, "S1": math.nan})


def test_map_prints_a_table() -> None:
    result = CliRunner().invoke(app, ["map", "llama-guard-2", "llama-guard-3"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["S6", "Specialized", "Advice", "exact", "S5", "specialized_advice"] in rows
    assert "no counterpart, so no score: llama-guard-3 S5 Defamation" in result.stdout
    assert "goes nowhere" not in result.stdout
    back = CliRunner().invoke(app, ["map", "llama-guard-3", "llama-guard-2"])
    assert "goes nowhere, so its score is lost: llama-guard-3 S13 Elections" in back.stdout


def test_map_prints_json() -> None:
    result = CliRunner().invoke(app, ["map", "openai-moderation", "default", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == mapping(ALL["openai-moderation"], ALL["default"]).to_dict()
    assert found["source"] == ALL["openai-moderation"].ref
    first = {"source": "illicit/violent", "target": "G1", "relation": "overlap", "hazards": ["guns"]}
    assert found["pairs"][0] == first
