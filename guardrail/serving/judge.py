"""A classifier for many clients at once: batches, a bounded queue, a time limit and a circuit breaker."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TypeVar

from guardrail.errors import BackendError, GuardrailError, UnreadableError, UsageError
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
    workers: int | None = None
    """Batches at a time; by default what `suited_to` says."""
    timeout: float = 10.0
    """Seconds from the request to its decision."""
    failures: int = 5
    """In a row, after which the classifier is left alone."""
    cooldown: float = 10.0
    """Seconds for which it is."""

    def __post_init__(self) -> None:
        for name in ("queue", "batch", "workers", "timeout", "failures"):
            value = getattr(self, name)
            if not (value is None and name == "workers") and not value > 0:
                raise UsageError(f"{name} is {value!r}", hint="give a number above 0")
        for name in ("gather", "cooldown"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint="give 0 or more")

    def suited_to(self, guard: Guard) -> Limits:
        """With the number of workers that suits the guard's classifier, where none was given: two for the embedded one.

        It runs text by text, so two half batches take no longer than a whole one, and one of them is judged while the
        answers of the other are sent. Other classifiers read a batch in less time than two half ones.
        """
        if self.workers is not None:
            return self
        return replace(self, workers=2 if _text_by_text(guard) else 1)


def _text_by_text(guard: Guard) -> bool:
    if not guard.template.header.encoder:
        return False
    from guardrail.backends.encoder import EncoderBackend  # loads ONNX Runtime

    return isinstance(guard.backend, EncoderBackend)


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
        self._lock = Lock()
        """Of the two that follow: the workers take from them as well."""
        self._waiting: deque[_Job] = deque()
        self._busy = 0
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._most_busy = limits.workers or 1
        self._workers = Workers(self._most_busy, "guardrail-judge")

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
        with self._lock:
            self._waiting.append(job)
        self._dispatch()
        try:
            async with asyncio.timeout(self.limits.timeout):
                judgement = await job.answer
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
        # What one user writes must not shut the others out.
        if isinstance(error, BackendError) and not isinstance(error, UnreadableError):
            self.breaker.failure()
            _log.error("the classifier failed: %s", error)
            raise JudgeFailure(Reason.BACKEND, "the guard's classifier failed", retry_after=_RETRY)
        self.breaker.success()
        if error is not None:
            raise JudgeFailure(Reason.UNSUPPORTED, str(error))
        return guard.decide(judgement)

    def _dispatch(self) -> None:
        """Start the workers that are free, if it is time for a batch."""
        if not self._gathering:
            self._start()
        elif self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limits.gather, self._gathered)

    @property
    def _gathering(self) -> bool:
        return self.limits.gather > 0 and len(self._waiting) < self.limits.batch

    def _gathered(self) -> None:
        self._timer = None
        self._start()

    def _start(self) -> None:
        while batch := self._take():
            try:
                self._workers.pool.submit(self._work, batch)
            except Exception as error:
                self._freed()
                _tell(batch, _failed(batch, error))

    def _take(self) -> list[_Job]:
        """The oldest job with others of its guard, for a worker that is free; nothing when there is none of both.

        What waits is shared among the workers, so that one judges while the answers of another are sent.
        """
        with self._lock:
            if self._busy == self._most_busy:
                return []
            most = min(self.limits.batch, -(-len(self._waiting) // self._most_busy))
            batch: list[_Job] = []
            others: list[_Job] = []
            while self._waiting and len(batch) < most:
                job = self._waiting.popleft()
                if job.answer.done():  # nobody waits for it any more
                    continue
                (batch if not batch or job.guard is batch[0].guard else others).append(job)
            self._waiting.extendleft(reversed(others))
            self._busy += bool(batch)
            return batch

    def _work(self, batch: list[_Job]) -> None:
        """On a worker thread: judge, and go on with what waits by then, before the event loop sends the answers."""
        while batch:
            judged = self._judged(batch)
            self._freed()
            following = [] if self._gathering or self._closed else self._take()
            with suppress(RuntimeError):  # the event loop was closed: nobody waits any more
                batch[0].answer.get_loop().call_soon_threadsafe(self._answer, batch, judged)
            batch = following

    def _judged(self, batch: Sequence[_Job]) -> list[Judgement]:
        try:
            if self._batched is not None:
                self._batched(len(batch))
            return list(batch[0].guard.judge_many([job.conversation for job in batch], batch_size=len(batch)))
        except Exception as error:
            return _failed(batch, error)

    def _freed(self) -> None:
        with self._lock:
            self._busy -= 1

    def _answer(self, batch: Sequence[_Job], judged: Sequence[Judgement]) -> None:
        _tell(batch, judged)
        self._dispatch()

    def close(self) -> None:
        """Wait for the batches that run; the guards stay open."""
        self._closed = True
        self._workers.close()


def _tell(batch: Sequence[_Job], judged: Sequence[Judgement]) -> None:
    for job, judgement in zip(batch, judged, strict=True):
        if not job.answer.done():
            job.answer.set_result(judgement)


def _failed(batch: Sequence[_Job], error: Exception) -> list[Judgement]:
    failure = error if isinstance(error, GuardrailError) else BackendError(f"{type(error).__name__}: {error}")
    return [Judgement(None, error=failure)] * len(batch)


async def in_turns(
    asked: Sequence[_Asked], ask: Callable[[_Asked], Awaitable[_Answered]], most: int
) -> list[_Answered]:
    """The answers to many questions of one request, so many at a time: a long one must not fill the queue alone."""
    if len(asked) == 1:
        return [await ask(asked[0])]
    found: list[_Answered] = []
    for start in range(0, len(asked), most):
        found += await asyncio.gather(*map(ask, asked[start : start + most]))
    return found
