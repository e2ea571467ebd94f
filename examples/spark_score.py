"""Scores a Spark table: every column of the input, and the guard's decision beside it.

    spark-submit examples/spark_score.py IN.jsonl OUT
    spark-submit examples/spark_score.py s3a://bucket/in.parquet s3a://bucket/out

A table has the column text, or prompt and response, or messages (an array of structs with role and content), or all of
them with nulls in those that a row does not use. A row that cannot be judged gets the verdict "error" and is flagged.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import guardrail
from guardrail.batch import row_of

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

MODEL = "embedded"
DECISION = (
    "verdict string, flagged boolean, score double, violated array<string>, role string, error string, guard string"
)
SHAPES = ("text", "prompt", "response", "messages")
THREADS = 1  # as many as spark.task.cpus


@cache
def guard() -> guardrail.Guard:
    """One for each Python process of an executor, which Spark uses again for its next tasks."""
    return guardrail.load(MODEL, threads=THREADS)


def decided(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """What `mapInPandas` calls for each partition: the frames come and go one at a time."""
    for frame in frames:
        shapes = [name for name in SHAPES if name in frame.columns]
        rows = [row_of(given, 0) for given in map(plain, frame[shapes].to_dict("records"))]
        decisions = guard().check_many([row.conversation or () for row in rows])
        pairs = list(zip(rows, decisions, strict=True))
        yield frame.assign(
            verdict=[decision.verdict.value for _, decision in pairs],
            flagged=[decision.flagged for _, decision in pairs],
            score=[decision.score for _, decision in pairs],
            violated=[[category.code for category in decision.violated] for _, decision in pairs],
            role=[decision.role.value if decision.role else None for _, decision in pairs],
            error=[str(row.error) if row.error else decision.error for row, decision in pairs],
            guard=guard().fingerprint,
        )


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON would have it: without its nulls, its structs as objects."""
    given: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, str):
            given[name] = value
        elif hasattr(value, "__len__"):
            given[name] = [turn.asDict() if hasattr(turn, "asDict") else dict(turn) for turn in value]
    return given


def scored(table: DataFrame) -> DataFrame:
    """The table with the columns of the decision; a column that has one of their names already is an error."""
    from pyspark.sql.types import StructType

    decision = StructType.fromDDL(DECISION)
    taken = {field.name for field in decision} & set(table.columns)
    if taken:
        raise SystemExit(f"rename these columns first: {', '.join(sorted(taken))}")
    return table.mapInPandas(decided, StructType([*table.schema.fields, *decision.fields]))


def main() -> None:
    """Read JSON Lines or Parquet, write Parquet."""
    from pyspark.sql import SparkSession

    source, target = sys.argv[1:]
    spark = SparkSession.builder.appName("guardrail").getOrCreate()
    read = spark.read.parquet if source.endswith(".parquet") else spark.read.json
    scored(read(source)).write.parquet(target)


if __name__ == "__main__":
    main()
