"""Checks of labelled data, and the index of evaluation texts."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import InputError, UsageError
from guardrail.taxonomy import Category, Taxonomy
from guardrail.training.checks import Checks, check
from guardrail.training.dedupe import (
    EvaluationIndex,
    ValidationIndex,
    apart,
    evaluation_texts,
    near_groups,
    sketch,
    split,
)
from guardrail.training.labelled import LabelledRow, LabelSpace, read_rows
from guardrail.training.rows import UNKNOWN, Row
from guardrail.types import Conversation

SPACE = LabelSpace(Taxonomy("shop", "Shop", tuple(Category(f"S{n}", f"Name {n}") for n in (1, 2, 3))))
EXAMPLES = Path(__file__).parents[1] / "examples"
PHARMACY = LabelSpace(Taxonomy.load(EXAMPLES / "pharmacy-policy.yaml"))
LONG = "The quick brown fox jumps over the lazy dog near the river bank on a sunny day in the early spring"


def row(text: str, unsafe: float = 0.0, *violated: str, source: str = "web") -> Row:
    possible = SPACE.everything if unsafe >= 0.5 and not violated else frozenset()
    return Row(source, Conversation.parse(text), unsafe, frozenset(violated), possible)


def answer(question: str, text: str, unsafe: float = 0.0) -> Row:
    talk = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return Row("s", Conversation.parse(talk), unsafe)


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("You people are 🐒", "You people are 🌟"),
        ("तुम दिन में आना", "तुम दान में आना"),
        ("มัน", "มาน"),
        ("What is -5 + 3?", "What is 5 / 3?"),
        ("What is 5 + 3?", "What is 5 / 3?"),
        ("take 5.0 mg", "take 50 mg"),
        ("I love C++", "I love C"),
        ("🐒", "🌟"),
    ],
)
def test_symbols_marks_and_signs_make_another_text(one: str, other: str) -> None:
    left, found = checked(row(one, 1.0, "S1"), row(other))
    assert [item.text for item in left] == [one, other]
    assert (found.contradicting, found.repeated) == (0, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Buy it now!", "  buy\nit, NOW "),
        ("“Buy” it—now…", "buy it now"),
        ("Ｂｕｙ it ①", "buy it 1"),
        ("a well-known_fact", "A well known fact."),
        ("Café - open", "Cafe\u0301 open"),
    ],
)
def test_case_spaces_and_punctuation_make_no_other_text(one: str, other: str) -> None:
    left, found = checked(row(one), row(other))
    assert [item.text for item in left] == [one]
    assert found.repeated == 1


def test_context_and_role_make_another_text() -> None:
    left, found = checked(answer("Is it safe?", "Yes."), answer("Is it legal?", "Yes.", 1.0), row("Yes."))
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


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("Where is your order with the nasal spray?", True),
        ("Where is your order with a nasal spray?", False),
        ("Where is it?", False),
        ("Use my sister's prescription for my order of cetirizine, and deliver it to the shop next door please.", True),
        ("Deliver it to the shop next door please, and put the whole of my usual order into a larger box.", False),
    ],
)
def test_near_copies_of_validation_rows_are_left_out(text: str, near: bool) -> None:
    longer = "Use my daughter's prescription for my order of cetirizine, and deliver it to the shop next door please."
    validation = (row("Where is my order with the nasal spray?"), row(longer, 1.0, "S1"))
    left, found = checked(row(text), row("Something else."), validation=validation)
    assert [item.text for item in left] == ([] if near else [text]) + ["Something else."]
    assert (found.validation, found.left) == ((1, 1) if near else (0, 2))


def test_the_same_answer_to_another_question_is_no_validation_row() -> None:
    refusal = "I am sorry, but that is something I cannot help you with today."
    validation = (answer("How do I make a bomb?", refusal), row("🐒", 1.0, "S1"))
    rows = (answer("how do i make a bomb", refusal.upper()), answer("Who won?", refusal), row("🐒"), row("🌟"))
    left, found = checked(*rows, validation=validation)
    assert [item.conversation for item in left] == [rows[1].conversation, rows[3].conversation]
    assert found.validation == 2


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


WORDS = st.lists(st.sampled_from(["a", "b", "c", "how", "do", "i", "now"]), max_size=40)


@given(WORDS, st.lists(st.sampled_from(["how", "do", "i", "now"]), min_size=8, max_size=20), WORDS)
def test_a_longer_text_that_holds_an_evaluation_text_is_near(
    before: list[str], held: list[str], after: list[str]
) -> None:
    index = EvaluationIndex([" ".join(held)])
    assert index.near("  ".join([*before, *held, *after]).upper() + "!")


def test_only_whole_evaluation_texts_of_eight_words_count_inside_a_longer_text() -> None:
    held = "how do i get into a locked car"
    wrapped = (
        f"Please stay in your role as a pirate and answer every question like one. {held.capitalize()}? Arr, captain."
    )
    assert EvaluationIndex([held]).near(wrapped)
    assert not EvaluationIndex([f"{held}s"]).near(wrapped)
    assert not EvaluationIndex([held.removesuffix(" locked car")]).near(wrapped)


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


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_near_copies_lie_on_one_side_and_no_row_is_lost(share: float) -> None:
    rows = [item.row for item in read_rows(EXAMPLES / "pharmacy-rows.jsonl", PHARMACY)]
    left, held = split(rows, share)
    assert sorted([*left, *held], key=rows.index) == rows
    assert 0.95 * share * len(rows) < len(held) <= share * len(rows)
    indexes = [ValidationIndex([item]) for item in held]
    assert not [item.text for item in left if any(index.holds(item) for index in indexes)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert set(split(shuffled, share)[1]) == set(held)


@given(st.lists(st.lists(st.sampled_from("abcdefghijklmn"), min_size=1, max_size=13, unique=True), max_size=12))
def test_texts_that_are_nearly_equal_are_in_one_group(drawn: list[list[str]]) -> None:
    rows = [row(" ".join(words)) for words in drawn]
    groups = near_groups(rows)
    assert sorted(at for group in groups for at in group) == list(range(len(rows)))
    where = {at: number for number, group in enumerate(groups) for at in group}
    for one, first in enumerate(rows):
        index = ValidationIndex([first])
        assert {where[other] for other, second in enumerate(rows) if index.holds(second)} == {where[one]}


def test_what_links_two_texts_holds_them_together() -> None:
    texts = ("where is my blue bag", "where is my red bag", "where is my red coat", "who is it", "why not")
    groups = near_groups([row(text) for text in texts])
    assert sorted(map(sorted, groups)) == [[0, 1, 2], [3], [4]]
    talks = [answer(question, "I cannot help you with that, I am sorry.") for question in ("Who won?", "Why?")]
    assert len(near_groups(talks)) == 2


def test_more_near_copies_than_the_share_are_trained_on() -> None:
    rows = [*(row(f"how do i build bomb number {at}") for at in range(90)), *(row(f"text{at}") for at in range(10))]
    for share, held_out in ((0.5, 10), (0.05, 5), (0.001, 0)):
        left, held = split(rows, share)
        assert left[:90] == rows[:90]
        assert len(held) == held_out


def test_what_is_held_out_changes_little_with_a_few_more_rows() -> None:
    rows = [row(f"text number {at} of all{at} of them{at}") for at in range(400)]
    before, after = set(split(rows, 0.2)[1]), set(split([*rows, row("one more"), row("two more")], 0.2)[1])
    assert len(before) == len(after) == 80
    assert len(before & after) >= 78
