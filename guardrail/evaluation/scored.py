"""`scores.jsonl`: one row for each item of a suite, with everything that metrics need and no classifier."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.batch_output import failures, locked
from guardrail.errors import BackendError, InputError, RowError
from guardrail.evaluation.overlap import text_digest
from guardrail.evaluation.suite_rows import Item
from guardrail.jsonl import encode, read
from guardrail.judgement import Decider, Judgement
from guardrail.scoring import Margins
from guardrail.taxonomy import Taxonomy
from guardrail.types import Role

__all__ = ["Scored", "read_scores", "write_scores"]


@dataclass(frozen=True, slots=True)
class Scored:
    """An item's label beside what the classifier said."""

    id: str
    unsafe: bool | None
    labels: Mapping[str, bool | None]
    """By code of the suite's taxonomy; None is unknown."""
    slices: Mapping[str, str]
    judgement: Judgement
    digest: str | None = None
    """Of the judged text, to find copies of it elsewhere."""
    messages: tuple[Mapping[str, str], ...] = ()
    """Role and content; empty when texts are not kept."""

    @classmethod
    def of(cls, item: Item, judgement: Judgement, *, texts: bool) -> Scored:
        """The row of an item."""
        turns = item.conversation.messages if texts and item.conversation else ()
        messages = tuple({"role": turn.role.value, "content": turn.text} for turn in turns)
        digest = text_digest(item.conversation.judged.text) if item.conversation else None
        return cls(item.id, item.unsafe, item.categories, item.slices, judgement, digest, messages)

    def to_dict(self, decider: Decider) -> dict[str, Any]:
        """As in the file: what is decided under the run's calibration and policy, and the margins that it came from."""
        margins = self.judgement.margins
        codes = decider.taxonomy.codes if margins and margins.categories else ()
        decided = decider(self.judgement)
        return {
            "id": self.id,
            "unsafe": self.unsafe,
            "verdict": decided.verdict.value,
            "flagged": decided.flagged,
            "score": decided.scores.unsafe if decided.scores else None,
            "scores": dict(zip(codes, decided.scores.categories, strict=True)) if decided.scores else {},
            "margin": margins.unsafe if margins else None,
            "margins": dict(zip(codes, margins.categories, strict=True)) if margins else {},
            "own": margins.own if margins else None,
            "labels": dict(self.labels),
            "slices": dict(self.slices),
            "role": self.judgement.role.value if self.judgement.role else None,
            "truncated": self.judgement.truncated,
            **({"stage": self.judgement.stage} if self.judgement.stage else {}),
            "error": str(self.judgement.error) if self.judgement.error else None,
            "digest": self.digest,
            "messages": [dict(message) for message in self.messages],
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], taxonomy: Taxonomy) -> Scored:
        """Read back what `to_dict` made; KeyError, TypeError or ValueError when it did not."""
        role = None if row["role"] is None else Role(row["role"])
        margins, error = None, None
        if row["margin"] is None:
            error = BackendError(str(row["error"]))
        else:
            codes = taxonomy.codes if row["margins"] else ()
            margins = Margins(float(row["margin"]), tuple(float(row["margins"][code]) for code in codes), row["own"])
        stage = int(row.get("stage", 0))
        judgement = Judgement(margins, role, bool(row["truncated"]), error=error, stage=stage)
        named = (row["id"], row["unsafe"], row["labels"], row["slices"])
        return cls(*named, judgement, row["digest"], tuple(row["messages"]))


def read_scores(file: Path, taxonomy: Taxonomy, sha256: str) -> Iterator[Scored]:
    """The rows of a scores file.

    Raises InputError when its SHA-256 is another one, and RowError for a row that is none.
    """
    hint = "score the suite again"
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(file), hint=hint) from None
    if found != sha256:
        raise InputError("these are not the rows that run.json tells of", file=str(file), hint=hint)
    for number, row in read(file):
        try:
            yield Scored.from_dict(row, taxonomy)
        except (KeyError, TypeError, ValueError) as error:
            raise RowError(
                f"this is no row of a scores file: {error}", file=str(file), line=number, hint=hint
            ) from None


def write_scores(file: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write the rows as they come; the file is there when it is whole. Returns its SHA-256.

    Raises ResumeError when another process is writing it, and GuardrailError when it cannot be written.
    """
    partial = file.with_name(f"{file.name}.partial")
    digest = hashlib.sha256()
    with failures(str(file)), locked(partial, new=True) as raw:
        raw.truncate()
        with io.BufferedWriter(raw) as stream:
            for row in rows:
                line = encode(row)
                digest.update(line)
                stream.write(line)
            stream.flush()
            os.fsync(raw.fileno())
            partial.replace(file)
    return digest.hexdigest()
