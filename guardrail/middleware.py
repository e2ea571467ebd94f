"""A guard in front of an ASGI application: what comes in and what goes out, streams included.

    from guardrail.middleware import GuardMiddleware

    app = GuardMiddleware(app)

Works with any ASGI application on asyncio and imports no web framework. WebSockets, lifespan and all paths without a
route pass untouched. Whatever cannot be judged is blocked unless its route says otherwise.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from guardrail.guard import Guard
from guardrail.serving.asgi import Receive, Scope, Send, has_body, header
from guardrail.serving.exchange import Exchange, Observer, Record
from guardrail.serving.judge import Judge, Limits
from guardrail.serving.responder import Responder
from guardrail.serving.routes import DEFAULT_ROUTES, Route, matching
from guardrail.serving.windowing import Windowing

__all__ = ["GuardMiddleware", "Limits", "Record", "Route", "Windowing"]

_MOST_BYTES = 8 << 20
_UNGUARDED = ("OPTIONS", "HEAD")


class GuardMiddleware:
    """Judges requests and responses of chat APIs."""

    def __init__(
        self,
        app: Any,
        guard: Guard | None = None,
        *,
        routes: Sequence[Route] | None = None,
        limits: Limits | None = None,
        most_bytes: int = _MOST_BYTES,
        observe: Observer | None = None,
        batched: Callable[[int], None] | None = None,
        **defaults: Any,
    ) -> None:
        """`guard`: by default the embedded model under its own taxonomy. `routes`: by default OpenAI's chat
        completions, completions and responses and Anthropic's messages at their usual paths, with `defaults` as in
        `Route`. `limits` are those of each guard. `most_bytes`: of a body, and of what a stream holds back. `observe`
        is called with a `Record` of every judgement, `batched` with the size of every batch.
        """
        if guard is None:
            from guardrail.loading import load

            guard = load()
        self.app = app
        self.guard = guard
        self.limits = limits or Limits()
        self.most_bytes = most_bytes
        self.observe = observe
        self._batched = batched
        if routes is None:
            routes = [Route(path, schema, **defaults) for path, schema in DEFAULT_ROUTES.items()]
        elif defaults:
            raise TypeError(f"give these to the routes: {', '.join(defaults)}")
        self.routes = tuple(routes)
        self._judges: weakref.WeakKeyDictionary[Any, dict[int, Judge]] = weakref.WeakKeyDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        route = matching(scope["path"], self.routes) if scope["type"] == "http" else None
        if route is None or (scope["method"] in _UNGUARDED and not has_body(scope["headers"])):
            await self.app(scope, receive, send)
            return
        guard = route.guard or self.guard
        exchange = Exchange(
            route, guard, self.judge(guard), scope["path"], self.observe, header(scope["headers"], b"x-request-id")
        )
        await Responder(self.app, exchange, receive, send, most_bytes=self.most_bytes).run(scope)

    def judge(self, guard: Guard) -> Judge:
        """The judge of this guard's classifier for the running event loop."""
        judges = self._judges.setdefault(asyncio.get_running_loop(), {})
        found = judges.get(id(guard.backend))
        if found is None:
            found = judges[id(guard.backend)] = Judge(self.limits.suited_to(guard), self._batched)
        return found
