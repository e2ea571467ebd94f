"""From labelled files to what a trainer needs: checked rows for each pass, validation rows, and policies."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from guardrail.errors import InputError, UsageError
from guardrail.evaluation.suite_rows import LoadedSuite
from guardrail.jsonl import encode
from guardrail.training.amounts import Amount, sample
from guardrail.training.augment import augment
from guardrail.training.checks import Checks, check
from guardrail.training.config import TrainingConfig
from guardrail.training.dedupe import EvaluationIndex, evaluation_texts, split
from guardrail.training.labelled import LabelledRow, LabelSpace, line_of, read_rows
from guardrail.training.labels import HazardTable
from guardrail.training.policies import PolicySampler, example_pool
from guardrail.training.rows import Row

__all__ = ["Training", "load_data"]


@dataclass(frozen=True, slots=True)
class Training:
    """Checked rows; none of them is an evaluation text, and none is, or nearly is, in both parts."""

    rows: tuple[Row, ...]
    validation: tuple[Row, ...]
    sampler: PolicySampler
    """Draws the policies of the configuration, with examples from the training rows."""
    checks: Checks
    """Of the training files; rows held out by share, and sources without an amount, are among those left."""
    validation_checks: Checks | None
    """Of the validation files, where there are any."""
    amounts: Mapping[str, Amount] | None = None
    """What a pass sees of each source; None: every row once."""
    noise: float = 0.0
    digest: str = ""
    """SHA-256 of all rows to train and to validate on, with those that are texts of a suite."""

    def sample(self, number: int, seed: int) -> list[Row]:
        """The rows of pass `number`, in random order, some of them noisy; the same for the same numbers."""
        chosen = random.Random(f"pass {seed} {number}")
        rows = list(self.rows)
        if self.amounts is not None:
            rows = sample(self.sources(), self.amounts, number, seed)
        chosen.shuffle(rows)
        return [augment(row, chosen, self.noise) for row in rows]

    def sources(self) -> dict[str, list[Row]]:
        """The training rows by source."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.source, []).append(row)
        return found


def load_data(config: TrainingConfig, suites: Sequence[LoadedSuite] = ()) -> Training:
    """Read and check everything that the configuration names; rows that are, or nearly are, texts of `suites` go.

    They go last, so that which rows are held out does not depend on the suites. Raises InputError with file, line and
    field for a bad row, and where no row, or only one verdict, is left to train or to validate on; UsageError for an
    amount of a source that no row has.
    """
    data, space = config.data, config.space
    table = None if data.related is None else HazardTable.read(data.related, space.names)
    index = EvaluationIndex(evaluation_texts(*data.keep_out)) if data.keep_out else None
    validation, validation_checks = (
        _checked(data.validation, space, table, index, ()) if data.validation else ([], None)
    )
    rows, checks = _checked(data.train, space, table, index, validation)
    if data.sources is not None:
        rows = _of_sources(rows, data.sources)
    if not data.validation:
        rows, validation = split(rows, data.validation_share)
    if data.validation_rows is not None and len(validation) > data.validation_rows:
        validation = random.Random(0).sample(validation, data.validation_rows)
    digest = _digest(rows, validation, space)
    if suites:
        compared = EvaluationIndex(_texts(suites))
        before = len(rows) + len(validation)
        rows, validation = ([row for row in part if not compared.reason(row)] for part in (rows, validation))
        checks = replace(checks, compared=before - len(rows) - len(validation))
    _check_both(rows, data.train, "training")
    _check_both(validation, data.validation or data.train, "validation")
    wordings = space.wordings()
    if table is not None:
        wordings |= {name: texts for name, texts in table.wordings.items() if texts}
    sampler = PolicySampler(space, config.policies, config.changes, wordings, example_pool(rows))
    return Training(
        tuple(rows), tuple(validation), sampler, checks, validation_checks, data.sources, config.noise, digest
    )


def _digest(rows: Sequence[Row], validation: Sequence[Row], space: LabelSpace) -> str:
    found = hashlib.sha256()
    for part in (rows, validation):
        for row in part:
            found.update(encode(line_of(row, space)))
        found.update(b"\n")
    return found.hexdigest()


def _texts(suites: Sequence[LoadedSuite]) -> Iterator[str]:
    """What is judged in the suites; what was said before it may be said by anybody."""
    return (item.conversation.judged.text for suite in suites for item in suite.items if item.conversation)


def _of_sources(rows: Sequence[Row], amounts: Mapping[str, Amount]) -> list[Row]:
    """The rows of the sources that have an amount."""
    there = {row.source for row in rows}
    if missing := sorted(set(amounts) - there):
        hint = f"there are: {', '.join(sorted(there))}"
        raise UsageError(f"data.sources: no training row has the source {missing[0]!r}", hint=hint)
    return [row for row in rows if row.source in amounts]


def _checked(
    files: Sequence[Path], space: LabelSpace, table: HazardTable | None, index: EvaluationIndex | None,
    validation: Sequence[Row],
) -> tuple[list[Row], Checks]:  # fmt: skip
    unknown: Counter[str] = Counter()

    def rows() -> Iterator[LabelledRow]:
        for file in files:
            yield from read_rows(file, space, table, unknown)

    return check(rows(), space, index, validation, unknown)


def _check_both(rows: Sequence[Row], files: Sequence[Path], part: str) -> None:
    """Without rows of both verdicts there is nothing to learn, and nothing to measure."""
    for name, found in (("unsafe", [row for row in rows if row.unsafe >= 0.5]), ("safe", _safe(rows))):
        if not found:
            more = "add some, or give a larger validation_share: rows that are nearly equal stay together"
            hint = "add some" if part == "training" else more
            raise InputError(f"there are no {name} rows left for {part}", file=str(files[0]), hint=hint)


def _safe(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if 0 <= row.unsafe < 0.5]
