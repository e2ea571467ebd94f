"""Ray: the cluster, and the actors of Ray Data that work on it. The only module that imports it."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from guardrail.cluster import failures
from guardrail.cluster.shards import LineCount, Range, Shard, count
from guardrail.cluster.worker import Job, Worker
from guardrail.errors import GuardrailError, MissingExtraError, UsageError

__all__ = ["Pool", "Size", "check_installed", "opened"]

# A worker that is slower to start, on a machine with other work, is given up, and the driver would wait for it forever.
_PATIENCE = {"RAY_worker_register_timeout_seconds": "600"}
# Ray gives up its own start after 30 seconds, which cannot be changed.
_STARTS = 3
# Only shards and records go through it.
_OBJECT_STORE = 256 << 20
# Beyond so many tasks Ray has more to do with them than they with the rows: then a task is several shards.
_TASKS = 10_000


@dataclass(frozen=True, slots=True)
class Size:
    """How many workers, and what each has."""

    workers: int | None = None
    """None: as many as the cluster has room for."""
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers is {self.workers}", hint="give a number from 1")
        if self.cpus < 1:
            raise UsageError(f"--cpus-per-worker is {self.cpus}", hint="give a number from 1")
        if self.gpus < 0:
            raise UsageError(f"--gpus-per-worker is {self.gpus}", hint="0, a share such as 0.5, or a number")


def check_installed() -> None:
    """`MissingExtraError` when Ray Data or what it reads with is not there; imports nothing."""
    from importlib.util import find_spec

    for name in ("ray", "pyarrow", "fsspec"):
        if find_spec(name) is None:
            raise MissingExtraError(name, "ray")


@contextmanager
def opened(address: str | None, size: Size) -> Iterator[Pool]:
    """A pool on the cluster at an address (or in RAY_ADDRESS), or on one of this machine alone for as long as it lasts.

    A Ray that the process has connected to already is used as it is. `UsageError` when a cluster that was started for
    this run can never hold such a worker, `GuardrailError` when there is no cluster.
    """
    check_installed()
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **_PATIENCE}.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield Pool(size)
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address and address != "local":
            ray.init(address=address, **quiet)
        else:
            _start(max(os.cpu_count() or 1, (size.workers or 1) * size.cpus), quiet)
    except Exception as error:  # Ray has no error class for what may go wrong here
        raise GuardrailError(f"Ray cannot be started or reached: {_first_line(error)}") from None
    try:
        yield Pool(size)
    finally:
        ray.shutdown()


def _start(cpus: int, quiet: dict[str, Any]) -> None:
    """A cluster of this machine."""
    import ray

    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                address="local", num_cpus=cpus, object_store_memory=_OBJECT_STORE, include_dashboard=False, **quiet
            )
            return
        except Exception as error:
            if not left or "timed out" not in str(error):
                raise
            ray.shutdown()


class Pool:
    """The workers of an open cluster."""

    def __init__(self, size: Size) -> None:
        self._size = size

    def counts(self, pieces: Sequence[Range]) -> list[LineCount]:
        """The lines of each range, counted on the cluster."""
        rows = [{"index": index, "piece": piece} for index, piece in enumerate(pieces)]
        found: dict[int, LineCount] = {}
        with _quiet() as data:
            counted = data.from_items(rows, override_num_blocks=min(len(rows), 1000)).map(_counted)
            for row in _rows(counted):
                if error := failures.decode(row["failure"]):
                    raise error
                found[row["index"]] = LineCount(row["lines"], row["first"])
        return [found[index] for index in range(len(pieces))]

    def answers(self, shards: Sequence[Shard], job: Job) -> Generator[str]:
        """A record or a failure for each shard, as they come; a worker that dies is replaced, its shard done again."""
        size, workers = self._size, self.workers(len(shards))
        rows = [{"shard": shard.to_json()} for shard in shards]
        with _quiet() as data:
            scored = data.from_items(rows, override_num_blocks=min(len(rows), _TASKS)).map_batches(
                Worker,
                fn_constructor_args=(job,),
                batch_size=1,
                # A shard that waits at one worker while another one is idle makes the end of a run longer.
                compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                num_cpus=size.cpus,
                num_gpus=size.gpus or None,
            )
            for row in _rows(scored):
                yield row["record"]

    def workers(self, shards: int) -> int:
        """How many there will be: no more than shards, and by default as many as the cluster has room for."""
        import ray

        total = ray.cluster_resources()
        room = int(total.get("CPU", 0)) // self._size.cpus
        if self._size.gpus:
            room = min(room, int(total.get("GPU", 0) / self._size.gpus))
        if room < 1:
            wanted = f"{self._size.cpus} CPUs" + (f" and {self._size.gpus:g} GPUs" if self._size.gpus else "")
            has = f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs"
            raise UsageError(f"a worker needs {wanted}, the cluster has {has}", hint="ask for less, or add machines")
        return max(1, min(self._size.workers or room, shards))


def _counted(row: dict[str, Any]) -> dict[str, Any]:
    try:
        lines, first = count(Range(*row["piece"]))
        return {"index": row["index"], "lines": lines, "first": first, "failure": "{}"}
    except Exception as error:
        return {"index": row["index"], "lines": 0, "first": 0, "failure": failures.encode(error, "that counts lines")}


@contextmanager
def _quiet() -> Iterator[Any]:
    """Ray Data without its progress bars, plans and messages on the terminal."""
    import ray.data

    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    shown = [(handler, handler.level) for handler in logging.getLogger("ray.data").handlers if _is_console(handler)]
    for handler, _ in shown:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield ray.data
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before
        for handler, level in shown:
            handler.setLevel(level)


def _is_console(handler: logging.Handler) -> bool:
    """Its log files go on."""
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset.iter_rows()
    except GuardrailError:
        raise
    except Exception as error:  # workers answer with their failures: this is the cluster's
        raise GuardrailError(
            f"the cluster failed: {_first_line(error)}", hint="the parts so far are kept: go on with --resume"
        ) from None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no reason given'}"
