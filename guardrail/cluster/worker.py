"""A worker: one model, and one part of the output after another."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardrail import __version__
from guardrail.batch_output import packed
from guardrail.batch_rows import judged
from guardrail.batch_run import Tally
from guardrail.cluster import failures
from guardrail.cluster.model import ModelSpec
from guardrail.cluster.reading import read
from guardrail.cluster.records import Record, part_name, record_name, tries_name
from guardrail.cluster.shards import Shard
from guardrail.cluster.storage import Folder, find, is_url
from guardrail.errors import GuardrailError, InputError, ResumeError, RowError
from guardrail.guard import Guard

__all__ = ["Job", "Worker"]

_STOP = "correct the row and start again with --overwrite, or go on with --resume --on-error record"
# Seconds before a storage that is far away is asked again.
_PAUSES = (1.0, 5.0)


@dataclass(frozen=True, slots=True)
class Job:
    """What all workers of a run are told."""

    run: str
    """Tells this run's attempts from those of an earlier one."""
    model: ModelSpec
    folder: str
    suffix: str
    batch_size: int
    max_line_bytes: int
    stop: bool
    """Whether a row that cannot be judged ends the run."""
    retries: int
    """How often a part is begun again whose worker died."""
    cpus: int
    gpu: bool
    guard: str | None
    """The fingerprint that the parts of an earlier run have."""
    package: str = __version__


class Worker:
    """What Ray calls; every failure is an answer, so that Ray itself only has to deal with workers that died."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = Folder(job.folder)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._guard: Guard | None = None
        self._failure: Exception | None = None
        try:
            self._guard = _loaded(job)
            self._fingerprint = self._guard.fingerprint
        except Exception as error:
            self._failure = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """A column of shards in, a column of records and failures out."""
        return {"record": [self._answer(Shard.from_json(text)) for text in batch["shard"]]}

    def _answer(self, shard: Shard) -> str:
        try:
            if self._guard is None:
                raise self._failure or GuardrailError("there is no model")
            return (self._finished(shard) or self._scored(self._guard, shard)).to_json()
        except Exception as error:
            return failures.encode(error, self._name)

    def _finished(self, shard: Shard) -> Record | None:
        """The record of a part that was written before its worker died."""
        found = self._folder.read(record_name(shard.index))
        record = Record.from_json(found) if found else None
        return record if record and (record.shard, record.guard) == (shard, self._fingerprint) else None

    def _scored(self, guard: Guard, shard: Shard) -> Record:
        tries = self._begun(shard)
        near = self._folder.local and not is_url(shard.source.url)
        for pause in (*_PAUSES, None):
            try:
                record = self._written(guard, shard, tries)
                self._folder.write(record_name(shard.index), record.to_json().encode())
                return record
            except (GuardrailError, OSError) as error:
                if near or pause is None or isinstance(error, RowError):
                    raise
                time.sleep(pause)
        raise AssertionError

    def _begun(self, shard: Shard) -> int:
        """Count the attempt; an error after too many, because the part itself seems to kill its workers."""
        found = self._folder.read(tries_name(shard.index))
        run, _, earlier = (found or b"").decode().partition(" ")
        tries = int(earlier) + 1 if run == self._job.run and earlier.isdigit() else 1
        if tries > self._job.retries + 1:
            place = f"{shard.source.name} after line {shard.before}"
            hint = "was there enough memory? try --batch-size 1, or a smaller --part-bytes with --overwrite"
            raise GuardrailError(f"{place}: {tries - 1} workers died while they scored this part", hint=hint)
        self._folder.write(tries_name(shard.index), f"{self._job.run} {tries}".encode())
        return tries

    def _written(self, guard: Guard, shard: Shard, tries: int) -> Record:
        started = time.monotonic(), time.process_time()
        _check_unchanged(shard)
        tally, size, digest = Tally(), 0, hashlib.sha256()
        name = part_name(shard.index, self._job.suffix)
        with self._folder.writing(name) as file:
            for rows, blank in read(shard, self._job.batch_size, max_line_bytes=self._job.max_line_bytes):
                data, counted = judged(guard, rows, shard.source.name, stop=_STOP if self._job.stop else None)
                tally = tally + counted + Tally(blank=blank)
                data = packed(data, name)
                file.write(data)
                digest.update(data)
                size += len(data)
        seconds, cpu = time.monotonic() - started[0], time.process_time() - started[1]
        return Record(
            shard,
            size,
            digest.hexdigest(),
            tally,
            self._fingerprint,
            self._name,
            tries,
            round(seconds, 3),
            round(cpu, 3),
        )


def _loaded(job: Job) -> Guard:
    if __version__ != job.package:
        raise GuardrailError(
            f"the worker has guardrail {__version__}, the command has {job.package}",
            hint="install the same version on every machine",
        )
    guard = job.model.load(cpus=job.cpus, gpu=job.gpu)
    if job.guard is not None and guard.fingerprint != job.guard:
        raise ResumeError(
            f"guard: the earlier run had {job.guard}, this one has {guard.fingerprint}",
            hint="give the same model, or start again with --overwrite",
        )
    return guard


def _check_unchanged(shard: Shard) -> None:
    now = find(shard.source.url)
    if (now.size, now.version) != (shard.source.size, shard.source.version):
        raise InputError("has changed since the run began", file=shard.source.name)
