"""Worker threads that survive a fork and end with their owner."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from guardrail.errors import BackendError

__all__ = ["Workers"]


class Workers:
    """A thread pool that is made when it is first used, once per process.

    A pool that a forked child inherits believes in threads that only the parent has, and would wait for them for ever.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._closed = False
        self._lock = Lock()
        self._process = os.getpid()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def pool(self) -> ThreadPoolExecutor:
        """The pool of this process; `BackendError` after `close`."""
        if self._process != os.getpid():
            # Another thread of the parent may have held the lock when the process forked.
            self._lock, self._pool, self._process = Lock(), None, os.getpid()
        with self._lock:
            if self._closed:
                raise BackendError("the guard was closed", hint="load a new one")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._count, thread_name_prefix=self._name)
            return self._pool

    def close(self) -> None:
        """Wait for what runs, drop what has not started, and refuse what comes after."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
