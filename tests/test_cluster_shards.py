"""Cutting inputs into shards, reading them, and the files that a run finds."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
from itertools import count as numbers
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.cluster.reading import read
from guardrail.cluster.shards import LineCount, Shard, count, count_lines, kind_of, line_shards, parquet_shards, ranges
from guardrail.cluster.storage import Folder, Source, expand, find
from guardrail.errors import GuardrailError, InputError, UsageError
from tests.fake_s3 import serving

pytest.importorskip("fsspec", reason="needs the extra ray")

any_lines = st.lists(st.sampled_from([b"\n", b"\n\n", b"a", b"bc", b"\r\n", b" "])).map(b"".join)


def planned(data: bytes, size: int) -> list[Shard]:
    source = Source("in", "in", len(data), "")
    counts: list[LineCount] = []
    for piece in ranges(source, size):
        file = io.BytesIO(data)
        file.seek(max(0, piece.start - 1))
        counts.append(count_lines(file, piece.start, piece.end))
    return list(line_shards(source, counts, 0))


@given(st.binary(max_size=200) | any_lines, st.integers(1, 40))
def test_every_line_is_in_one_shard_under_its_number(data: bytes, size: int) -> None:
    shards = planned(data, size)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    found = [
        (number, line)
        for shard in shards
        for number, line in zip(numbers(shard.before + 1), io.BytesIO(data[shard.start : shard.end]), strict=False)
    ]
    assert found == list(enumerate(io.BytesIO(data), start=1))
    assert len(shards) <= -(-len(data) // size)


@given(data=any_lines, size=st.integers(1, 9), batch=st.integers(1, 4))
def test_shards_are_read_as_the_whole_file_is(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int, batch: int
) -> None:
    path = tmp_path_factory.mktemp("shards") / "in.jsonl"
    path.write_bytes(data)
    (source,) = expand(str(path))
    shards = line_shards(source, [count(piece) for piece in ranges(source, size)], 0)
    batches = [found for shard in shards for found in read(shard, batch)]
    expected = [(number, line) for number, line in enumerate(io.BytesIO(data), start=1) if line.strip()]
    assert [row.line for found in batches for row in found.rows] == [number for number, _ in expected]
    assert sum(found.blank for found in batches) == len(list(io.BytesIO(data))) - len(expected)


def test_a_line_longer_than_many_shards_is_in_one() -> None:
    data = b"a\n" + b"x" * 1000 + b"\nb\n"
    shards = planned(data, 10)
    assert [(shard.start, shard.end, shard.before) for shard in shards] == [(0, 1003, 0), (1003, 1005, 2)]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 300)), max_size=8),
    st.integers(1, 200),
)
def test_the_rows_of_parquet_are_in_one_shard_each(groups: list[tuple[int, int]], size: int) -> None:
    import guardrail.cluster.shards as module

    runs = list(module._runs(groups, size))
    assert sum(runs) == sum(rows for rows, _ in groups)
    assert all(runs)
    assert len(runs) <= 9 * len(groups)


def written(path: Path, rows: list[dict[str, Any]], group: int) -> Source:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return find(str(path))


@pytest.mark.parametrize("size", [1, 2000, 1 << 30])
def test_parquet_is_read_by_rows(tmp_path: Path, size: int) -> None:
    source = written(tmp_path / "in.parquet", [{"id": n, "text": f"row {n}"} for n in range(100)], 30)
    assert kind_of(source) == "parquet"
    shards = list(parquet_shards(source, size, 5))
    assert [shard.index for shard in shards] == list(range(5, 5 + len(shards)))
    assert (len(shards) == 1) == (size == 1 << 30)
    rows = [row for shard in shards for batch in read(shard, 7) for row in batch.rows]
    assert [(row.line, row.id) for row in rows] == [(n + 1, n) for n in range(100)]
    assert [row.conversation.judged.text for row in rows if row.conversation] == [f"row {n}" for n in range(100)]


def test_what_json_has_no_word_for_is_carried_in_another_form(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    row = {"text": "a", "at": day, "price": decimal.Decimal("1.50"), "raw": b"\xff", "gone": float("nan"), "none": None}
    source = written(tmp_path / "in.parquet", [row, {"text": "b", "gone": 1.0}], 10)
    first, second = (
        row for shard in parquet_shards(source, 1 << 20, 0) for batch in read(shard, 9) for row in batch.rows
    )
    assert first.carried == {
        "at": "2026-01-02T03:04:05+00:00",
        "price": "1.50",
        "raw": "/w==",
        "gone": None,
        "none": None,
    }
    assert (first.id, second.id, second.carried["gone"]) == (1, 2, 1.0)


def test_a_value_without_a_form_is_an_error_row(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", [{"text": "a", "took": datetime.timedelta(seconds=3)}], 10)
    ((batch,),) = (list(read(shard, 9)) for shard in parquet_shards(source, 1 << 20, 0))
    assert str(batch.rows[0].error) == f"{source.name}:1: took: a timedelta has no place in JSON"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PAR1 but no footer", "cannot be read as Parquet"), (b"BZh9 whatever", "this is bzip2 data")],
)
def test_a_file_in_another_format_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    source = find(str(tmp_path / "in.jsonl"))
    with pytest.raises(InputError, match=message):
        list(parquet_shards(source, 10, 0)) if kind_of(source) == "parquet" else None


def test_a_cut_off_gzip_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-30])
    source = find(str(tmp_path / "in.jsonl.gz"))
    assert kind_of(source) == "gzip"
    with pytest.raises(InputError, match="cannot be read"):
        list(read(Shard(0, "gzip", source, 0, source.size, 0), 64))


def test_files_are_found_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.parquet", "sub/d.jsonl.gz", "_SUCCESS", ".a.jsonl.crc", "[x].jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    assert [source.name for source in expand("*.jsonl")] == ["[x].jsonl", "a.jsonl", "b.jsonl"]
    assert [source.name for source in expand("[x].jsonl")] == ["[x].jsonl"]
    names = [Path(source.name).name for source in expand(str(tmp_path))]
    assert names == ["[x].jsonl", "a.jsonl", "b.jsonl", "c.parquet", "d.jsonl.gz"]
    assert [source.url for source in expand(f"file://{tmp_path}/?.jsonl")] == [
        f"file://{tmp_path}/{name}.jsonl" for name in "ab"
    ]
    with pytest.raises(InputError, match=r"x\*: no file matches"):
        expand("x*")
    with pytest.raises(InputError, match=r"no.jsonl: cannot be read: No such file"):
        expand("no.jsonl")
    (tmp_path / "readme.txt").write_bytes(b"1")
    with pytest.raises(InputError, match=r"readme.txt: neither JSON Lines nor Parquet"):
        expand(str(tmp_path))
    with pytest.raises(UsageError, match="nosuch://x"):
        expand("nosuch://x")


def test_a_change_changes_the_version(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"1")
    before = find(str(path))
    assert find(str(path)) == before
    path.write_bytes(b"2")
    assert find(str(path)) != before


def test_a_written_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    assert (folder.sizes(), folder.read("a")) == ({}, None)
    folder.write("_run/a", b"old")

    def broken() -> None:
        with folder.writing("_run/a") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert folder.sizes() == {"_run/a": 3}
    assert folder.read_many(["_run/a", "b"]) == {"_run/a": b"old"}
    folder.remove(["_run/a", "b"])
    assert folder.sizes() == {}


def test_an_object_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        # A name of its own: the client keeps the address of the server that it met first under a name.
        server.put("shards/in/b.jsonl", b'{"text": "b"}\n')
        server.put("shards/in/a.jsonl", b'{"text": "a"}\n{"text": "aa"}\n')
        first, second = expand("s3://shards/in/*.jsonl")
        assert (first.url, first.size, second.url) == ("s3://shards/in/a.jsonl", 29, "s3://shards/in/b.jsonl")
        shards = list(line_shards(first, [count(piece) for piece in ranges(first, 14)], 0))
        assert [[row.line for batch in read(shard, 9) for row in batch.rows] for shard in shards] == [[1], [2]]
        folder = Folder("s3://shards/out")
        folder.write("part-00000.jsonl", b"x" * 7_000_000)
        folder.write("_run/a.json", json.dumps([1]).encode())
        assert folder.sizes() == {"part-00000.jsonl": 7_000_000, "_run/a.json": 3}
        assert folder.read("_run/a.json") == b"[1]"
        assert server.objects["shards/out/part-00000.jsonl"].data == b"x" * 7_000_000
        with pytest.raises(GuardrailError, match=r"s3://shards/none.jsonl: cannot be read: No such file"):
            expand("s3://shards/none.jsonl")
