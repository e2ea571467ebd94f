"""One request and its answer under a route: what is judged, and what a verdict means. No HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardrail.guard import Guard
from guardrail.schemas.base import Answer, ChatRequest, Notice, SchemaError
from guardrail.serving.failures import JudgeFailure, Reason
from guardrail.serving.judge import Judge, in_turns
from guardrail.serving.routes import Action, Route, Side
from guardrail.serving.windowing import windows_of
from guardrail.types import Conversation, Decision, Message, Role, Verdict, is_blank

__all__ = ["Blocked", "Exchange", "Observer", "Record"]

_log = logging.getLogger("guardrail.serving")


@dataclass(frozen=True, slots=True)
class Record:
    """What happened to one text of an exchange."""

    path: str
    side: Side
    reason: str
    """`safe`, `unsafe` or why there is no judgement."""
    action: Action | None
    """What was done about it; None where there was nothing to do."""
    decision: Decision | None = None
    choice: int = 0
    request_id: str = ""
    conversation: Conversation | None = field(default=None, repr=False)
    """What was judged; None where nothing could be read. For audits: it is the users' text."""


Observer = Callable[[Record], None]


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something that is not to be passed on as it is."""

    action: Action
    notice: Notice
    status: int
    retry_after: float | None = None
    choices: frozenset[int] = frozenset()


@dataclass(slots=True)
class Exchange:
    """The judgements of one request and its answer."""

    route: Route
    guard: Guard
    judge: Judge
    path: str
    observe: Observer | None = None
    request_id: str = ""
    request: ChatRequest = field(default_factory=ChatRequest)
    tags: dict[str, str] = field(default_factory=dict)
    """For the response's headers, where the route annotates."""

    def read(self, body: Any) -> None:
        """Take in the request; JudgeFailure when it cannot be judged."""
        self.request = self._schema(self.route.api.request, body)

    async def check_input(self) -> Blocked | None:
        """Judge what is asked: the last turn of each prompt, and before an answer that is begun also the one before."""
        asked = [turns[:end] for turns in self.request.contexts for end in _ends(turns)]
        conversations = [Conversation(turns) for turns in asked]
        for conversation, outcome in zip(conversations, await self._judged(conversations), strict=True):
            blocked = self.outcome("input", outcome, conversation)
            if blocked is not None:
                return blocked
        return None

    def answers(self, body: Any) -> list[Answer]:
        """The choices of a whole response; JudgeFailure when it is not one."""
        found: list[Answer] = self._schema(self.route.api.answers, body)
        return found

    async def check_output(self, answers: Sequence[Answer]) -> Blocked | None:
        """Judge the choices of a whole response; those that are to be replaced are named together."""
        # One sentence of a long answer is lost in the whole; in a window it is not.
        parts = [
            (answer.choice, part)
            for answer in answers
            for part in windows_of(answer.text, self.route.windowing)
            if not is_blank(part)
        ]
        conversations = [self.conversation(choice, part) for choice, part in parts]
        outcomes = await self._judged(conversations)
        found = [
            (choice, blocked)
            for (choice, _), conversation, outcome in zip(parts, conversations, outcomes, strict=True)
            if (blocked := self.outcome("output", outcome, conversation, choice)) is not None
        ]
        if not found:
            return None
        # What was not judged weighs more: it is blocked even where unsafe choices are only replaced.
        _, first = min(found, key=lambda each: each[1].action != "block")
        choices = frozenset(choice for choice, _ in found)
        return Blocked(first.action, first.notice, first.status, first.retry_after, choices)

    def conversation(self, choice: int, text: str) -> Conversation:
        """The answer's text behind the turns that it answers."""
        turns = self.request.context(choice)
        if turns and turns[-1].role is Role.ASSISTANT:
            turns, text = turns[:-1], turns[-1].text + text
        return Conversation((*turns, Message(Role.ASSISTANT, text)))

    async def decide(self, conversation: Conversation) -> Decision | JudgeFailure:
        """The decision, or why there is none."""
        try:
            return await self.judge.judge(self.guard, conversation)
        except JudgeFailure as failure:
            return failure

    async def _judged(self, conversations: Sequence[Conversation]) -> list[Decision | JudgeFailure]:
        return await in_turns(conversations, self.decide, self.judge.limits.batch)

    def outcome(
        self,
        side: Side,
        outcome: Decision | JudgeFailure,
        conversation: Conversation | None = None,
        choice: int = 0,
    ) -> Blocked | None:
        """What the route does about it; None when it is passed on."""
        reason, _, _ = _meaning(outcome, "")
        action = None if reason == "safe" else self.route.taken(reason)
        return self._done(side, outcome, conversation, choice, action)

    def refused(self, side: Side, failure: JudgeFailure) -> Blocked:
        """As `outcome` for what cannot be passed on whatever the route says."""
        action = self.route.taken(failure.reason)
        blocked = self._done(side, failure, None, 0, action if action in ("block", "answer") else "block")
        assert blocked is not None
        return blocked

    def _done(
        self,
        side: Side,
        outcome: Decision | JudgeFailure,
        conversation: Conversation | None,
        choice: int,
        action: Action | None,
    ) -> Blocked | None:
        reason, message, details = _meaning(outcome, self.route.message)
        decision = outcome if isinstance(outcome, Decision) else None
        self._record(Record(self.path, side, reason, action, decision, choice, self.request_id, conversation))
        self._tag(side, reason, decision)
        if action is None or action in ("annotate", "shadow"):
            return None
        notice = Notice(reason, message, {"side": side, **details})
        retry = outcome.retry_after if isinstance(outcome, JudgeFailure) else None
        return Blocked(action, notice, _status(reason, side, self.route), retry, frozenset([choice]))

    def _tag(self, side: Side, reason: str, decision: Decision | None) -> None:
        """Of several texts the worst counts: an unsafe one, then one that was not judged."""
        name = f"x-guardrail-{side}"
        if _weight(reason) >= _weight(self.tags.get(name, "safe")):
            self.tags[name] = reason
        if decision is not None and decision.violated:
            known = filter(None, self.tags.get(f"{name}-categories", "").split(","))
            self.tags[f"{name}-categories"] = ",".join(dict.fromkeys([*known, *(c.code for c in decision.violated)]))

    def _record(self, record: Record) -> None:
        if record.action is not None:
            codes = [c.code for c in record.decision.violated] if record.decision else []
            _log.warning("%s %s: %s %s → %s", record.path, record.side, record.reason, codes, record.action)
        if self.observe is not None:
            try:
                self.observe(record)
            except Exception:  # an observer's mistake must not decide what passes
                _log.exception("the observer failed")

    def _schema(self, read: Callable[[Any], Any], body: Any) -> Any:
        try:
            return read(body)
        except SchemaError as error:
            reason = Reason.UNSUPPORTED if error.unsupported else Reason.UNPARSABLE
            raise JudgeFailure(reason, f"{self.route.api.name}: {error}") from None


def _weight(reason: str) -> int:
    return {"safe": 0, Reason.UNSAFE.value: 2}.get(reason, 1)


def _ends(turns: Sequence[Message]) -> list[int]:
    """How many turns each judged conversation has."""
    if not turns:
        return []
    count = len(turns)
    return [count - 1, count] if count > 1 and turns[-1].role is Role.ASSISTANT else [count]


def _meaning(outcome: Decision | JudgeFailure, message: str) -> tuple[str, str, dict[str, Any]]:
    """(reason, message for the caller, details)."""
    if isinstance(outcome, JudgeFailure):
        return outcome.reason.value, f"This could not be checked: {outcome}", {}
    if outcome.verdict is Verdict.SAFE:
        return "safe", "", {}
    if outcome.verdict is Verdict.ERROR:
        return Reason.BACKEND.value, f"This could not be checked: {outcome.error}", {}
    return Reason.UNSAFE.value, message, {"categories": [{"code": c.code, "name": c.name} for c in outcome.violated]}


def _status(reason: str, side: Side, route: Route) -> int:
    if reason == Reason.UNSAFE:
        return route.status
    waiting = (Reason.TIMEOUT, Reason.BACKEND, Reason.OVERLOADED, Reason.CIRCUIT_OPEN)
    if reason in waiting:
        return 503
    if side == "output":
        return 502
    return {Reason.TOO_LARGE.value: 413, Reason.ENCODING.value: 415}.get(reason, 400)
