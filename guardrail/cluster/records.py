"""What a run on a cluster writes down about itself: what it depends on, and what each finished part holds.

In the folder of the parts, under `_run/`: `plan.jsonl` has one shard a line, `manifest.json` the inputs and options,
and `part-00000.json` vouches for `part-00000.jsonl`. A part without its record does not count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from guardrail.batch_run import Tally
from guardrail.cluster.shards import Shard
from guardrail.cluster.storage import Source
from guardrail.errors import ResumeError

__all__ = ["MANIFEST", "PLAN", "Manifest", "Record", "part_name", "record_name", "tries_name"]

MANIFEST = "_run/manifest.json"
PLAN = "_run/plan.jsonl"
_FORMAT = "cluster-1"
_AGAIN = "start again with --overwrite"


def part_name(index: int, suffix: str) -> str:
    """The part of a shard; the names sort as the input does."""
    return f"part-{index:05}{suffix}" if index < 100_000 else f"part-{index:09}{suffix}"


def record_name(index: int) -> str:
    """Its record."""
    return f"_run/part-{index:05}.json"


def tries_name(index: int) -> str:
    """How often it was begun."""
    return f"_run/part-{index:05}.tries"


@dataclass(frozen=True, slots=True)
class Record:
    """A part that is whole."""

    shard: Shard
    size: int
    """In bytes."""
    sha256: str
    tally: Tally
    guard: str
    """The fingerprint of the guard that judged it."""
    worker: str
    """`host:process id`."""
    tries: int
    """How often it was begun: more than once where a worker died."""
    seconds: float
    cpu_seconds: float
    """Of the worker's process: what a core was busy with, whatever else the machine did."""

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Record | None:
        """What `to_json` wrote; None for anything else, such as half of it."""
        try:
            raw = json.loads(text)
            shard = Shard.from_json(json.dumps(raw["shard"]))
            return cls(**{**raw, "shard": shard, "tally": Tally(**raw["tally"])})
        except (ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the output depends on, but for the weights: those have a fingerprint in every part's record."""

    package: str
    """The version of this package."""
    inputs: tuple[Source, ...]
    part_bytes: int
    max_line_bytes: int
    model: dict[str, Any]

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, file: str) -> Manifest:
        """What `to_json` wrote; a `ResumeError` for anything else."""
        try:
            raw = json.loads(text)
            if raw.pop("format") != _FORMAT:
                raise ValueError("another format")
            return cls(**{**raw, "inputs": tuple(Source(**source) for source in raw["inputs"])})
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ResumeError(f"{file}: this is not the manifest of a run on a cluster", hint=_AGAIN) from None

    def check(self, earlier: Manifest, target: str) -> None:
        """A `ResumeError` that names the first difference to an earlier run."""
        _check_inputs(earlier.inputs, self.inputs, target)
        pairs: list[tuple[str, Any, Any]] = [
            ("guardrail", earlier.package, self.package),
            ("--part-bytes", earlier.part_bytes, self.part_bytes),
            ("--max-line-bytes", earlier.max_line_bytes, self.max_line_bytes),
            *((name, earlier.model.get(name), value) for name, value in self.model.items()),
        ]
        for name, then, now in pairs:
            if then != now:
                raise ResumeError(
                    f"{target}: {name}: the earlier run had {then}, this one has {now}",
                    hint=f"give the same model and options, or {_AGAIN}",
                )


def _check_inputs(then: Sequence[Source], now: Sequence[Source], target: str) -> None:
    hint = f"give the same input, or {_AGAIN}"
    before = {source.url: source for source in then}
    for source in now:
        known = before.pop(source.url, None)
        if known is None:
            raise ResumeError(f"{target}: {source.name} was not among the inputs of the earlier run", hint=hint)
        if (known.size, known.version) != (source.size, source.version):
            raise ResumeError(f"{target}: {source.name} has changed since the earlier run", hint=hint)
    for source in before.values():
        raise ResumeError(f"{target}: {source.name}, an input of the earlier run, is missing", hint=hint)
