"""Packs on their way into the training loop: this process's share of them, made ahead in a thread of their own."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from queue import Full, Queue
from typing import Any, TypeVar

from torch.utils.data import IterableDataset

from guardrail.training.packing import Pack

__all__ = ["Feed", "ahead"]

T = TypeVar("T")
_AHEAD = 32
_PATIENCE = 0.2  # seconds between two looks at whether the consumer is gone


class Feed(IterableDataset[Pack]):
    """The packs of one process, from a given one on: of each forward pass, process r takes the r-th `share`."""

    def __init__(self, drafts: Iterable[Callable[[], Pack]], *, share: int, rank: int, processes: int) -> None:
        """Of the `drafts`, those of this process are made into packs, and no others."""
        self.start = 0
        """How many packs of all processes to skip: those that an earlier run was trained on."""
        self._drafts = drafts
        self._share = share
        self._rank = rank
        self._processes = processes

    def __iter__(self) -> Iterator[Pack]:
        return ahead(self._mine(), _AHEAD)

    def _mine(self) -> Iterator[Pack]:
        for number, draft in enumerate(islice(iter(self._drafts), self.start, None), self.start):
            if number // self._share % self._processes == self._rank:
                yield draft()


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items, of which up to `count` are made in advance; an error comes at the place where it happened.

    The thread that makes them has ended when the iterator is closed, and before Python does: one that is cut off inside
    of a library takes the process down with it.
    """
    queue: Queue[tuple[T | None, BaseException | None]] = Queue(count)
    gone = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, queue, gone), name="packs", daemon=True)

    def end() -> None:
        gone.set()
        # The garbage collector may close the iterator in any thread, this one too.
        if threading.current_thread() is not thread:
            thread.join()

    thread.start()
    atexit.register(end)
    try:
        while True:
            item, error = queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an item comes without an error
    finally:
        end()
        atexit.unregister(end)


def _produce(items: Iterable[T], queue: Queue[Any], gone: threading.Event) -> None:
    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not gone.is_set():
            with suppress(Full):
                queue.put(entry, timeout=_PATIENCE)
                return True
        return False

    try:
        for item in items:
            if not put((item, None)):
                return
        put((None, StopIteration()))
    except BaseException as error:  # raised again by the consumer
        put((None, error))
