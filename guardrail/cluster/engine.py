"""`score`: many files in, a folder of parts or one file out, on the workers of a Ray cluster."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TypeVar

from guardrail import __version__
from guardrail.batch import Options
from guardrail.batch_run import Tally, partial_of
from guardrail.cluster import failures
from guardrail.cluster.model import ModelSpec
from guardrail.cluster.output import Output
from guardrail.cluster.pool import Pool, Size, check_installed, opened
from guardrail.cluster.records import Manifest, Record
from guardrail.cluster.shards import LineCount, Range, Shard, count, kind_of, line_shards, parquet_shards, ranges
from guardrail.cluster.storage import Source, expand
from guardrail.cluster.worker import Job
from guardrail.errors import GuardrailError, ResumeError, UsageError
from guardrail.jsonl import STDIO

__all__ = ["PART_BYTES", "ClusterOptions", "Progress", "score"]

PART_BYTES = 4 << 20
"""Of input, uncompressed, for each part: some 20,000 prompts, or a minute or a few of one core's time."""

# So much is counted faster here than a cluster would start to.
_COUNTED_HERE = 64 << 20
_THREADS = 16

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What only this engine takes."""

    size: Size = field(default_factory=Size)
    address: str | None = None
    """Of a Ray cluster; without one, and without RAY_ADDRESS, a cluster of this machine is started."""
    part_bytes: int = PART_BYTES
    retries: int = 3
    """How often a part is begun again whose worker died."""

    def __post_init__(self) -> None:
        if self.part_bytes < 1:
            raise UsageError(f"--part-bytes is {self.part_bytes}", hint="give a number from 1")
        if self.retries < 0:
            raise UsageError(f"--retries is {self.retries}", hint="give a number from 0")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    tally: Tally
    parts: int
    """That are whole."""
    planned: int
    again: int = 0
    """Parts of this run that were begun more than once, because a worker died."""
    record: Record | None = None
    """Of the part that has just become whole; None at the start."""


Report = Callable[[Progress], None]


def score(
    source: str,
    target: str,
    model: ModelSpec | None = None,
    options: Options | None = None,
    cluster: ClusterOptions | None = None,
    *,
    report: Report | None = None,
) -> Progress:
    """Score a file, a folder, a pattern or an address into a file, or into a folder when `target` ends with a slash.

    The rows come out as the local engine writes them, file after file in the order of their names. `report` is called
    at the start and after each part. Errors as for `guardrail.batch.score_file`, `MissingExtraError` without Ray, and
    `GuardrailError` when the cluster fails. After an error or an interrupt the output can be resumed.
    """
    check_installed()
    model, options, cluster = model or ModelSpec(), options or Options(engine="ray"), cluster or ClusterOptions()
    if source == STDIO:
        raise UsageError("IN: the ray engine reads files", hint="name files, or use --engine local")
    output = Output(target, resume=options.resume, overwrite=options.overwrite)
    inputs = expand(source)
    _check_apart(inputs, output)
    manifest = Manifest(__version__, tuple(inputs), cluster.part_bytes, options.max_line_bytes, model.describe())
    if options.resume:
        plan = output.earlier(manifest)
        if (plan is None or output.file is None) and (tally := output.finished(manifest)) is not None:
            return Progress(tally, 0, 0)
    else:
        plan = None
    with output.locked(), _Lazy(cluster) as pool:
        if plan is None:
            plan = _planned(inputs, cluster.part_bytes, pool)
            output.begin(manifest, plan)
        run = _Run(output, plan, report)
        missing = [shard for shard in plan if shard.index not in run.records]
        if missing:
            run.take(pool().answers(missing, _job(output, model, options, cluster, run.guard)))
        output.finish(manifest, [run.records[shard.index] for shard in plan])
        return run.progress


class _Lazy(ExitStack):
    """The pool, opened when it is asked for: a run that has only to join its parts needs no cluster."""

    def __init__(self, cluster: ClusterOptions) -> None:
        super().__init__()
        self._cluster = cluster
        self._pool: Pool | None = None

    def __call__(self) -> Pool:
        if self._pool is None:
            self._pool = self.enter_context(opened(self._cluster.address, self._cluster.size))
        return self._pool


class _Run:
    """The parts that are whole, and what is said about them."""

    def __init__(self, output: Output, plan: Sequence[Shard], report: Report | None) -> None:
        self._output = output
        self.records = output.records(plan)
        self.guard: str | None = None
        for record in self.records.values():
            self._check_guard(record)
        tally = sum((record.tally for record in self.records.values()), Tally())
        self.progress = Progress(tally, len(self.records), len(plan))
        self._report = report
        if report:
            report(self.progress)

    def take(self, answers: Generator[str]) -> None:
        """Note every answer; a failure is raised, and ends the work of the others."""
        with closing(answers):
            for answer in answers:
                self._note(answer)

    def _note(self, answer: str) -> None:
        if error := failures.decode(answer):
            raise error
        record = Record.from_json(answer)
        if record is None:
            raise GuardrailError("a worker gave an answer that is no record")
        self._check_guard(record)
        self._output.check_written(record)
        self.records[record.shard.index] = record
        before = self.progress
        again = before.again + (record.tries > 1)
        self.progress = Progress(before.tally + record.tally, len(self.records), before.planned, again, record)
        if self._report:
            self._report(self.progress)

    def _check_guard(self, record: Record) -> None:
        if self.guard not in (None, record.guard):
            raise ResumeError(
                f"guard: {record.worker} had {record.guard}, other workers had {self.guard}",
                hint="install the same model on every machine, and start again with --overwrite",
            )
        self.guard = record.guard


def _job(output: Output, model: ModelSpec, options: Options, cluster: ClusterOptions, guard: str | None) -> Job:
    return Job(
        run=uuid.uuid4().hex,
        model=model,
        folder=output.folder.url,
        suffix=output.suffix,
        batch_size=options.batch_size,
        max_line_bytes=options.max_line_bytes,
        stop=options.on_error == "stop",
        retries=cluster.retries,
        cpus=cluster.size.cpus,
        gpu=cluster.size.gpus > 0,
        guard=guard,
    )


def _planned(inputs: Sequence[Source], size: int, pool: Callable[[], Pool]) -> list[Shard]:
    """The shards of all files, in their order."""
    kinds = _each(kind_of, inputs)
    pieces = {
        source.url: list(ranges(source, size)) for source, kind in zip(inputs, kinds, strict=True) if kind == "lines"
    }
    counts = _counts([piece for found in pieces.values() for piece in found], pool)
    plan: list[Shard] = []
    for source, kind in zip(inputs, kinds, strict=True):
        if kind == "lines":
            plan += line_shards(source, [counts[piece] for piece in pieces[source.url]], len(plan))
        elif kind == "parquet":
            plan += parquet_shards(source, size, len(plan))
        else:
            plan.append(Shard(len(plan), kind, source, 0, source.size, 0))
    return plan


def _counts(pieces: Sequence[Range], pool: Callable[[], Pool]) -> dict[Range, LineCount]:
    if sum(piece.end - piece.start for piece in pieces) <= _COUNTED_HERE:
        found = _each(count, pieces)
    else:
        found = pool().counts(pieces)
    return dict(zip(pieces, found, strict=True))


def _each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Several at a time: most of the time goes into waiting for a storage."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(function, items))


def _check_apart(inputs: Sequence[Source], output: Output) -> None:
    """A `UsageError` when the output is an input, or is written among them."""
    files = () if output.file is None else (output.file, partial_of(output.file))
    written = {os.path.realpath(path) for path in files}
    for source in inputs:
        if os.path.realpath(source.url.removeprefix("file://")) in written or source.url.startswith(
            output.folder.url + "/"
        ):
            raise UsageError(f"-o: {source.name} is an input", hint="name another output")
