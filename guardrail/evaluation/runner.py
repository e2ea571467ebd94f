"""Scores one suite with one guard: cached, resumable, every row kept. Metrics come later, from the rows.

A run's folder holds `scores.jsonl`, one row an item, and `run.json`: what was scored, with what, when and how.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from guardrail import __version__
from guardrail.batch_output import failures
from guardrail.calibration import Calibration
from guardrail.errors import BackendError, InputError, UsageError
from guardrail.evaluation.cache import Cache, key
from guardrail.evaluation.scored import Scored, write_scores
from guardrail.evaluation.suite_rows import Item, LoadedSuite
from guardrail.guard import Guard
from guardrail.judgement import Decider, Judgement
from guardrail.policy import Policy, Thresholds
from guardrail.taxonomy import Taxonomy

__all__ = ["ADAPTATIONS", "Adaptation", "Run", "judge_items", "run_suite"]

Adaptation = Literal["none", "zero-shot", "few-shot"]
ADAPTATIONS: tuple[Adaptation, ...] = ("none", "zero-shot", "few-shot")
"""The guard's own taxonomy; the suite's; the suite's with examples (Llama Guard paper, section 3.2)."""

_FORMAT = 1
_LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "scikit-learn", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Second:
    """The second classifier of a cascade, in the record of a run."""

    model: str
    template: str
    calibration: Calibration
    policy: Policy

    def to_dict(self) -> dict[str, Any]:
        """As in run.json."""
        named = {"model": self.model, "template": self.template}
        return {**named, "calibration": self.calibration.to_dict(), "policy": _thresholds(self.policy)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], file: Path) -> Second:
        """Read back what `to_dict` made."""
        calibration = Calibration.from_dict(raw["calibration"], file)
        return cls(raw["model"], raw["template"], calibration, _policy(raw["policy"]))


def _thresholds(policy: Policy) -> dict[str, Any]:
    return {"user": policy.user.to_dict(), "assistant": policy.assistant.to_dict()}


def _policy(raw: Mapping[str, Any]) -> Policy:
    return Policy(Thresholds(**raw["user"]), Thresholds(**raw["assistant"]))


@dataclass(frozen=True, slots=True)
class Run:
    """The record of a run; `run.json`."""

    suite: dict[str, Any]
    """What a reader must know of it: id, name, licence, citation, label rule, counts, digest of the data."""
    adaptation: Adaptation
    model: str
    template: str
    classifier: str
    taxonomy: Taxonomy
    suite_taxonomy: Taxonomy | None
    calibration: Calibration
    policy: Policy
    started: str
    seconds: float = 0.0
    scored: int = 0
    """Items that the classifier judged in this run."""
    cached: int = 0
    """Items whose judgement was there already."""
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    """The command lines that scored and decided it; empty from Python."""
    default_taxonomy: str = ""
    """Digest of the classifier's default taxonomy."""
    guardrail: str = __version__
    """The version that scored it."""
    rows_sha256: str = ""
    """Of scores.jsonl."""
    loading: dict[str, Any] = field(default_factory=dict)
    """The `model` that was named, and the options that were given for it; empty from Python."""
    second: Second | None = None
    """Of a cascade; `calibration`, `policy` and `template` are its first classifier's."""

    @property
    def decider(self) -> Decider:
        """From judgements to decisions."""
        second = self.second
        other = Decider(self.taxonomy, second.calibration, second.policy) if second else None
        return Decider(self.taxonomy, self.calibration, self.policy, other)

    def save(self, folder: Path) -> None:
        """Write run.json."""
        plain = {
            "format": _FORMAT,
            **{name: getattr(self, name) for name in self.__slots__},
            "taxonomy": self.taxonomy.to_dict(),
            "suite_taxonomy": self.suite_taxonomy.to_dict() if self.suite_taxonomy else None,
            "calibration": self.calibration.to_dict(),
            "policy": _thresholds(self.policy),
            "second": self.second.to_dict() if self.second else None,
        }
        new = folder / "run.json.new"
        new.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(folder / "run.json")

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read run.json; InputError when it is not the record of a run."""
        file = folder / "run.json"
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            if raw.pop("format") != _FORMAT:
                raise ValueError("another format")
            second = raw.pop("second", None)
            suite_taxonomy = raw.pop("suite_taxonomy")
            return cls(
                taxonomy=Taxonomy.from_dict(raw.pop("taxonomy"), str(file)),
                suite_taxonomy=Taxonomy.from_dict(suite_taxonomy, str(file)) if suite_taxonomy else None,
                calibration=Calibration.from_dict(raw.pop("calibration"), file),
                policy=_policy(raw.pop("policy")),
                second=Second.from_dict(second, file) if second else None,
                **raw,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            hint = "give a folder that 'guardrail eval -o' wrote"
            raise InputError(f"this is not the record of a run: {error}", file=str(file), hint=hint) from None


def run_suite(
    guard: Guard,
    loaded: LoadedSuite,
    adaptation: Adaptation,
    folder: Path,
    cache: Cache,
    *,
    batch_size: int = 64,
    texts: bool = True,
    command: str = "",
    loading: Mapping[str, Any] | None = None,
    report: Callable[[int], None] | None = None,
) -> Run:
    """Judge every item and write the run's folder; `report` is given the number of items done so far.

    Killed, it starts again where the cache ends.
    """
    with failures(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
    decider = guard.decider
    judged = Judged()
    done = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal done
        for item, judgement in judge_items(guard, loaded.items, cache, judged, batch_size=batch_size):
            yield Scored.of(item, judgement, texts=texts).to_dict(decider)
            done += 1
            if report:
                report(done)

    rows_sha256 = write_scores(folder / "scores.jsonl", rows())
    run = Run(
        suite=_facts(loaded, guard),
        adaptation=adaptation,
        model=guard.backend.name,
        template=guard.template.ref,
        classifier=guard.classifier,
        taxonomy=guard.taxonomy,
        suite_taxonomy=loaded.suite.taxonomy,
        calibration=guard.calibration,
        policy=guard.policy,
        started=started,
        seconds=round(time.monotonic() - clock, 2),
        scored=judged.scored,
        cached=judged.cached,
        environment=_environment(),
        command=command,
        default_taxonomy=guard.backend.default_taxonomy.digest,
        rows_sha256=rows_sha256,
        loading=dict(loading or {}),
        second=_second(guard),
    )
    run.save(folder)
    return run


@dataclass(slots=True)
class Judged:
    """Counts of a run under way."""

    scored: int = 0
    cached: int = 0


def judge_items(
    guard: Guard, items: Sequence[Item], cache: Cache, counts: Judged, *, batch_size: int = 64
) -> Iterator[tuple[Item, Judgement]]:
    """Each item with its judgement, in order; equal conversations are judged once."""
    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}", hint="give a number from 1")
    sizes = (0, len(guard.taxonomy))
    stream = iter(items)
    while batch := list(islice(stream, batch_size)):
        keys = [key(guard.classifier, item.conversation) if item.conversation else b"" for item in batch]
        known = {
            name: found
            for name, found in cache.get([name for name in keys if name]).items()
            if found.margins and len(found.margins.categories) in sizes
        }
        missing = {
            name: item.conversation for name, item in zip(keys, batch, strict=True) if name and name not in known
        }
        conversations = [conversation for conversation in missing.values() if conversation]
        fresh = dict(zip(missing, guard.judge_many(conversations, batch_size=batch_size), strict=True))
        cache.put(fresh)
        counts.scored += sum(name in fresh for name in keys)
        counts.cached += sum(name in known for name in keys)
        for name, item in zip(keys, batch, strict=True):
            failed = Judgement(None, error=BackendError(item.error or "there is nothing to judge"))
            yield item, known.get(name) or fresh.get(name) or failed


def _second(guard: Guard) -> Second | None:
    """Of a cascade."""
    for second in guard.stages[1:]:
        return Second(second.backend.name, second.template.ref, second.calibration, second.policy)
    return None


def _facts(loaded: LoadedSuite, guard: Guard) -> dict[str, Any]:
    suite = loaded.suite
    models = (stage.backend.name.partition("@")[0] for stage in guard.stages)
    return {
        "id": suite.id,
        "name": suite.name,
        "description": suite.description,
        "licence": suite.licence,
        "citation": suite.citation,
        "judged": suite.judged.value,
        "label": suite.label_text,
        "notes": suite.notes,
        "caveat": " ".join(suite.caveats[model] for model in models if model in suite.caveats),
        "use": suite.use,
        "records": loaded.records,
        "items": len(loaded.items),
        "unsafe": loaded.unsafe,
        "unknown": loaded.unknown,
        "origin": loaded.origin,
        "sha256": loaded.sha256,
    }


def _environment() -> dict[str, Any]:
    """What a score may depend on besides the digests."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
