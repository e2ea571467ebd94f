"""The server: moderation and guard endpoints, a guarded way to a model server, health, metrics, and a page."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route as Endpoint

from guardrail import __version__
from guardrail.guard import Guard
from guardrail.middleware import GuardMiddleware, Record, Route
from guardrail.server.audit import Audit, Redact
from guardrail.server.demo import DEMO, UNGUARDED_DEMO, Demo, demo_answer
from guardrail.server.errors import BadRequest, error_response, failure_response, json_object
from guardrail.server.judgements import Judgements, taxonomies
from guardrail.server.keys import KEY_NAME, Keys, Locked
from guardrail.server.moderations import Moderations, inputs
from guardrail.server.openapi import document
from guardrail.server.settings import Settings, from_environment
from guardrail.server.telemetry import Telemetered, Telemetry, log_to_stderr
from guardrail.server.upstream import Upstream
from guardrail.serving.failures import JudgeFailure
from guardrail.serving.judge import in_turns
from guardrail.serving.routes import DEFAULT_ROUTES, Action, Mode, Side
from guardrail.types import Conversation, Decision, Message, Role, is_blank

__all__ = ["create_app", "from_settings"]

_PAGE = Path(__file__).with_name("page") / "index.html"
_OPEN = frozenset({"/", "/health", "/ready", "/openapi.json"})
_CHAT = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
# Those that the routes guard, and no others: `{id}` holds no slash, and must not go up in the path.
_STORED = ("/v1/chat/completions/{id}", "/v1/responses/{id}", "/v1/responses/{id}/cancel")
_log = logging.getLogger("guardrail.server")


def from_settings() -> Starlette:
    """For a worker process: what the environment says (`settings.to_environment`)."""
    log_to_stderr()
    return create_app(from_environment())


def create_app(settings: Settings, guard: Guard | None = None, *, redact: Redact | None = None) -> Starlette:
    """The ASGI application. `guard` in place of the one that the settings name; `redact`: see `audit`."""
    server = _Server(settings, guard or settings.guard(), redact)
    middleware = [
        Middleware(cast(Any, Telemetered), server.telemetry, frozenset(route.path for route in server.routes))
    ]
    if settings.origins:
        headers = ["authorization", "content-type", "x-api-key", "x-request-id"]
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=headers)
        )
    middleware.append(Middleware(cast(Any, server.guarding)))
    handlers: dict[Any, Any] = {BadRequest: _refused, JudgeFailure: _failed, HTTPException: _http_error}
    return Starlette(routes=server.routes, middleware=middleware, lifespan=server.lifespan, exception_handlers=handlers)


class _Server:
    """What the endpoints share."""

    def __init__(self, settings: Settings, guard: Guard, redact: Redact | None) -> None:
        self.settings = settings
        self.guard = guard
        self.telemetry = Telemetry()
        self._ready = False
        self._keys = Keys(Path(settings.keys)) if settings.keys else None
        self._audit = Audit(settings.audit, settings.audit_bytes, redact) if settings.audit else None
        self._moderations = Moderations(guard)
        self._judgements = Judgements(guard)
        self._upstream: Upstream | None = None
        self._guarded: GuardMiddleware | None = None
        self.routes: list[Endpoint] = self._routes()

    def _routes(self) -> list[Endpoint]:
        found = [
            Endpoint("/health", _health, methods=["GET"]),
            Endpoint("/ready", self.ready, methods=["GET"]),
            Endpoint("/metrics", self.metrics, methods=["GET"]),
            Endpoint("/openapi.json", _openapi, methods=["GET"]),
            Endpoint("/v1/moderations", self.moderations, methods=["POST"]),
            Endpoint("/v1/guard", self.judge, methods=["POST"]),
            Endpoint("/v1/taxonomies", self.taxonomies, methods=["GET"]),
        ]
        if self.settings.page:
            found.append(Endpoint("/", _page, methods=["GET"]))
            found.append(Endpoint(DEMO, Demo(self.guard, self.settings.limits), methods=["POST"]))
            found.append(Endpoint(UNGUARDED_DEMO, demo_answer, methods=["POST"]))
        if self.settings.upstream is not None:
            found += [Endpoint(path, self.hand_on, methods=["POST"]) for path in _CHAT]
            found += [Endpoint(path, self.hand_on, methods=["GET", "POST", "DELETE"]) for path in _STORED]
            found.append(Endpoint("/v1/models", self.hand_on, methods=["GET"]))
        return found

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ready from the first judgement on; at the end, what runs is finished."""
        if self.settings.upstream is not None:
            own = self._keys is not None
            self._upstream = Upstream(self.settings.upstream, self.settings.upstream_timeout, own_keys=own)
        self.guard.check("warm up")
        self._ready = True
        try:
            yield
        finally:
            self._ready = False
            if self._upstream is not None:
                await self._upstream.close()
            if self._audit is not None:
                self._audit.close()

    def guarding(self, app: Any) -> Any:
        """The check of the keys, and behind it the middleware in front of the chat paths."""
        settings = self.settings
        action, mode = cast(Action, settings.action), cast(Mode, settings.mode)
        routes = [Route(_served(path), schema, action=action, mode=mode) for path, schema in DEFAULT_ROUTES.items()]
        self._guarded = GuardMiddleware(
            app,
            self.guard,
            routes=routes,
            limits=settings.limits,
            most_bytes=settings.most_bytes,
            observe=self.observe,
            batched=self.telemetry.batches.observe,
        )
        return self._guarded if self._keys is None else Locked(self._guarded, self._keys, _OPEN)

    @property
    def guarded(self) -> GuardMiddleware:
        """Its judge is the one of all endpoints."""
        assert self._guarded is not None
        return self._guarded

    def observe(self, record: Record) -> None:
        """Count and write down a judgement."""
        if record.decision is not None:
            self.telemetry.decided(record.side, record.decision)
        else:
            self.telemetry.errors.labels(record.reason).inc()
        if self._audit is not None:
            self._audit.write(record, KEY_NAME.get())
        if self.settings.log_text and record.conversation is not None:
            fields = {"side": record.side, "reason": record.reason, "text": record.conversation.judged.text}
            _log.info("judged", extra={"fields": fields})

    async def moderations(self, request: Request) -> Response:
        """`POST /v1/moderations`."""
        texts = inputs(await json_object(request, self.settings.most_bytes), self.settings.most_inputs)
        conversations = [None if is_blank(text) else Conversation((Message(Role.USER, text),)) for text in texts]

        async def judged(conversation: Conversation | None) -> Decision | None:
            return await self._judged(request, self.guard, conversation)

        decisions = await in_turns(conversations, judged, self.settings.limits.batch)
        return _answer(self._moderations.response(decisions))

    async def judge(self, request: Request) -> Response:
        """`POST /v1/guard`."""
        asked = self._judgements.read(await json_object(request, self.settings.most_bytes))
        decision = await self._judged(request, asked.guard, asked.conversation)
        assert decision is not None
        return _answer(asked.response(decision))

    async def _judged(self, request: Request, guard: Guard, conversation: Conversation | None) -> Decision | None:
        if conversation is None:
            return None
        side: Side = "input" if conversation.role is Role.USER else "output"
        path, identity = request.scope["path"], request.headers.get("x-request-id", "")
        judge = self.guarded.judge(guard)
        self.telemetry.waiting.set(judge.waiting)
        try:
            decision = await judge.judge(guard, conversation)
        except JudgeFailure as failure:
            self.observe(Record(path, side, failure.reason, None, None, 0, identity, conversation))
            raise
        self.observe(Record(path, side, decision.verdict, None, decision, 0, identity, conversation))
        return decision

    async def taxonomies(self, _: Request) -> Response:
        """`GET /v1/taxonomies`."""
        return JSONResponse(taxonomies(self.guard))

    async def hand_on(self, request: Request) -> Response:
        """The chat APIs, behind the middleware."""
        assert self._upstream is not None
        return await self._upstream.hand_on(request)

    async def ready(self, _: Request) -> Response:
        """503 before the first judgement, while the circuit is open, and from the moment the server is told to stop."""
        state = self.guarded.judge(self.guard).breaker.state
        ready = self._ready and state != "open"
        body = {"ready": ready, "circuit": state, "model": self.guard.backend.name, "taxonomy": self.guard.taxonomy.ref}
        return JSONResponse(body, 200 if ready else 503)

    async def metrics(self, _: Request) -> Response:
        """Prometheus."""
        self.telemetry.waiting.set(self.guarded.judge(self.guard).waiting)
        text, kind = self.telemetry.text()
        return Response(text, headers={"content-type": kind})


def _answer(body: dict[str, Any]) -> Response:
    """Scores by the dozen: writing them with the standard library was the longest step beside the classifier."""
    return Response(orjson.dumps(body), media_type="application/json")


def _served(path: str) -> str:
    """The middleware's pattern as this server has it."""
    plain = path.removeprefix("*")
    return plain if plain.startswith("/v1") else f"/v1{plain}"


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok", "version": __version__})


async def _openapi(_: Request) -> Response:
    return JSONResponse(document())


async def _page(_: Request) -> Response:
    return HTMLResponse(_PAGE.read_bytes(), headers=_page_headers())


@lru_cache(maxsize=1)
def _page_headers() -> dict[str, str]:
    """The page runs its own script and style, talks to this server, and nothing else."""
    text = _PAGE.read_text(encoding="utf-8")
    hashes = {
        tag: " ".join(f"'sha256-{_sha256(content)}'" for content in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S))
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


async def _refused(_: Request, error: Exception) -> Response:
    return error_response(cast(BadRequest, error))


async def _failed(_: Request, error: Exception) -> Response:
    return failure_response(cast(JudgeFailure, error))


async def _http_error(_: Request, error: Exception) -> Response:
    found = cast(HTTPException, error)
    code = "not_found" if found.status_code == 404 else "invalid_request"
    response = error_response(BadRequest(found.detail, status=found.status_code, code=code))
    response.headers.update(found.headers or {})
    return response
