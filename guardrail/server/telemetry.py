"""What a server tells about itself: Prometheus metrics, OpenTelemetry spans, one line of JSON per request."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import uuid
from typing import Any

from opentelemetry import trace
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from guardrail.serving.asgi import Message, Receive, Scope, Send, header
from guardrail.types import Decision

__all__ = ["Telemetered", "Telemetry", "log_to_stderr"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SCORES = tuple(step / 10 for step in range(1, 11))
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_ID = re.compile(r"[\w.:-]{1,128}")
_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_log = logging.getLogger("guardrail.server")
_encode = json.JSONEncoder(ensure_ascii=False).encode


class Telemetry:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("guardrail_requests_total", "Requests", ["path", "status"], **on)
        self.under_way = Gauge(
            "guardrail_requests_in_progress", "Requests under way", ["path"], multiprocess_mode="livesum", **on
        )
        self.verdicts = Counter("guardrail_verdicts_total", "Judged texts", ["side", "verdict"], **on)
        self.categories = Counter("guardrail_categories_total", "Flagged categories", ["code"], **on)
        self.errors = Counter("guardrail_errors_total", "Texts without a judgement", ["reason"], **on)
        self.waiting = Gauge("guardrail_queue_depth", "Conversations that wait", multiprocess_mode="livesum", **on)
        self.batches = Histogram("guardrail_batch_size", "Conversations of a batch", buckets=_BATCHES, **on)
        self.seconds = Histogram("guardrail_request_seconds", "Time of a request", ["path"], buckets=_SECONDS, **on)
        self.scores = Histogram("guardrail_score", "P(unsafe)", ["side"], buckets=_SCORES, **on)

    def decided(self, side: str, decision: Decision) -> None:
        """Count a judgement."""
        self.verdicts.labels(side, decision.verdict.value).inc()
        if decision.score is not None:
            self.scores.labels(side).observe(decision.score)
        for category in decision.violated:
            self.categories.labels(category.code).inc()

    def text(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' format, of all worker processes together, and their content type."""
        registry = self.registry
        if _MULTIPROCESS in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


class Telemetered:
    """ASGI: gives each request an id, a span, a line in the log, and its place in the metrics."""

    def __init__(self, app: Any, telemetry: Telemetry, known: frozenset[str]) -> None:
        """`known`: the paths that the metrics tell apart; a label for any path would grow without end."""
        self._app = app
        self._telemetry = telemetry
        self._known = known
        self._tracer = trace.get_tracer("guardrail")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope["headers"], b"x-request-id")
        identity = given if _ID.fullmatch(given) else uuid.uuid4().hex
        others = [(name, value) for name, value in scope["headers"] if name.lower() != b"x-request-id"]
        scope = {**scope, "headers": [*others, (b"x-request-id", identity.encode())]}
        status = 500
        started = time.perf_counter()

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", identity.encode())]}
            await send(message)

        path = scope["path"] if scope["path"] in self._known else "other"
        under_way = self._telemetry.under_way.labels(path).track_inprogress()
        with under_way, self._tracer.start_as_current_span(f"{scope['method']} {path}") as span:
            span.set_attribute("guardrail.request_id", identity)
            try:
                await self._app(scope, receive, tell)
            finally:
                seconds = time.perf_counter() - started
                span.set_attribute("http.response.status_code", status)
                self._telemetry.requests.labels(path, str(status)).inc()
                self._telemetry.seconds.labels(path).observe(seconds)
                fields = {"id": identity, "method": scope["method"], "path": scope["path"], "status": status}
                _log.info("request", extra={"fields": {**fields, "seconds": round(seconds, 4)}})


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _encode(line)


def log_to_stderr() -> None:
    """The package's and the web server's log as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("guardrail", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
