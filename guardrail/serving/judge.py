"""A classifier for many clients at once: batches, a bounded queue, a time limit and a circuit breaker."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from guardrail.errors import BackendError, GuardrailError, UsageError
from guardrail.guard import Guard
from guardrail.judgement import Judgement
from guardrail.serving.breaker import Breaker
from guardrail.serving.failures import JudgeFailure, Reason
from guardrail.types import Conversation, Decision
from guardrail.workers import Workers

__all__ = ["Judge", "Limits", "in_turns"]

_Asked = TypeVar("_Asked")
_Answered = TypeVar("_Answered")

_RETRY = 1.0
_log = logging.getLogger("guardrail.serving")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much work is taken on, and how long it may take."""

    queue: int = 256
    """Conversations that may wait; more are refused."""
    batch: int = 16
    """The most that are judged in one call."""
    gather: float = 0.0
    """Seconds that a batch waits for more to come. What comes while another batch runs is gathered at any rate."""
    workers: int = 1
    """Batches at a time."""
    timeout: float = 10.0
    """Seconds from the request to its decision."""
    failures: int = 5
    """In a row, after which the classifier is left alone."""
    cooldown: float = 10.0
    """Seconds for which it is."""

    def __post_init__(self) -> None:
        for name in ("queue", "batch", "workers", "timeout", "failures"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint="give a number above 0")
        for name in ("gather", "cooldown"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint="give 0 or more")


@dataclass(slots=True)
class _Job:
    guard: Guard
    conversation: Conversation
    answer: asyncio.Future[Judgement] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Judge:
    """Judges for one event loop, on worker threads of its own, with guards that share a classifier."""

    def __init__(self, limits: Limits = Limits(), batched: Callable[[int], None] | None = None) -> None:
        """`batched` is told how many conversations each batch has."""
        self.limits = limits
        self._batched = batched
        self.breaker = Breaker(limits.failures, limits.cooldown)
        self._waiting: deque[_Job] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._workers = Workers(limits.workers, "guardrail-judge")

    @property
    def waiting(self) -> int:
        """Conversations in the queue."""
        return len(self._waiting)

    async def judge(self, guard: Guard, conversation: Conversation) -> Decision:
        """The decision; JudgeFailure when there is none, whatever the guard's policy makes of errors."""
        if len(self._waiting) >= self.limits.queue:
            raise JudgeFailure(Reason.OVERLOADED, "the guard has too much to do", retry_after=_RETRY)
        if not self.breaker.admits():
            wait = max(_RETRY, self.breaker.wait())
            raise JudgeFailure(Reason.CIRCUIT_OPEN, "the guard's classifier keeps failing", retry_after=wait)
        job = _Job(guard, conversation)
        self._waiting.append(job)
        self._dispatch()
        try:
            judgement = await asyncio.wait_for(job.answer, self.limits.timeout)
        except TimeoutError:
            self.breaker.failure()
            message = f"the guard's classifier took longer than {self.limits.timeout:g} s"
            raise JudgeFailure(Reason.TIMEOUT, message, retry_after=_RETRY) from None
        except asyncio.CancelledError:
            self.breaker.neither()
            raise
        return self._decision(guard, judgement)

    def _decision(self, guard: Guard, judgement: Judgement) -> Decision:
        error = judgement.error
        if isinstance(error, BackendError):
            self.breaker.failure()
            _log.error("the classifier failed: %s", error)
            raise JudgeFailure(Reason.BACKEND, "the guard's classifier failed", retry_after=_RETRY)
        self.breaker.success()
        if error is not None:
            raise JudgeFailure(Reason.UNSUPPORTED, str(error))
        return guard.decide(judgement)

    def _dispatch(self) -> None:
        """Start batches as far as there are workers."""
        while self._waiting and len(self._running) < self.limits.workers:
            if self.limits.gather and len(self._waiting) < self.limits.batch:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(self.limits.gather, self._gathered)
                return
            self._start()

    def _gathered(self) -> None:
        self._timer = None
        if self._waiting and len(self._running) < self.limits.workers:
            self._start()
        self._dispatch()

    def _start(self) -> None:
        """Run the oldest job, with others of its guard."""
        batch: list[_Job] = []
        others: list[_Job] = []
        while self._waiting and len(batch) < self.limits.batch:
            job = self._waiting.popleft()
            if job.answer.done():  # nobody waits for it any more
                continue
            (batch if not batch or job.guard is batch[0].guard else others).append(job)
        self._waiting.extendleft(reversed(others))
        if batch:
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._dispatch()

    async def _run(self, batch: Sequence[_Job]) -> None:
        try:
            pool = self._workers.pool
            judged = await asyncio.get_running_loop().run_in_executor(pool, self._judged, batch)
        except Exception as error:
            failure = error if isinstance(error, GuardrailError) else BackendError(f"{type(error).__name__}: {error}")
            judged = [Judgement(None, error=failure)] * len(batch)
        for job, judgement in zip(batch, judged, strict=True):
            if not job.answer.done():
                job.answer.set_result(judgement)

    def _judged(self, batch: Sequence[_Job]) -> list[Judgement]:
        if self._batched is not None:
            self._batched(len(batch))
        return list(batch[0].guard.judge_many([job.conversation for job in batch], batch_size=len(batch)))

    def close(self) -> None:
        """Wait for the batches that run; the guards stay open."""
        self._workers.close()


async def in_turns(
    asked: Sequence[_Asked], ask: Callable[[_Asked], Awaitable[_Answered]], most: int
) -> list[_Answered]:
    """The answers to many questions of one request, so many at a time: a long one must not fill the queue alone."""
    found: list[_Answered] = []
    for start in range(0, len(asked), most):
        found += await asyncio.gather(*map(ask, asked[start : start + most]))
    return found
