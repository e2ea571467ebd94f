"""Labelled rows: what a line says, what is refused, and that nothing is lost on the way to a file and back."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import RowError, TaxonomyError, UsageError
from guardrail.jsonl import encode
from guardrail.taxonomy import Category, Taxonomy
from guardrail.training.held_out import CONFIGS
from guardrail.training.labelled import LabelSpace, line_of, read_rows, row_from, write_rows
from guardrail.training.labels import HazardTable
from guardrail.training.rows import UNKNOWN, Row, targets
from guardrail.training.sources import SOURCES
from guardrail.training.sources_prompts import LoaderContext
from guardrail.types import Conversation, Role
from tests.strategies import conversations, texts

CANONICAL = LabelSpace(Taxonomy.load("canonical"))
SHOP = LabelSpace(
    Taxonomy(
        "shop", "Shop", (Category("S1", "Refund fraud", "Lies."), Category("S2", "Rudeness"), Category("S10", "Ads"))
    )
)


def labelled(**values: Any) -> Row:
    return row_from({"text": "hello", "label": "unsafe"} | values, SHOP)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Rows as `read_rows` may give them: labels that do not contradict each other."""
    unsafe = draw(st.sampled_from((UNKNOWN, 0.0, 1.0)) | st.floats(0, 1))
    names = st.frozensets(st.sampled_from(SHOP.names))
    violated = draw(names) if unsafe > 0 else frozenset()
    return Row(
        draw(st.sampled_from(("web", "chats"))),
        draw(conversations()),
        unsafe,
        violated,
        draw(names) - violated,
        draw(st.floats(1e-3, 1e3)),
        draw(st.none() | texts().filter(str.strip)),
        draw(st.sampled_from(("", "7", "row-é"))),
    )


@given(rows(), st.booleans())
def test_rows_survive_the_file_format(row: Row, related: bool) -> None:
    table = HazardTable({name: {"related": list(SHOP.names), "wordings": []} for name in SHOP.names})
    line = json.loads(encode(line_of(row, SHOP)))
    assert row_from(line, SHOP, table if related else None) == row


@pytest.mark.parametrize("name", ["aegis2", "edos", "dices", "oasst", "harmless_pairs"])
def test_rows_of_real_sources_survive(name: str, data_dir: Path, tmp_path: Path) -> None:
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    context = LoaderContext(data_dir / "train" / SOURCES[name].folder, table)
    found = list(itertools.islice(SOURCES[name].load(context, name), 500))
    assert write_rows(found, tmp_path / "rows.jsonl", CANONICAL) == len(found) > 100
    assert [item.row for item in read_rows(tmp_path / "rows.jsonl", CANONICAL, table)] == found


def test_labels_are_hazards_where_each_category_has_its_own() -> None:
    assert CANONICAL.are_hazards
    assert CANONICAL.names == CANONICAL.taxonomy.codes
    recoded = LabelSpace(CANONICAL.taxonomy.renumber())
    assert recoded.label("S2") == "terrorism"
    assert recoded.codes(["terrorism", "violent_crimes"]) == ["S1", "S2"]
    default = Taxonomy.load("default")
    assert CANONICAL.covered(default) == tuple(frozenset(item.hazards) for item in default)


def test_labels_are_codes_elsewhere() -> None:
    assert LabelSpace(Taxonomy.load("default")).names == Taxonomy.load("default").codes
    assert SHOP.codes({"S10", "S2"}) == ["S2", "S10"]
    with pytest.raises(UsageError, match="labels of 'shop' cannot be read under 'default'"):
        SHOP.covered(Taxonomy.load("default"))
    twice = Taxonomy("t", "T", (Category("a", "A", hazards=("hate",)), Category("b", "B", hazards=("hate",))))
    assert LabelSpace(twice).names == ("a", "b")


def test_what_is_possible_besides() -> None:
    assert labelled().possible == set(SHOP.names)
    assert labelled(categories=None).possible == set(SHOP.names)
    assert labelled(categories=["S1"]).possible == set()
    assert labelled(categories=["S1"], possible=["S10"]).possible == {"S10"}
    assert labelled(label=0).possible == labelled(label="safe").possible == set()
    assert labelled(label=0.01).possible == labelled(label=0.4).possible == set(SHOP.names)
    assert labelled(label=0.4, categories=[]).possible == set()
    assert labelled(label=None).possible == set(SHOP.names)
    related = HazardTable({name: {"related": ["S2"] * (name == "S1"), "wordings": []} for name in SHOP.names})
    line = {"text": "x", "label": "unsafe", "categories": ["S1"]}
    assert row_from(dict(line), SHOP, related).possible == {"S2"}
    assert row_from(line | {"possible": []}, SHOP, related).possible == set()


@pytest.mark.parametrize("label", [0.01, 0.49, 0.5, 0.7])
def test_a_soft_label_without_categories_teaches_none_of_them(label: float) -> None:
    row = labelled(label=label)
    assert targets(row, SHOP.labels) == (label, [UNKNOWN] * 3)
    # What is left of the policy may be what somebody saw in it, or not.
    assert targets(row, SHOP.labels[2:]) == (UNKNOWN, [UNKNOWN])
    assert line_of(row, SHOP) == {"text": "hello", "label": label, "source": "rows"}


def test_a_soft_label_with_no_category_teaches_that_none_is_violated() -> None:
    assert targets(labelled(label=0.3, categories=[]), SHOP.labels) == (0.3, [0.0] * 3)
    assert targets(labelled(label="safe"), SHOP.labels) == (0.0, [0.0] * 3)


def test_shapes_are_those_of_score_and_a_prompt_alone() -> None:
    prompt = row_from({"prompt": "a", "label": 0}, SHOP)
    assert (prompt.text, prompt.conversation.role, prompt.unsafe) == ("a", Role.USER, 0.0)
    answer = row_from({"prompt": "a", "response": "b", "label": 0.25}, SHOP)
    assert (answer.text, answer.conversation.role, answer.unsafe) == ("b", Role.ASSISTANT, 0.25)
    chat = [{"role": "system", "content": "be nice"}, {"role": "user", "content": "hi"}]
    assert row_from({"messages": chat, "label": "safe"}, SHOP).conversation == Conversation.parse("hi")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "x"}, "label: missing"),
        ({"text": "x", "label": "bad"}, "label: cannot be 'bad'"),
        ({"text": "x", "label": 1.5}, r"label: cannot be 1\.5"),
        ({"text": "x", "label": True}, "label: cannot be True"),
        ({"text": "x", "label": "unsafe", "categories": []}, "categories: an unsafe row violates none"),
        ({"text": "x", "label": "safe", "categories": ["S1"]}, "categories: a safe row violates none"),
        ({"text": "x", "label": None, "categories": ["S1"]}, "label: is null"),
        ({"text": "x", "label": 1, "categories": "S1"}, "categories: expected a list of codes, got str"),
        ({"text": "x", "label": 1, "categories": ["S1", "S3"]}, r"categories\[1\]: the taxonomy 'shop' has no .* 'S3'"),
        ({"text": "x", "label": 1, "categories": [["S1"]]}, r"categories\[0\]"),
        ({"text": "x", "label": 1, "categories": ["S1"], "possible": ["S1"]}, "possible: names a category that"),
        ({"text": "x", "label": 1, "weight": 0}, "weight: cannot be 0"),
        ({"text": "x", "label": 1, "source": 3}, "source: expected a text"),
        ({"text": "x", "label": 1, "id": [1]}, "id: expected a text or a whole number"),
        ({"label": 1}, "there is nothing to judge"),
        ({"text": "x", "prompt": "y", "label": 1}, "text and prompt are in one row"),
        ({"text": " ", "label": 1}, "text: is empty"),
    ],
)
def test_bad_rows_name_file_line_and_field(line: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(encode({"text": "fine", "label": "safe"}) + b"\n" + encode(line))
    with pytest.raises(RowError, match=rf"rows\.jsonl:3: {message}"):
        list(read_rows(file, SHOP))


def test_place_source_and_keys_that_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl.gz"
    lines = [{"text": "a", "label": 1, "lang": "en", "id": 7}, {"text": "b", "label": 0, "lang": "de", "source": "web"}]
    file.write_bytes(gzip.compress(b"".join(map(encode, lines))))
    unknown: Counter[str] = Counter()
    first, second = read_rows(file, SHOP, unknown=unknown)
    assert unknown == {"lang": 2}
    assert (first.row.source, first.row.id, second.row.source) == ("chats", "7", "web")
    assert second.place == f"{file}:2"


def test_labels_of_another_taxonomy_are_not_written() -> None:
    with pytest.raises(UsageError, match="'shop' has no label 'hate'"):
        line_of(Row("s", Conversation.parse("x"), 1.0, frozenset({"hate"})), SHOP)


def test_a_related_file_names_labels_of_the_taxonomy(tmp_path: Path) -> None:
    file = tmp_path / "related.yaml"
    file.write_text('S1:\n  related: [S2]\n  wordings: ["Fraud: Lying to get money."]\n', encoding="utf-8")
    table = HazardTable.read(file, SHOP.names)
    assert table.possible(["S2"]) == {"S1"}
    assert table.possible(["S10"]) == set()
    assert table.wordings["S1"] == ("Fraud: Lying to get money.",)
    file.write_text("S1:\n  related: [S3]\n", encoding="utf-8")
    with pytest.raises(TaxonomyError, match=r"related\.yaml:2: S1\.related\[0\]: there is no label 'S3'"):
        HazardTable.read(file, SHOP.names)
    file.write_text("S4: {}\n", encoding="utf-8")
    with pytest.raises(TaxonomyError, match=r"related\.yaml:1: S4: unknown key"):
        HazardTable.read(file, SHOP.names)
