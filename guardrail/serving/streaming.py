"""A streamed answer on its way through the gate: judged window by window, on time, cut where it must be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from guardrail.schemas.base import SchemaError
from guardrail.serving.exchange import Blocked, Exchange
from guardrail.serving.failures import JudgeFailure, Reason
from guardrail.serving.gate import Due, StreamGate
from guardrail.serving.routes import Mode
from guardrail.sse import Event, EventParser, StreamError
from guardrail.types import is_blank

__all__ = ["GuardedStream"]

Emit = Callable[[bytes, bool], Awaitable[None]]
"""(bytes, whether they are the last)."""
Refuse = Callable[[Blocked], Awaitable[None]]


class GuardedStream:
    """Takes the chunks of one stream and emits what may leave.

    `emit` sends bytes, `refuse` takes the place of a stream of which nothing has left yet. Nothing is emitted once
    `done`. What `emit` raises reaches the caller of `feed` or `end`, also when a window was judged by the clock.
    """

    def __init__(self, exchange: Exchange, emit: Emit, refuse: Refuse, *, most_bytes: int) -> None:
        route = exchange.route
        windowing = route.windowing
        self._exchange = exchange
        self._emit = emit
        self._refuse = refuse
        mode: Mode = "rewind" if route.action in ("annotate", "shadow") else route.mode
        self._delay = None if windowing is None or mode == "end" else windowing.max_delay
        self._retracts = mode == "rewind"
        self._reader = route.api.reader(exchange.request)
        self._gate = StreamGate(self._reader, exchange.request, windowing, most_bytes=most_bytes, mode=mode)
        self._most = most_bytes
        self._parser = EventParser(most_bytes)
        self._lock = asyncio.Lock()
        self._timer: asyncio.Task[None] | None = None
        self._left = False
        """Whether anything was emitted."""
        self._unread = False
        """Whether the stream cannot be read, and passes all the same."""
        self.done = False
        self.cut = False
        """Whether it was ended before its own end."""

    async def feed(self, chunk: bytes) -> None:
        """The stream's next bytes."""
        async with self._lock:
            self._raise_late()
            if self._unread and not self.done:
                await self._send(chunk)
            elif not self.done:
                await self._guarded(self._take(chunk))
        self._watch()

    async def end(self) -> None:
        """Nothing follows; all that waits is judged."""
        async with self._lock:
            self._stop_timer()
            self._raise_late()
            if not self._unread and not self.done:
                await self._guarded(self._finish())
            if not self.done:
                self.done = True
                await self._emit(b"", True)

    async def fail(self, failure: JudgeFailure) -> None:
        """The stream's bytes cannot be read, and not be passed on either."""
        async with self._lock:
            if not self.done:
                await self._cut(self._exchange.refused("output", failure), everything=True)

    def close(self) -> None:
        """The client or the application is gone: nothing is judged any more."""
        self._stop_timer()
        self.done = True
        if self._timer is not None and not self._timer.cancelled():
            self._timer.exception()  # nobody is left to be told

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (StreamError, SchemaError, JudgeFailure) as error:
            failure = error if isinstance(error, JudgeFailure) else JudgeFailure(Reason.UNPARSABLE, str(error))
            blocked = self._exchange.outcome("output", failure)
            if blocked is not None:
                await self._cut(blocked, everything=True)
                return
            self._unread = True
            await self._send(self._gate.rest() + self._parser.rest())

    async def _take(self, chunk: bytes) -> None:
        events = self._parser.feed(chunk)
        for event in events:
            self._gate.hold(event)
        for event in events:
            self._read(event)
        await self._judge(early=False)

    def _read(self, event: Event) -> None:
        """What the event that was held last says; StreamError where a client that reads plain text would read more."""
        if event.stray is not None:
            raise StreamError("a line is neither a field of an event nor a comment")
        self._gate.read(self._reader.read(event))

    async def _finish(self) -> None:
        rest = self._parser.rest()
        if rest.strip():
            # An event that lacks its empty line is read by many clients all the same.
            await self._take_last(rest)
        self._gate.end()
        await self._judge(early=False)

    async def _take_last(self, rest: bytes) -> None:
        for event in EventParser(self._most).feed(rest + b"\n\n"):
            last = replace(event, raw=rest)
            self._gate.hold(last)
            self._read(last)
            return

    async def _judge(self, *, early: bool) -> None:
        """Judge what is due, and send what may leave."""
        await self._send(self._gate.release())
        for due in self._gate.due(early=early):
            if is_blank(due.text) or await self._passes(due):
                self._gate.safe(due)
            if self.done:
                return
            await self._send(self._gate.release())

    async def _passes(self, due: Due) -> bool:
        """Whether the window may leave; else its choice was cut."""
        conversation = self._exchange.conversation(due.choice, due.text)
        outcome = await self._exchange.decide(conversation)
        blocked = self._exchange.outcome("output", outcome, conversation, due.choice)
        if blocked is not None:
            # A failure concerns the classifier, not this choice.
            await self._cut(blocked, everything=blocked.notice.reason != Reason.UNSAFE, choice=due.choice)
        return blocked is None

    async def _cut(self, blocked: Blocked, *, everything: bool, choice: int = 0) -> None:
        notice = blocked.notice
        if self._retracts and self._left:
            notice = replace(notice, details={**notice.details, "retract": True})
        ending = self._gate.stop_all(notice) if everything else self._gate.stop(choice, notice)
        if not everything and not self._gate.closed:
            await self._send(ending)
            return
        self.done = self.cut = True
        if self._left:
            await self._emit(ending, True)
        else:
            await self._refuse(blocked)

    async def _send(self, data: bytes) -> None:
        if data:
            self._left = True
            await self._emit(data, False)

    def _watch(self) -> None:
        """Have what waits judged after the longest delay, also when nothing more comes."""
        if self._delay is not None and self._timer is None and not self.done and self._gate.waiting:
            self._timer = asyncio.get_running_loop().create_task(self._on_time(self._delay))

    async def _on_time(self, delay: float) -> None:
        while not self.done and not self._unread and self._gate.waiting:
            await asyncio.sleep(delay)
            async with self._lock:
                if not self.done and not self._unread:
                    await self._guarded(self._judge(early=True))
        self._timer = None

    def _stop_timer(self) -> None:
        if self._timer is not None and not self._timer.done():
            self._timer.cancel()
            self._timer = None

    def _raise_late(self) -> None:
        """What went wrong while the clock had something judged."""
        timer = self._timer
        if timer is not None and timer.done() and not timer.cancelled():
            self._timer = None
            timer.result()
