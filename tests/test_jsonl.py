"""The strict reader and the encoder of rows."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.errors import InputError, ResumeError, RowError
from guardrail.jsonl import Line, LineReader, Position, encode, parse, read

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
rows = st.dictionaries(st.text(), values, max_size=5)
with_surrogates = st.text(st.characters(exclude_categories=()))


def lines_of(path: Path, limit: int = 1000) -> list[Line]:
    with LineReader(path, max_line_bytes=limit) as lines:
        return list(lines)


@given(st.lists(rows, max_size=8), st.booleans())
def test_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]], packed: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    data = b"".join(map(encode, written))
    path.write_bytes(gzip.compress(data) if packed else data)
    assert [row for _, row in read(path)] == written
    assert len(data.decode("utf-8").splitlines()) == len(written)


@given(st.dictionaries(with_surrogates, with_surrogates, max_size=4))
def test_half_surrogate_pairs_survive_as_escapes(row: dict[str, str]) -> None:
    assert parse(Line(1, encode(row))) == json.loads(json.dumps(row))


def test_a_row_is_written_as_readable_utf8() -> None:
    assert encode({"text": "grün 你好"}) == '{"text": "grün 你好"}\n'.encode()


@given(st.binary(max_size=300) | st.lists(st.sampled_from([b"\n", b"\r\n", b"x", b"{}", b'{"a":1}'])).map(b"".join))
def test_every_line_is_given_out_once(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("lines") / "in"
    path.write_bytes(b"# " + data)
    given_out = [line.data for line in lines_of(path)]
    assert given_out == list(io.BytesIO(b"# " + data))


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_line_is_an_object_or_a_row_error(data: bytes) -> None:
    try:
        row, error = parse(Line(9, data)), None
    except RowError as caught:
        row, error = None, caught
    assert (error is None) == isinstance(row, dict)
    assert error is None or (error.line == 9 and "\n" not in str(error))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"text": "x"', "not JSON: Expecting ',' delimiter at column 13"),
        (b"hello", "not JSON: Expecting value at column 1"),
        (b"{} {}", "not JSON: Extra data at column 4"),
        (b'{"a": 1,}', "not JSON: "),
        (b"{'a': 1}", "not JSON: "),
        (b'{"a": "\x00"}', "not JSON: Invalid control character at column 8"),
        (b"\x00\x00", "not JSON: "),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON: "),
        (b"[1]", "expected an object, got list"),
        (b'"text"', "expected an object, got str"),
        (b"null", "expected an object, got NoneType"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at position 8"),
        ('{"a": "ü"}'.encode("latin-1"), "not UTF-8: byte 0xfc at position 8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8: byte 0xff at position 1"),
        (b'{"a": 1, "a": 1}', "the key 'a' occurs twice"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' occurs twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "the number 1e999 is out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is out of range"),
        (b'{"a": ' + b"[" * 201 + b"]" * 201 + b"}", "nested more than 200 levels deep"),
        (b'{"a": ' * 100_000, "nested more than 200 levels deep"),
        (b"[" * 100_000, "nested more than 200 levels deep"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(data: bytes, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse(Line(7, data), "in.jsonl")
    assert str(caught.value).startswith("in.jsonl:7: ")
    assert reason in caught.value.reason
    assert len(str(caught.value)) < 120


def test_brackets_in_text_are_no_nesting() -> None:
    text = "[{" * 1000
    assert parse(Line(1, json.dumps({"text": text, "list": [{}] * 300}).encode()))["text"] == text


def test_rows_at_the_limit_of_nesting_can_be_written() -> None:
    data = b'{"a": ' + b"[" * 199 + b"]" * 199 + b"}"
    assert encode(parse(Line(1, data))) == data + b"\n"


def test_a_byte_order_mark_carriage_returns_and_a_missing_last_line_end_are_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert list(read(path)) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_over_the_limit_is_read_past(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "in.jsonl"
    data = b'{"a": 1}\n' + b"x" * 200_000 + b'\n{"a": 2}\n' + b"y" * 101
    path.write_bytes(gzip.compress(data) if packed else data)
    lines = lines_of(path, limit=100)
    assert lines == [(1, b'{"a": 1}\n'), (2, None), (3, b'{"a": 2}\n'), (4, None)]
    with pytest.raises(RowError, match=r"in.jsonl:2: the line is longer than --max-line-bytes"):
        parse(lines[1], "in.jsonl")


def test_a_line_of_200_mb_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.truncate(200_000_000)
        file.seek(0, 2)
        file.write(b'\n{"a": 1}\n')
    code = f"""
import resource
from guardrail.jsonl import LineReader
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
numbers = [line.number for line in LineReader({str(path)!r}, max_line_bytes=1_000_000) if line.data]
print(numbers, peak() - before < 10_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[2] True\n"


@given(st.lists(st.sampled_from([b"{}\n", b"\n", b"x" * 50 + b"\n", b"\xff\r\n"]), max_size=20), st.data())
def test_skipping_to_a_position_leaves_the_rest(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("skip") / "in"
    path.write_bytes(b"".join(pieces))
    at = data.draw(st.integers(0, len(pieces)))
    with LineReader(path, max_line_bytes=20) as lines:
        iterator = iter(lines)
        for _ in range(at):
            next(iterator)
        position = lines.position
        rest = list(iterator)
    with LineReader(path, max_line_bytes=20) as lines:
        lines.skip(position)
        assert list(lines) == rest


@pytest.mark.parametrize("changed", [b"{}\n{ }\n", b"{}\n", b""])
def test_skipping_over_other_content_is_an_error(tmp_path: Path, changed: bytes) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"{}\n{}\n{}\n")
    with LineReader(path) as lines:
        iterator = iter(lines)
        next(iterator), next(iterator)
        position = lines.position
    path.write_bytes(changed)
    with LineReader(path) as lines, pytest.raises(ResumeError, match="the first 2 lines are not those"):
        lines.skip(position)
    assert Position().bytes == 0


def test_broken_compression_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    data = gzip.compress(b"".join(b'{"a": %d}\n' % number for number in range(50_000)))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"in.jsonl.gz: cannot be read after line \d+: Compressed file ended"):
        list(read(path))
    path.write_bytes(data[:20000] + b"\xff" * 40 + data[20040:])
    with pytest.raises(InputError, match=r"in.jsonl.gz: cannot be read"):
        lines_of(path)


@pytest.mark.parametrize(
    ("data", "name"), [(b"\x28\xb5\x2f\xfd0000", "zstd"), (b"PAR1....", "parquet"), (b"BZh9....", "bzip2")]
)
def test_other_formats_are_named(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    with pytest.raises(InputError, match=name):
        LineReader(path)


def test_a_file_that_is_not_there_or_a_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no.jsonl: cannot be read: No such file"):
        LineReader(tmp_path / "no.jsonl")
    with pytest.raises(InputError, match="Is a directory"):
        LineReader(tmp_path)
