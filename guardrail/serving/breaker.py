"""A circuit breaker: a classifier that keeps failing is left alone, then tried with one request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Breaker", "State"]

State = Literal["closed", "open", "half-open"]


@dataclass(slots=True)
class Breaker:
    """Open after `failures` in a row; after `cooldown` seconds one probe decides whether it closes again."""

    failures: int = 5
    cooldown: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _count: int = field(default=0, init=False)
    _opened: float | None = field(default=None, init=False)
    _probing: bool = field(default=False, init=False)

    @property
    def state(self) -> State:
        """Half-open while a probe may go or is on its way."""
        if self._opened is None:
            return "closed"
        return "half-open" if self._probing or self.wait() == 0 else "open"

    def wait(self) -> float:
        """Seconds until a probe may go."""
        return 0.0 if self._opened is None else max(0.0, self._opened + self.cooldown - self.clock())

    def admits(self) -> bool:
        """Whether a request may go now; a probe is counted as on its way until its outcome is told."""
        if self._opened is None:
            return True
        if self._probing or self.wait() > 0:
            return False
        self._probing = True
        return True

    def success(self) -> None:
        """A request was answered."""
        self._count, self._opened, self._probing = 0, None, False

    def failure(self) -> None:
        """A request failed or took too long."""
        self._count += 1
        if self._probing or self._count >= self.failures:
            self._opened, self._probing = self.clock(), False

    def neither(self) -> None:
        """A request ended without telling anything about the classifier."""
        self._probing = False
