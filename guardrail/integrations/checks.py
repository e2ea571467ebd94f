"""What every integration does: turns in, and out comes why they may not pass, or nothing."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from guardrail.errors import BackendError, GuardrailError
from guardrail.guard import Guard
from guardrail.serving.exchange import Blocked, Exchange, Observer
from guardrail.serving.failures import JudgeFailure, Reason
from guardrail.serving.judge import Judge, Limits
from guardrail.serving.routes import Route, Side
from guardrail.serving.windowing import windows_of
from guardrail.types import Conversation, Decision, Message, Role, is_blank

__all__ = ["Checks", "WithheldError"]


class WithheldError(GuardrailError):
    """A text did not pass: it is unsafe, or it could not be judged."""

    def __init__(self, blocked: Blocked) -> None:
        notice = blocked.notice
        super().__init__(notice.message)
        self.reason = notice.reason
        """`unsafe`, or why there is no judgement: `backend_error`, `timeout`, `unsupported_content`, …"""
        self.details = dict(notice.details)
        """`side`, and of something unsafe the `categories`."""
        self.status_code = blocked.status
        """What an HTTP server would answer."""


class Checks:
    """Judges turns. Whatever cannot be judged does not pass, whatever the guard's own policy makes of errors."""

    def __init__(
        self,
        guard: Guard | None,
        name: str,
        *,
        limits: Limits | None = None,
        observe: Observer | None = None,
        **route: Any,
    ) -> None:
        """`guard`: by default the embedded model. `name` stands in logs and records; `route` is as in `Route`."""
        if guard is None:
            from guardrail.loading import load

            guard = load()
        self.guard = guard
        self.route = Route(name, "openai-chat", **route)
        self._limits = limits or Limits()
        self._observe = observe
        self._judges: weakref.WeakKeyDictionary[Any, Judge] = weakref.WeakKeyDictionary()
        self._own = Judge(self._limits)
        """Of exchanges outside of an event loop, which never ask it."""

    def exchange(self, schema: str | None = None) -> Exchange:
        """For one request of this API and its answer, in the running event loop."""
        judge = self._judges.setdefault(asyncio.get_running_loop(), Judge(self._limits))
        return self._exchange(judge, schema)

    def check(self, turns: Sequence[Message], side: Side) -> Blocked | None:
        """Judge what was said last, in this thread; None when it may pass."""
        exchange = self._exchange(self._own)
        for conversation in self._judged(turns, side):
            blocked = exchange.outcome(side, self._decision(conversation), conversation)
            if blocked is not None:
                return blocked
        return None

    async def acheck(self, turns: Sequence[Message], side: Side) -> Blocked | None:
        """As `check`, in batches with what others ask at the same time, and no longer than the limit."""
        exchange = self.exchange()
        for conversation in self._judged(turns, side):
            blocked = exchange.outcome(side, await exchange.decide(conversation), conversation)
            if blocked is not None:
                return blocked
        return None

    def refused(self, side: Side, failure: JudgeFailure) -> Blocked:
        """For what cannot be read, so that nobody can judge it."""
        return self._exchange(self._own).refused(side, failure)

    def _exchange(self, judge: Judge, schema: str | None = None) -> Exchange:
        route = self.route if schema is None else replace(self.route, schema=schema)
        return Exchange(route, self.guard, judge, route.path, self._observe)

    def _decision(self, conversation: Conversation) -> Decision | JudgeFailure:
        try:
            (judgement,) = self.guard.judge_many([conversation])
            if judgement.error is None:
                return self.guard.decide(judgement)
            error: Exception = judgement.error
        except Exception as raised:  # whatever a classifier raises, it is no judgement
            error = raised
        if isinstance(error, GuardrailError) and not isinstance(error, BackendError):
            return JudgeFailure(Reason.UNSUPPORTED, str(error))
        return JudgeFailure(Reason.BACKEND, "the guard's classifier failed")

    def _judged(self, turns: Sequence[Message], side: Side) -> list[Conversation]:
        """What is asked, also before an answer that is begun; an answer in the windows of the route."""
        if not turns:
            return []
        before, last = tuple(turns[:-1]), turns[-1]
        if side == "output":
            parts = [part for part in windows_of(last.text, self.route.windowing) if not is_blank(part)]
            return [Conversation((*before, Message(last.role, part))) for part in parts]
        begun = before and last.role is Role.ASSISTANT
        return [*([Conversation(before)] if begun else []), Conversation((*before, last))]
