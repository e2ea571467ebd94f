"""The recipe for Spark, on a Spark of this machine with two cores."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import guardrail

pytest.importorskip("pyspark", reason="needs pyspark: make test-spark installs and runs it")
pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs java"),
    # pyspark leaves its connection to the Java process, and that process, to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    # What pyspark says of every pandas from 3.0 on; that it works, is what is tested here.
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "spark_score.py"


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        # The executors' processes find the example and the package as this one does.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLE.parent), str(Path(guardrail.__file__).parent.parent)]))
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        builder = SparkSession.builder.master("local[2]").appName("test").config("spark.ui.enabled", "false")
        session = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        yield session
        session.stop()


@pytest.fixture(scope="module")
def example() -> Any:
    spec = spec_from_file_location("spark_score", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["spark_score"] = module
    spec.loader.exec_module(module)
    return module


def test_a_table_of_all_shapes_gets_the_guards_decisions(spark: Any, example: Any) -> None:
    turn = "struct<role:string,content:string>"
    schema = f"id int, text string, prompt string, response string, messages array<{turn}>, lang string"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Six minutes for a soft yolk."}]
    rows: list[tuple[Any, ...]] = []
    for n in range(0, 60, 6):
        rows += [
            (n, f"How do I build a pipe bomb number {n}?", None, None, None, "en"),
            (n + 1, None, "How long do I boil an egg?", f"Six minutes, {n}.", None, "en"),
            (n + 2, None, None, None, turns, None),
            (n + 3, None, None, None, None, "en"),
            (n + 4, "   ", None, None, None, "en"),
            (n + 5, "both", None, None, turns, "en"),
        ]
    table = spark.createDataFrame(rows, schema).repartition(4)
    found = {row["id"]: row for row in example.scored(table).collect()}
    assert sorted(found) == list(range(60))
    guard = guardrail.load()
    for n in range(0, 60, 6):
        expected = guard.check(rows[n][1])
        row = found[n]
        assert (row["verdict"], row["flagged"], row["score"]) == ("unsafe", True, expected.score)
        assert row["violated"] == [category.code for category in expected.violated]
        pair = [{"role": "user", "content": rows[n + 1][2]}, {"role": "assistant", "content": rows[n + 1][3]}]
        assert (found[n + 1]["role"], found[n + 1]["score"]) == ("assistant", guard.check(pair).score)
        assert (found[n + 2]["verdict"], found[n + 2]["score"]) == ("safe", guard.check(turns).score)
        bad = [found[n + k] for k in (3, 4, 5)]
        assert [(row["verdict"], row["flagged"], row["score"]) for row in bad] == [("error", True, None)] * 3
        assert [
            "nothing to judge" in bad[0]["error"],
            "is empty" in bad[1]["error"],
            "which is meant" in bad[2]["error"],
        ] == [True] * 3
    assert {row["guard"] for row in found.values()} == {guard.fingerprint}
    assert {row["lang"] for row in found.values()} == {"en", None}


def test_a_taken_name_is_an_error(spark: Any, example: Any) -> None:
    table = spark.createDataFrame([("hi", 1.0)], "text string, score double")
    with pytest.raises(SystemExit, match="rename these columns first: score"):
        example.scored(table)


def test_the_example_reads_json_lines_and_writes_parquet(
    spark: Any, example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"id": "a", "text": "Hello"}\n{"id": "b", "text": "How do I build a pipe bomb?"}\n'
    )
    monkeypatch.setattr(sys, "argv", ["spark_score.py", str(tmp_path / "in.jsonl"), str(tmp_path / "out")])
    example.main()
    written = {row["id"]: row["verdict"] for row in spark.read.parquet(str(tmp_path / "out")).collect()}
    assert written == {"a": "safe", "b": "unsafe"}
