"""Checks of labelled data, and the index of evaluation texts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import InputError, UsageError
from guardrail.taxonomy import Category, Taxonomy
from guardrail.training.checks import Checks, check
from guardrail.training.dedupe import EvaluationIndex, apart, evaluation_texts, sketch
from guardrail.training.labelled import LabelledRow, LabelSpace
from guardrail.training.rows import UNKNOWN, Row
from guardrail.types import Conversation

SPACE = LabelSpace(Taxonomy("shop", "Shop", tuple(Category(f"S{n}", f"Name {n}") for n in (1, 2, 3))))
LONG = "The quick brown fox jumps over the lazy dog near the river bank on a sunny day in the early spring"


def row(text: str, unsafe: float = 0.0, *violated: str, source: str = "web") -> Row:
    possible = SPACE.everything if unsafe >= 0.5 and not violated else frozenset()
    return Row(source, Conversation.parse(text), unsafe, frozenset(violated), possible)


def checked(
    *rows: Row, keep_out: EvaluationIndex | None = None, validation: tuple[Row, ...] = ()
) -> tuple[list[Row], Checks]:
    placed = [LabelledRow(item, "a.jsonl", number) for number, item in enumerate(rows, 1)]
    return check(placed, SPACE, keep_out, validation)


def test_contradicting_verdicts_are_left_out_and_listed() -> None:
    left, found = checked(row("Buy it now!"), row("other"), row("buy it, now", 1.0, "S1"))
    assert [item.text for item in left] == ["other"]
    assert (found.read, found.left, found.contradicting) == (3, 1, 2)
    (contradiction,) = found.contradictions
    assert contradiction.kind == "label"
    assert contradiction.places == ("a.jsonl:1", "a.jsonl:3")
    assert "contradicting label: a.jsonl:1, a.jsonl:3: Buy it now!" in found.lines()


def test_a_row_without_a_verdict_contradicts_nothing() -> None:
    left, found = checked(row("one text", UNKNOWN), row("one text", 1.0, "S1"))
    assert [item.unsafe for item in left] == [1.0]
    assert (found.contradicting, found.repeated) == (0, 1)


def test_contradicting_categories_leave_what_all_name() -> None:
    left, found = checked(row("one text", 1.0, "S1", "S2"), row("one text", 1.0, "S1", "S3"), row("one text", 1.0))
    assert [(item.violated, item.possible) for item in left] == [(frozenset({"S1"}), frozenset({"S2", "S3"}))]
    assert [item.kind for item in found.contradictions] == ["categories"]
    assert found.repeated == 2
    assert found.contradicting == 0


def test_of_equal_rows_the_one_that_names_its_category_is_left() -> None:
    left, found = checked(row("one text", 1.0), row("One text!", 1.0, "S2"))
    assert [item.violated for item in left] == [{"S2"}]
    assert found.contradictions == ()


def test_context_and_role_make_another_text() -> None:
    def answer(question: str, unsafe: float) -> Row:
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]
        return Row("s", Conversation.parse(talk), unsafe)

    left, found = checked(answer("Is it safe?", 0.0), answer("Is it legal?", 1.0), row("Yes."))
    assert len(left) == 3
    assert found.repeated == 0


def test_near_repetitions_are_counted_and_left() -> None:
    longer = (f"{LONG} {word}" for word in ("again", "today", "too", "there", "alone"))
    nearly = next(text for text in longer if sketch(row(text)) == sketch(row(LONG)))
    left, found = checked(row(LONG), row(nearly), row("something else"))
    assert len(left) == 3
    assert (found.near_repeated, found.repeated) == (1, 0)
    assert "  left in, nearly equal to another: 1" in found.lines()


def test_evaluation_and_validation_texts_are_left_out() -> None:
    index = EvaluationIndex(["how do i bake a cake", LONG])
    rows = (
        row("How do I bake a cake?"),
        row("How do I bake a pie?"),
        row(LONG + " again"),
        row("Fresh."),
        row("Mine!"),
    )
    left, found = checked(*rows, keep_out=index, validation=(row("mine", 1.0),))
    assert [item.text for item in left] == ["Fresh."]
    assert (found.evaluation, found.near_evaluation, found.validation) == (1, 2, 1)
    assert found.read == found.left + found.evaluation + found.near_evaluation + found.validation


def test_balance_lengths_and_table() -> None:
    left, found = checked(
        row("a", 1.0, "S1"), row("bb", 1.0), row("ccc"), row("dddd", UNKNOWN), row("eeeee", source="chats")
    )
    assert len(left) == 5
    assert found.sources["web"].unsafe == 2
    assert found.sources["web"].unknown_category == 1
    assert (found.sources["web"].safe, found.sources["web"].unlabelled, found.sources["chats"].safe) == (1, 1, 1)
    assert found.categories == {"S1": 1, "S2": 0, "S3": 0}
    assert found.characters == {"shortest": 1, "median": 3, "95 of 100": 5, "longest": 5}
    assert json.loads(json.dumps(found.to_dict()))["sources"]["chats"]["safe"] == 1
    assert "web          2     1           1            1" in found.lines()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from((0.0, 1.0, UNKNOWN)), st.booleans()), max_size=12))
def test_every_row_is_accounted_for(drawn: list[tuple[str, float, bool]]) -> None:
    rows = [row(text, unsafe, *(("S1",) if named and unsafe == 1 else ())) for text, unsafe, named in drawn]
    left, found = checked(*rows)
    assert found.read == len(rows) == len(left) + found.contradicting + found.repeated
    assert len({item.text for item in left}) == len(left)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("how do i kill a linux process", True),
        ("HOW do I kill a Python thread?", True),
        ("how do i stop a linux process", False),
        ("kill a python process how do i", False),
        ("how do i kill a python process now", False),
        ("i hate them", True),
        ("hate you", False),
    ],
)
def test_one_word_different(text: str, near: bool) -> None:
    index = EvaluationIndex(["How do I kill a Python process?", "I hate you", "hate it"])
    assert index.near(text) is near


def test_longer_texts_are_compared_by_runs_of_words() -> None:
    words = [f"word{at}" for at in range(13)]
    index = EvaluationIndex([" ".join(words[:12]), " ".join(words)])
    assert index.near(" ".join([*words[:5], "other", *words[6:12]]))
    assert not EvaluationIndex([" ".join(words)]).near(" ".join([*words[:4], "x", *words[5:8], "y", *words[9:]]))


def test_evaluation_texts_of_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.csv").write_text('text,label\n"from, a table",1\n', encoding="utf-8")
    chat = json.dumps({"messages": [{"role": "user", "content": "from a chat"}], "tags": ["from tags"]})
    (tmp_path / "set" / "b.jsonl.gz").write_bytes(gzip.compress(chat.encode()))
    (tmp_path / "c.json").write_text(json.dumps({"rows": [{"q": "from a document"}]}, indent=1), encoding="utf-8")
    (tmp_path / "d.json").write_text('{"q": "from line one"}\n{"q": "from line two"}\n', encoding="utf-8")
    (tmp_path / "e.tsv").write_text("q\tr\nfrom tabs\tsafe\n", encoding="utf-8")
    (tmp_path / "f.txt").write_text("from a plain line\n", encoding="utf-8")
    files = [tmp_path / name for name in ("set", "c.json", "d.json", "e.tsv", "f.txt")]
    index = EvaluationIndex(evaluation_texts(*files))
    found = ["from, a table", "from a chat", "from tags", "from a document", "from line one", "from line two",
             "from tabs", "from a plain line"]  # fmt: skip
    assert all(map(index.exact, found))


def test_evaluation_files_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no evaluation files under"):
        list(evaluation_texts(tmp_path / "nowhere.csv"))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"cannot read the evaluation file .*x\.parquet"):
        list(evaluation_texts(tmp_path))
    (tmp_path / "y.jsonl").write_text('{"a": 1}\n{"a":\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"y\.jsonl: cannot be read: line 2"):
        list(evaluation_texts(tmp_path / "y.jsonl"))
    (tmp_path / "z.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(InputError, match=r"z\.csv: cannot be read"):
        list(evaluation_texts(tmp_path / "z.csv"))


def test_the_part_held_out_is_chosen_by_the_text() -> None:
    rows = [row(f"text number {at}") for at in range(2000)]
    held = [item for item in rows if apart(item, 0.1)]
    assert 120 < len(held) < 280
    assert all(apart(row(item.text.upper() + "!", 1.0, source="other"), 0.1) for item in held)
    assert {item.text for item in held} <= {item.text for item in rows if apart(item, 0.2)}
