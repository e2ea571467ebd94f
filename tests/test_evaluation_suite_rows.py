"""Records to items: formats, labels, votes, masks, conversations, and an error line for all that does not fit."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import ConversationError, InputError, RowError
from guardrail.evaluation.suite_categories import CategoryColumns, CategoryNames, CategoryObject
from guardrail.evaluation.suite_conversation import split_turns
from guardrail.evaluation.suite_label import AnyCategory, Values, Votes
from guardrail.evaluation.suite_record import Record, as_text
from guardrail.evaluation.suite_rows import LoadedSuite, load_items
from guardrail.evaluation.suite_spec import Turns
from guardrail.types import Conversation, Role
from tests.evaluation_suites import said, suite, write

ROWS: list[dict[str, Any]] = [{"text": "one", "bad": 1}, {"text": "zwei — δύο", "bad": 0}, {"text": "three", "bad": 1}]
HATE: dict[str, Any] = {"taxonomy": {"id": "openai-moderation", "select": ["hate", "sexual"]}}
ANSWER: dict[str, Any] = {"judged": "assistant", "fields": {"prompt": "q", "response": "a"}}


def load(folder: Path, rows: Any = ROWS, name: str = "rows.jsonl", **changes: Any) -> LoadedSuite:
    """The rows, loaded by a suite."""
    write(folder / name, rows)
    return load_items(suite(folder, **({"source": {"files": [name]}} | changes)), folder)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_items(tmp_path: Path, kind: str, packed: str) -> None:
    loaded = load(tmp_path, name=f"rows.{kind}{packed}")
    assert [said(item) for item in loaded.items] == [[("user", row["text"])] for row in ROWS]
    assert [item.unsafe for item in loaded.items] == [True, False, True]
    assert [item.id for item in loaded.items] == ["1", "2", "3"]
    assert (loaded.records, loaded.unsafe, loaded.unknown) == (3, 2, 0)
    assert loaded.sha256 == hashlib.sha256((tmp_path / f"rows.{kind}{packed}").read_bytes()).hexdigest()


@pytest.mark.parametrize("place", ["rows.jsonl", "eval/rows.jsonl", "rows.jsonl.gz", "eval/rows.jsonl.gz"])
def test_a_file_is_found_below_the_folder_or_its_folder_eval_and_packed(tmp_path: Path, place: str) -> None:
    write(tmp_path / place, ROWS)
    assert len(load_items(suite(tmp_path), tmp_path).items) == 3


def test_a_packed_file_may_be_unpacked(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", ROWS)
    tiny = suite(tmp_path, source={"files": ["rows.jsonl.gz"]})
    assert len(load_items(tiny, tmp_path).items) == 3


def test_several_files_are_read_in_order_with_columns_of_their_own(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", [{"text": "one"}, {"text": "two"}])
    second = write(tmp_path / "b.jsonl", [{"text": "three"}])
    files = [{"path": "a.csv", "with": {"kind": "bad"}}, {"path": "b.jsonl", "with": {"kind": "good"}}]
    tiny = suite(
        tmp_path,
        source={"files": files},
        label={"column": "kind", "unsafe": ["bad"], "safe": ["good"]},
        slices={"kind": "kind"},
    )
    loaded = load_items(tiny, tmp_path)
    found = [(item.id, item.unsafe, item.slices["kind"]) for item in loaded.items]
    assert found == [("1", True, "bad"), ("2", True, "bad"), ("3", False, "good")]
    assert loaded.sha256 == hashlib.sha256(first.read_bytes() + second.read_bytes()).hexdigest()


def test_lists_of_records_below_keys(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"x": ROWS[:2], "y": ROWS[2:]}))
    one = load_items(suite(tmp_path, source={"files": ["a.json"], "records": "y"}), tmp_path)
    assert [said(item)[0][1] for item in one.items] == ["three"]
    every = suite(tmp_path, source={"files": ["a.json"], "records": "*"}, slices={"key": "key"})
    assert [item.slices["key"] for item in load_items(every, tmp_path).items] == ["x", "x", "y"]


def test_values_are_compared_as_text(tmp_path: Path) -> None:
    values = [True, "True", "true", 1, "1", 1.0, "1.0", "yes", False, 0, "0.0", "no"]
    label = {"column": "bad", "unsafe": [True, 1, "yes"], "safe": [False, 0, "no"]}
    loaded = load(tmp_path, [{"text": "x", "bad": value} for value in values], label=label)
    assert [item.unsafe for item in loaded.items] == [True] * 8 + [False] * 4


def test_what_the_suite_calls_unknown_is_unknown(tmp_path: Path) -> None:
    rows = [{"text": "a", "bad": None}, {"text": "b"}, {"text": "c", "bad": ""}, {"text": "d", "bad": "?"}, ROWS[0]]
    rows = [rows[-1], *rows[:-1]]
    label = {"column": "bad", "unsafe": [1], "safe": [0], "unknown": [None, "?"]}
    loaded = load(tmp_path, rows, label=label, expect={"items": 5, "unsafe": 1, "unknown": 4})
    assert [item.unsafe for item in loaded.items] == [True, None, None, None, None]


def test_others_are_unsafe_but_nothing_is_not(tmp_path: Path) -> None:
    label = {"column": "bad", "unsafe": "others", "safe": ["Safe"]}
    loaded = load(tmp_path, [{"text": "a", "bad": "Safe"}, {"text": "b", "bad": "Violence, Threat"}], label=label)
    assert [item.unsafe for item in loaded.items] == [False, True]
    with pytest.raises(RowError, match=r"rows\.jsonl:1: bad: the label is ''"):
        load(tmp_path, [{"text": "a", "bad": None}], label=label)


def test_where_takes_what_matches_every_condition(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "bad": 1, "kind": "x", "id": None},
        {"text": "b", "bad": 1, "kind": "x", "id": 7},
        {"text": "c", "bad": "?", "kind": "z", "id": None},
        {"text": "d", "bad": 0, "kind": "y", "id": float("nan")},
    ]
    where = [{"column": "kind", "not": ["z"]}, {"column": "id", "present": False}]
    loaded = load(tmp_path, rows, name="rows.json", where=where)
    assert [(item.id, item.unsafe) for item in loaded.items] == [("1", True), ("4", False)]
    assert loaded.records == 4
    present = load(tmp_path, rows, name="rows.json", where={"column": "id", "present": True})
    assert [item.id for item in present.items] == ["2"]


def test_one_record_may_become_several_items(tmp_path: Path) -> None:
    rows = [
        {"q": "why", "a0": "no", "a1": "yes", "s0": True, "s1": False},
        {"q": "how", "a0": "so", "a1": "", "s0": 1, "s1": 1},
    ]
    loaded = load(
        tmp_path,
        rows,
        judged="assistant",
        expand=[{"answer": "a0", "safe": "s0"}, {"answer": "a1", "safe": "s1"}],
        fields={"prompt": "q", "response": "answer"},
        label={"column": "safe", "unsafe": [False], "safe": [True, 1]},
    )
    assert [(item.id, item.unsafe) for item in loaded.items] == [
        *(("1#0", False), ("1#1", True), ("2#0", False), ("2#1", False))
    ]
    assert said(loaded.items[1]) == [("user", "why"), ("assistant", "yes")]
    assert loaded.items[3].conversation is None
    assert loaded.items[3].error == "the message to judge is empty"
    assert loaded.records == 2


def test_a_blank_prompt_before_a_response_is_no_turn(tmp_path: Path) -> None:
    loaded = load(tmp_path, [{"q": " ", "a": "hello", "bad": 0}], **ANSWER)
    assert said(loaded.items[0]) == [("assistant", "hello")]


def test_messages_are_read_as_chat(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "human", "content": "hi"}, {"role": "agent", "content": "ho"}]
    rows = [{"m": chat, "bad": 0}, {"m": chat[:2], "bad": 0}, {"m": [], "bad": 1}, {"m": None, "bad": 1}]
    loaded = load(tmp_path, rows, judged="assistant", fields={"messages": "m"})
    assert said(loaded.items[0]) == [("user", "hi"), ("assistant", "ho")]
    assert [item.error for item in loaded.items[1:]] == [
        "the last message is by the user, not by the assistant",
        "messages: there is no message to judge",
        "messages: there is no message to judge",
    ]
    assert (len(loaded.items), loaded.unsafe) == (4, 2)


def test_turns_are_taken_apart_at_their_speakers() -> None:
    turns = Turns("c", ("A", "USER"), ("B", "LAMDA"), "\\n")
    spoken = split_turns("A: what is B: here?\\nB: see:\nEdit: a list\\nUSER:fine\\n", turns)
    assert [(message.role, message.text) for message in spoken] == [
        (Role.USER, "what is B: here?"),
        (Role.ASSISTANT, "see:\nEdit: a list"),
        (Role.USER, "fine"),
    ]
    assert split_turns(" \\n", turns) == []
    with pytest.raises(ConversationError, match="the turns do not begin with a speaker"):
        split_turns("Hello\nA: hi", turns)


def test_votes_of_a_group_make_one_item(tmp_path: Path) -> None:
    votes = [("a", "Yes"), ("b", "No"), ("a", "No"), ("b", "No"), ("a", "Unsure"), ("b", "Yes"), ("c", "Unsure")]
    rows = [{"item": item, "text": f"text {item}", "vote": vote, "harm": item * 2} for item, vote in votes]
    label = {"column": "vote", "unsafe": ["Yes"], "safe": ["No"], "unknown": ["Unsure"], "group": "item"}
    loaded = load(tmp_path, rows, label=label, slices={"harm": "harm"})
    assert [(item.id, item.unsafe, item.slices["harm"]) for item in loaded.items] == [
        *(("a", True, "aa"), ("b", False, "bb"), ("c", None, "cc"))
    ]
    assert (loaded.records, loaded.unsafe, loaded.unknown) == (7, 1, 1)
    strict = load(tmp_path, rows, label=label | {"share": 0.51})
    assert [item.unsafe for item in strict.items] == [False, False, None]


def test_votes_in_columns(tmp_path: Path) -> None:
    rows = [{"text": "x", "a": a, "b": b, "c": c} for a, b, c in ((1, 1, 0), (1, 0, 0), ("?", 1, 0), ("?", "?", "?"))]
    label = {"columns": ["a", "b", "c"], "unsafe": [1], "safe": [0], "unknown": ["?"]}
    assert [item.unsafe for item in load(tmp_path, rows, label=label).items] == [True, False, True, None]


def test_a_missing_category_label_is_unknown_and_never_false(tmp_path: Path) -> None:
    rows = [{"text": "a", "H": 1}, {"text": "b", "H": 0, "S": None}, {"text": "c", "S": 0, "H": "1"}, {"text": "d"}]
    loaded = load(
        tmp_path, rows, label={"any": "categories"}, categories={"columns": {"H": "hate", "S": "sexual"}}, **HATE
    )
    assert [item.categories for item in loaded.items] == [
        {"hate": True, "sexual": None},
        {"hate": False, "sexual": None},
        {"hate": True, "sexual": False},
        {"hate": None, "sexual": None},
    ]
    assert [item.unsafe for item in loaded.items] == [True, False, True, None]


def test_an_object_of_categories(tmp_path: Path) -> None:
    codes = {"hatred": "hate", "slurs": "hate", "porn": "sexual", "spam": None}
    objects = [
        {"hatred": False, "slurs": True, "porn": None, "spam": True},
        {"hatred": False, "slurs": None, "porn": False},
        {"hatred": None, "slurs": False},
        None,
    ]
    rows = [{"text": "x", "bad": 1, "c": value} for value in objects]
    loaded = load(tmp_path, rows, categories={"object": {"column": "c", "codes": codes}}, **HATE)
    assert [tuple(item.categories.values()) for item in loaded.items] == [
        *((True, None), (None, False), (None, None), (None, None))
    ]


def test_names_of_categories(tmp_path: Path) -> None:
    rows = [("hatred, spam", 1), ("", 1), ("hatred", 0), ("porn,hatred", "?")]
    names = {"column": "c", "separator": ",", "codes": {"hatred": "hate", "porn": "sexual", "spam": None}}
    options: dict[str, Any] = {"label": {"column": "bad", "unsafe": [1], "safe": [0], "unknown": ["?"]}, **HATE}
    found = {}
    for complete in (True, False):
        categories = {"label": names | {"complete": complete}}
        records = [{"text": "x", "bad": bad, "c": value} for value, bad in rows]
        loaded = load(tmp_path, records, categories=categories, **options)
        found[complete] = [tuple(item.categories.values()) for item in loaded.items]
    assert found[True] == [(True, False), (None, None), (False, False), (None, None)]
    assert found[False] == [(True, None), (None, None), (False, False), (None, None)]


def test_a_taxonomy_without_category_labels_leaves_all_unknown(tmp_path: Path) -> None:
    assert load(tmp_path, **HATE).items[0].categories == {"hate": None, "sexual": None}
    assert load(tmp_path).items[0].categories == {}


def test_slices(tmp_path: Path) -> None:
    rows = [
        {"text": "a" * 100, "bad": 0, "kind": "x", "jail": 1},
        {"text": "Это не по-английски, no", "bad": 0, "kind": "", "jail": 0},
        {"text": "b" * 101, "bad": 0, "kind": "x", "jail": 0},
        {"text": "c" * 301, "bad": 0, "kind": "y", "jail": 0},
        {"text": "ü" * 1001, "bad": 0, "kind": "y", "jail": 0},
        {"text": "123", "bad": 0, "kind": "y", "jail": 0},
        {"text": "", "bad": 0, "kind": "y", "jail": 0},
    ]
    slices = {"kind": "kind", "jail": {"column": "jail", "values": {"0": "no", "1": "yes"}}}
    items = load(tmp_path, rows, slices=slices).items
    assert items[0].slices == {"kind": "x", "jail": "yes", "length": "up to 100", "script": "Latin"}
    assert items[1].slices == {"jail": "no", "length": "up to 100", "script": "other"}
    assert [item.slices["length"] for item in items[2:5]] == ["101 to 300", "301 to 1000", "over 1000"]
    assert [item.slices["script"] for item in items[4:6]] == ["Latin", "other"]
    assert items[6].slices == {"kind": "y", "jail": "no"}


def hub_folder(folder: Path) -> Path:
    """A data set that `datasets` loads from a folder, with two configurations and two splits."""
    files = {"few": ROWS[:1], "many": ROWS}
    lines = ["configs:"]
    for config, rows in files.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in ("plain", "hard"):
            write(folder / config / f"{split}.jsonl", [{**row, "H": None if split == "hard" else 1} for row in rows])
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", ""]))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return str(hub_folder(tmp_path / "bench"))


def test_the_hub_with_config_and_split(tmp_path: Path, hub: str) -> None:
    tiny = suite(tmp_path, source={"hub": {"id": hub, "config": "many", "split": "plain"}}, expect={"records": 3})
    loaded = load_items(tiny)
    assert [(item.id, item.unsafe) for item in loaded.items] == [("1", True), ("2", False), ("3", True)]
    assert said(loaded.items[1]) == [("user", "zwei — δύο")]
    assert loaded.sha256 == load_items(tiny).sha256
    few = suite(tmp_path, source={"hub": {"id": hub, "config": "few", "split": "plain"}})
    assert len(load_items(few).items) == 1
    assert load_items(few).sha256 != loaded.sha256


def test_several_splits_of_the_hub_are_a_column(tmp_path: Path, hub: str) -> None:
    source = {"hub": {"id": hub, "config": "few", "split": ["plain", "hard"]}}
    label = {"column": "split", "unsafe": ["hard"], "safe": ["plain"]}
    loaded = load_items(suite(tmp_path, source=source, label=label, categories={"columns": {"H": "hate"}}, **HATE))
    assert [item.unsafe for item in loaded.items] == [False, True]
    assert [item.categories["hate"] for item in loaded.items] == [True, None]


def test_a_hub_that_cannot_be_loaded_is_one_line(tmp_path: Path, hub: str) -> None:
    tiny = suite(tmp_path, source={"hub": {"id": hub, "config": "few", "split": "none"}})
    with pytest.raises(InputError) as caught:
        load_items(tiny)
    assert str(caught.value).startswith(f"{hub}, config few, split none: cannot be loaded: ")
    assert "--data" in str(caught.value.hint)
    assert "\n" not in str(caught.value)


def test_a_missing_column_of_the_hub(tmp_path: Path, hub: str) -> None:
    tiny = suite(tmp_path, source={"hub": {"id": hub, "config": "few", "split": "plain"}}, columns=["lang"])
    with pytest.raises(InputError, match="split plain: expected the columns lang; found H, bad, text"):
        load_items(tiny)


def test_a_missing_file_is_answered_with_where_it_was_looked_for(tmp_path: Path) -> None:
    source = {"files": ["x/rows.csv"], "home": "example.org/x"}
    with pytest.raises(InputError) as caught:
        load_items(suite(tmp_path, source=source), tmp_path)
    assert str(caught.value) == f"there is no {tmp_path}/x/rows.csv nor {tmp_path}/eval/x/rows.csv"
    assert caught.value.hint == "the files are from example.org/x"


def test_the_hub_is_asked_when_no_file_is_there(tmp_path: Path, hub: str) -> None:
    source = {"files": ["rows.csv", "more.csv"], "hub": {"id": hub, "config": "few", "split": "plain"}}
    loaded = load_items(suite(tmp_path, source=source), tmp_path / "elsewhere")
    assert loaded.origin == f"{hub}, config few, split plain"
    assert loaded.items
    only = suite(tmp_path, source={"hub": {"id": hub, "config": "few", "split": "plain"}})
    assert load_items(only, tmp_path).sha256 == loaded.sha256


def test_some_files_without_the_others_are_an_error(tmp_path: Path, hub: str) -> None:
    (tmp_path / "rows.csv").write_text("text,toxic\nhello,0\n")
    source = {"files": ["rows.csv", "more.csv"], "hub": {"id": hub, "config": "few", "split": "plain"}}
    with pytest.raises(InputError, match=r"there is no .*more\.csv"):
        load_items(suite(tmp_path, source=source), tmp_path)


def test_files_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the data is read from files") as caught:
        load_items(suite(tmp_path, source={"files": ["rows.csv"], "home": "example.org"}))
    assert caught.value.hint == "give their folder with --data; the files are from example.org"


def fails(folder: Path, name: str, data: str | bytes, **changes: Any) -> str:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(InputError) as caught:
        load_items(suite(folder, **({"source": {"files": [name]}} | changes)), folder)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}/")


def test_a_record_without_the_column_of_a_condition_is_no_silent_loss(tmp_path: Path) -> None:
    data = '{"text": "x", "bad": 1, "lang": "en"}\n{"text": "y", "bad": 0}\n'
    where = {"column": "lang", "is": ["en"]}
    message = "the column is missing, which other records have"
    assert fails(tmp_path, "a.jsonl", data, where=where) == f"a.jsonl:2: lang: {message}"
    present = suite(tmp_path, source={"files": ["a.jsonl"]}, where={"column": "lang", "present": True})
    assert len(load_items(present, tmp_path).items) == 1


def test_category_names_may_be_a_list(tmp_path: Path) -> None:
    rows = [{"text": "x", "bad": 1, "names": ["Hate", "Sex"]}, {"text": "y", "bad": 0, "names": []}]
    named = {"label": {"column": "names", "codes": {"Hate": "hate", "Sex": "sexual"}}}
    taxonomy = {"id": "openai-moderation", "select": ["hate", "sexual"]}
    loaded = load(tmp_path, rows, taxonomy=taxonomy, categories=named)
    assert [dict(item.categories) for item in loaded.items] == [
        {"hate": True, "sexual": True},
        {"hate": False, "sexual": False},
    ]


def test_chat_messages_may_be_json_text(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"chat": json.dumps(turns), "bad": 1}) + "\n")
    chat = suite(tmp_path, source={"files": ["a.jsonl"]}, judged="assistant", fields={"messages": "chat"})
    (item,) = load_items(chat, tmp_path).items
    assert item.conversation == Conversation.parse(turns)
    line = fails(tmp_path, "a.jsonl", '{"chat": "hi", "bad": 1}\n', fields={"messages": "chat"})
    assert line == "a.jsonl:1: chat: expected a list of messages, or one as JSON text"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "text,kind\nx,1\n", "a.csv: expected the columns bad; found kind, text"),
        ("a.jsonl", '{"text": "x"}\n', "a.jsonl: expected the columns bad; found text"),
        ("a.csv", "text,bad\nx,1\n\ny,2\n", "a.csv:4: bad: the label is '2'"),
        ("a.csv", 'text,bad\n"two\nlines",1\ny,\n', "a.csv:4: bad: the label is ''"),
        ("a.jsonl", '{"text": "x", "bad": 1}\n{"text": "x"}\n', "a.jsonl:2: bad: the label is ''"),
        ("a.json", '[{"text": "x", "bad": 1}, {"text": "x", "bad": 2}]', "a.json: record 2, bad: the label is '2'"),
        ("a.json", '[{"text": "x", "bad": [1]}]', "a.json: record 1, bad: expected a single value, got list"),
        ("a.json", '[{"text": 3, "bad": 1}]', "a.json: record 1, text: expected text, got int"),
        ("a.json", '[{"text": "x", "bad": 1}, 3]', "a.json: record 2: expected an object, got int"),
        ("a.json", '{"rows": []}', "a.json: expected a list of records, got dict"),
        ("a.json", '[\n{"text": ]', "a.json:2: not JSON: Expecting value"),
        ("a.jsonl", '{"text": "x", "bad": 1}\n{"text": \n', "a.jsonl:2: not JSON"),
        ("a.csv", "text,bad\nx\n", "a.csv:2: 1 columns, but the header has 2"),
        ("a.csv", 'text,bad\nx,1\n"y', "a.csv:3: not CSV: unexpected end of data"),
        ("a.csv", "text,text\nx,1\n", "a.csv:1: two columns have the name 'text'"),
        ("a.csv", b"text,bad\n\xff,1\n", "a.csv: not UTF-8: byte 0xff"),
        ("a.csv", "", "a.csv: no item among 0 records"),
        ("a.csv", "text,bad\n", "a.csv: no item among 0 records"),
        ("a.parquet", b"PAR1 but no more", "a.parquet: not Parquet"),
        ("a.csv.gz", gzip.compress(b"text,bad\n" + b"x,1\n" * 9999, mtime=0)[:40], "a.csv.gz: cannot be read"),
        ("a.csv.gz", b"text,bad\nx,1\n", "a.csv.gz: cannot be read"),
    ],
)
def test_wrong_data_is_one_line_that_names_the_place(
    tmp_path: Path, name: str, data: str | bytes, message: str
) -> None:
    assert fails(tmp_path, name, data).startswith(message)


def test_a_wrong_key_of_records_is_one_line(tmp_path: Path) -> None:
    source = {"files": ["a.json"], "records": "row"}
    assert fails(tmp_path, "a.json", '{"rows": []}', source=source) == "a.json: there is no key 'row'"
    assert fails(tmp_path, "a.json", "[]", source=source) == "a.json: expected an object, got list"
    every = {"files": ["a.json"], "records": "*"}
    assert fails(tmp_path, "a.json", '{"x": 3}', source=every) == "a.json: x: expected a list of records, got int"
    assert fails(tmp_path, "a.json", '{"x": [3]}', source=every) == "a.json: x[0]: expected an object, got int"


def test_wrong_counts_say_what_was_expected_and_found(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, expect={"records": 4, "items": 3, "unsafe": 3, "unknown": 0})
    assert str(caught.value) == f"{tmp_path}/rows.jsonl: expected 4 records, 3 unsafe; found 3 records, 2 unsafe"
    assert "another version" in str(caught.value.hint)


def test_a_category_column_that_no_record_has_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl: expected the columns H; found bad, text"):
        load(tmp_path, categories={"columns": {"H": "hate"}}, **HATE)


@pytest.mark.parametrize(
    ("changes", "row", "message"),
    [
        ({"categories": {"columns": {"H": "hate"}}}, {"H": "maybe"}, "H: the category label is 'maybe'"),
        (
            {"categories": {"object": {"column": "H", "codes": {"a": "hate"}}}},
            {"H": {"b": 1}},
            "H: unknown category 'b'",
        ),
        (
            {"categories": {"object": {"column": "H", "codes": {"a": "hate"}}}},
            {"H": "a"},
            "H: expected an object, got str",
        ),
        ({"categories": {"object": {"column": "H", "codes": {"a": "hate"}}}}, {"H": {"a": []}}, "H: 'a': expected a"),
        ({"categories": {"label": {"column": "H", "codes": {"a": "hate"}}}}, {"H": "a,b"}, "H: unknown category 'a,b'"),
        ({"slices": {"k": {"column": "H", "values": {"1": "x"}}}}, {"H": 2}, "H: the value '2' has no name in slices"),
        ({"fields": {"id": "H", "prompt": "text"}}, {"H": None}, "H: the id is empty"),
        ({"label": {"column": "bad", "unsafe": [1], "safe": [0], "group": "H"}}, {"H": ""}, "H: the group is empty"),
    ],
    ids=str,
)
def test_a_value_that_the_suite_does_not_know_is_one_line(
    tmp_path: Path, changes: dict[str, Any], row: dict[str, Any], message: str
) -> None:
    with pytest.raises(RowError) as caught:
        load(tmp_path, [{"text": "x", "bad": 1, **row}], **HATE, **changes)
    assert str(caught.value).removeprefix(f"{tmp_path}/rows.jsonl:1: ").startswith(message)


def test_ids_are_unique(tmp_path: Path) -> None:
    rows = [{"n": 7, "text": "x", "bad": 1}, {"n": 8, "text": "x", "bad": 1}, {"n": 7, "text": "x", "bad": 1}]
    fields = {"id": "n", "prompt": "text"}
    with pytest.raises(RowError, match=r"rows\.jsonl:3: n: the id '7' is that of line 1 too"):
        load(tmp_path, rows, fields=fields)
    assert [item.id for item in load(tmp_path, rows[:2], fields=fields).items] == ["7", "8"]


def test_votes_on_different_texts_are_no_votes_on_one_item(tmp_path: Path) -> None:
    rows = [{"g": 1, "text": "x", "bad": 1}, {"g": 1, "text": "y", "bad": 1}]
    label = {"column": "bad", "unsafe": [1], "safe": [0], "group": "g"}
    with pytest.raises(RowError, match=r"rows\.jsonl:2: text: differs from that of another vote on '1'"):
        load(tmp_path, rows, label=label)


flags = st.sampled_from([None, "", 0, 1, False, True, "0", "1", "true", "False", 1.0, float("nan")])
UNKNOWN = ("",)


def record(values: Mapping[str, Any]) -> Record:
    return Record(values, 1, "f", 1)


@given(st.lists(flags, min_size=1, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5))
def test_the_unknown_is_never_false(values: list[Any], absent: list[bool]) -> None:
    names = [f"c{index}" for index in range(len(values))]
    row = {name: value for name, value, gone in zip(names, values, absent, strict=False) if not gone}
    known = {name: as_text(row.get(name)) for name in names}
    for found in (
        CategoryColumns({name: name for name in names}).read(record(row), None),
        CategoryObject("o", dict(zip(names, names, strict=True))).read(record({"o": row}), None),
    ):
        for name in names:
            assert found.get(name) is {"": None, "0": False, "false": False}.get(known[name], True)
    merged = CategoryColumns(dict.fromkeys(names, "one")).read(record(row), None)["one"]
    texts = set(known.values())
    assert merged is (True if texts & {"1", "true"} else None if "" in texts else False)


@given(st.lists(flags, min_size=1, max_size=6), st.sampled_from([0.3, 0.5, 1.0]))
def test_votes_count_only_what_is_known(values: list[Any], share: float) -> None:
    rule = Values(("1", "true"), ("0", "false"), UNKNOWN)
    votes = Votes(tuple(map(str, range(len(values)))), rule, None, share)
    cast = votes.cast(record(dict(zip(votes.columns, values, strict=True))))
    texts = [as_text(value) for value in values]
    assert [vote is None for vote in cast] == [text == "" for text in texts]
    verdict = votes.verdict(cast)
    unsafe, safe = (sum(vote is value for vote in cast) for value in (True, False))
    assert verdict is (unsafe >= share * (unsafe + safe) if unsafe + safe else None)


@given(st.dictionaries(st.sampled_from("abcd"), st.sampled_from([True, False, None]), min_size=1))
def test_any_category_needs_something_known(categories: dict[str, bool | None]) -> None:
    values = set(categories.values())
    assert AnyCategory().verdict(categories) is (True if True in values else False if False in values else None)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=4), st.sampled_from([True, False, None]), st.booleans())
def test_names_are_false_only_when_safe_or_complete(names: list[str], unsafe: bool | None, complete: bool) -> None:
    rule = CategoryNames("n", {"a": "A", "b": "B", "c": None}, "|", complete)
    found = rule.read(record({"n": " | ".join(names)}), unsafe)
    for name, code in (("a", "A"), ("b", "B")):
        value = found.get(code)
        if unsafe is False:
            assert value is False
        elif unsafe is None:
            assert value is None
        elif name in names:
            assert value is True
        else:
            assert value is (False if complete and {"a", "b"} & set(names) else None)
