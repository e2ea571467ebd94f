from __future__ import annotations

import pathlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardrail.errors import TaxonomyError
from guardrail.taxonomy_yaml import Document, Path, dump, parse, read

data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def deepest(value: Any) -> int:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(deepest, inner), default=0)
    return 0


@given(data.filter(lambda value: deepest(value) <= 20))
@example({"a": ["no", "1", "2024-01-01", "~", "0o7", "<<", "=", "!x", "&a", "*a", "\x85", "\u2028", "\x07", "\ufeff"]})
def test_what_is_dumped_is_read_back(value: Any) -> None:
    again = parse(dump(value)).data
    assert again == value
    assert repr(again) == repr(value)


@given(st.text(max_size=60) | st.text("-[]{}:,?!&*|>#'\"% \n\tab1", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        document = parse(text, "some.yaml")
    except TaxonomyError as error:
        file, line = error.file, error.line
    else:
        file, line = document.file, document.lines[()]
    assert file == "some.yaml"
    assert line is not None
    assert 1 <= line <= len(text.splitlines()) + 1


def test_lines_are_those_of_keys_and_items() -> None:
    document = parse("# comment\na: 1\nb:\n  - x\n\n  - y:\n      z: >-\n        long\n        text\n    w: [1,\n 2]\n")
    assert document.data == {"a": 1, "b": ["x", {"y": {"z": "long text"}, "w": [1, 2]}]}
    shallow: dict[Path, int] = {(): 2, ("a",): 2, ("b",): 3, ("b", 0): 4, ("b", 1): 6}
    deep: dict[Path, int] = {("b", 1, "w"): 10, ("b", 1, "w", 0): 10, ("b", 1, "w", 1): 11}
    assert document.lines == {**shallow, **deep, ("b", 1, "y"): 6, ("b", 1, "y", "z"): 7}


@pytest.mark.parametrize(
    ("text", "line", "field", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a", "duplicate key, first given in line 1"),
        ("a:\n  - {x: 1,\n     x: 2}\n", 3, "a[0].x", "duplicate key, first given in line 2"),
        ("a: 1\n1: b\n", 2, None, "a key must be text"),
        ("a: {<<: {b: c}}\n", 1, "a", "a key must be text"),
        ("a: 1\nb: !!python/name:os.x ''\n", 2, "b", "the tag tag:yaml.org,2002:python/name:os.x is not read"),
        ("a: !mine x\n", 1, "a", "the tag !mine is not read"),
        ("a: !!set {x}\n", 1, "a", "the tag tag:yaml.org,2002:set is not read"),
        ("a: !!map x\n", 1, "a", "the tag tag:yaml.org,2002:map is not read"),
        ("a: !!int x\n", 1, "a", "cannot read 'x'"),
        ("a: 2024-01-01\n", 1, "a", "expected text, got a date"),
        ("a: &x [1]\nb: *x\n", 2, None, "anchors and aliases are not read"),
        ("a: &x\n  - *x\n", 2, None, "anchors and aliases are not read"),
        ("a: 1\n---\n", 2, None, "not YAML: expected a single document in the stream, but found another document"),
        ("a: [1\nb: 2\n", 2, None, "not YAML: while parsing a flow sequence, did not find expected ',' or ']'"),
        ("a: 1\nb: \x07\n", 2, None, "not YAML: control characters are not allowed"),
        ("a: 1\nb: \ud800\n", 2, None, "not Unicode text"),
        ("# nothing\n", 1, None, "the file is empty"),
        ("[" * 100_000, 1, None, "nested too deep"),
        ("- " * 100_000, 1, None, "nested too deep"),
        ("a:\n" + "\n".join(" " * depth + "a:" for depth in range(1, 50)), 21, None, "nested too deep"),
    ],
)  # fmt: skip
def test_errors_name_the_line(text: str, line: int, field: str | None, reason: str) -> None:
    with pytest.raises(TaxonomyError) as caught:
        parse(text, "some.yaml")
    assert (caught.value.file, caught.value.line, caught.value.field) == ("some.yaml", line, field)
    assert caught.value.reason == reason


def test_files_are_utf_8(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\x9f\n")
    assert read(path).data == {"a": "ß"}
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(TaxonomyError, match=r"a\.yaml:2: not UTF-8"):
        read(path)
    with pytest.raises(TaxonomyError, match=r"cannot be read: Is a directory"):
        read(tmp_path)


def test_fields_name_their_place() -> None:
    root = Document({"a": [{"b": 1}], "c": True}).root
    fields = root.fields(("a",), ("c", "d"))
    assert set(fields) == {"a", "c"}
    item = fields["a"].items()[0]
    assert item.place == "a[0]"
    with pytest.raises(TaxonomyError, match=r"^a\[0\]\.b: expected text, got a number$"):
        item.fields(("b",))["b"].text()
    with pytest.raises(TaxonomyError, match=r"^c: expected text, got true or false$") as caught:
        fields["c"].text()
    assert caught.value.hint == "put it in quotes"
    with pytest.raises(TaxonomyError, match=r"^a\[0\]: the key 'e' is missing$"):
        item.fields(("e",), ("b",))
    with pytest.raises(TaxonomyError, match=r"^a\[0\]\.b: unknown key$") as caught:
        item.fields(("bb",))
    assert caught.value.hint == "did you mean 'bb'? known keys: bb"
