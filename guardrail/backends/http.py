"""JSON to and from a service over kept connections, tried again where that can help.

The key travels in a header and nowhere else: it is in no address, no error and no log line. Redirects are refused,
because the key would go along to wherever they lead. Proxies are those of the environment.
"""

from __future__ import annotations

import email.utils
import json
import logging
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx2

from guardrail.errors import BackendError, UsageError

__all__ = ["Client", "Failure", "Patience", "Service"]

_LONGEST_BODY = 2**24
_LONGEST_MESSAGE = 200
# Browser checks in front of some services refuse the names of HTTP libraries.
_AGENT = "guardrail-moderation"
_log = logging.getLogger("guardrail")


@dataclass(frozen=True, slots=True)
class Service:
    """Where a service is and how it is told the key."""

    name: str
    path: str
    """Behind the base address."""
    address: str
    """The base address unless the environment names another."""
    address_variable: str
    """Names another base address; empty where the caller gave it."""
    key_variable: str
    header: str
    """The header that carries the key."""
    prefix: str = ""
    """What stands before the key there."""
    hint: str = ""
    """Where a key comes from."""
    needs_key: bool = True


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long one request is tried; times are in seconds."""

    timeout: float = 30.0
    """Of one attempt's waiting for the network."""
    attempts: int = 5
    delay: float = 1.0
    """Before the second attempt; every later wait is twice as long, less up to half of it at random."""
    longest: float = 60.0
    """Of those waits; a service may ask for longer ones."""
    total: float = 300.0
    """For a request with all its attempts."""

    def __post_init__(self) -> None:
        for name in ("timeout", "attempts", "total"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}", hint="give a number above 0")
        if not self.delay >= 0:
            raise UsageError(f"delay is {self.delay}", hint="give a number of seconds from 0")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer."""

    error: BackendError
    status: int | None = None
    """The HTTP status, where the service answered."""
    retryable: bool = False
    wait: float | None = None
    """How long the service asks to wait, in seconds."""


class Client:
    """Sends requests to one service. Thread-safe."""

    def __init__(self, service: Service, patience: Patience, *, rate: float | None = None, kept: int = 20) -> None:
        """`rate` is how many requests a second the quota allows, `kept` how many idle connections stay open.

        Raises UsageError when the environment holds no key, or no usable address.
        """
        if rate is not None and not rate > 0:
            raise UsageError(f"rate is {rate}", hint="give a number of requests per second")
        self._address = _address(service)
        self.place = None if self._address == service.address else self._address.partition("://")[2]
        """The address, when it is not the service's own."""
        self._service = service
        self._patience = patience
        self._key = _key(service)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": _AGENT}
        if self._key:
            self._headers[service.header] = service.prefix + self._key
        self._connections = _Connections(patience.timeout, kept)
        self._gap = 0.0 if rate is None else 1.0 / rate
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def post(self, payload: Mapping[str, Any], path: str | None = None, *, attempts: int | None = None) -> Any:
        """The JSON of the answer, or a `Failure`.

        Tried again after statuses 408, 429 and 5xx and when the connection fails. `path` is another than the
        service's own, `attempts` another number of tries.
        """
        body = json.dumps(payload).encode()
        return self._tried("POST", self._service.path if path is None else path, body, attempts)

    def get(self, path: str) -> Any:
        """As `post`, without a payload."""
        return self._tried("GET", path, None, None)

    def _tried(self, method: str, path: str, body: bytes | None, attempts: int | None) -> Any:
        patience = self._patience
        most = attempts or patience.attempts
        end = time.monotonic() + patience.total
        attempt = 1
        while True:
            self._take_turn()
            if self._closed.is_set():
                return Failure(BackendError("the guard was closed", hint="load a new one"))
            answer = self._attempt(method, self._address + path, body, end)
            if not isinstance(answer, Failure):
                return answer
            wait = self._wait(answer, attempt)
            if not answer.retryable or attempt >= most or time.monotonic() + wait > end:
                return answer if attempt == 1 else _after(answer, attempt)
            _log.info("%s; trying again in %.1f s (%d of %d)", answer.error, wait, attempt + 1, most)
            self._closed.wait(wait)
            attempt += 1

    def close(self) -> None:
        """End the waiting between attempts, refuse what comes after, and let the idle connections go."""
        self._closed.set()
        self._connections.close()

    def _take_turn(self) -> None:
        """Wait until the quota has room for one more request."""
        if not self._gap:
            return
        with self._lock:
            at = max(time.monotonic(), self._free_at)
            self._free_at = at + self._gap
        self._closed.wait(max(0.0, at - time.monotonic()))

    def _wait(self, failure: Failure, attempt: int) -> float:
        """Seconds until the next attempt; never less than the service asks for."""
        doubled = min(self._patience.longest, self._patience.delay * 2.0 ** (attempt - 1))
        spread = doubled * random.uniform(0.5, 1.0)
        return spread if failure.wait is None else failure.wait + spread / 4

    def _attempt(self, method: str, url: str, body: bytes | None, end: float) -> Any:
        try:
            with self._connections.client.stream(method, url, content=body, headers=self._headers) as response:
                if not 200 <= response.status_code < 300:
                    return self._refused(response, end)
                text = _read(response, end)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RuntimeError) as error:
            return self._unreachable(error)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return Failure(BackendError(f"{self._service.name} gave an answer that is not JSON"))

    def _unreachable(self, error: Exception) -> Failure:
        name = self._service.name
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return Failure(BackendError(f"{name} did not answer in time"), retryable=True)
        why = self._plain(str(error)) or type(error).__name__
        # A host name that cannot be one, a certificate that is not trusted: neither changes by waiting.
        hopeless = not isinstance(error, httpx2.TransportError | OSError) or "CERTIFICATE_VERIFY_FAILED" in why
        return Failure(BackendError(f"{name} cannot be reached: {why}"), retryable=not hopeless)

    def _refused(self, response: httpx2.Response, end: float) -> Failure:
        """What an answer with an error status means; the service's own words are kept, but for a refused key."""
        try:
            said, reasons = _explained(_read(response, end))
        except (httpx2.HTTPError, OSError):
            said, reasons = "", frozenset[str]()
        name, status, variable = self._service.name, response.status_code, self._service.key_variable
        if status == 401 or "API_KEY_INVALID" in reasons:
            return Failure(BackendError(f"{name} refused the key (status {status}): check {variable}"), status)
        about = f": {self._plain(said)}" if said else ""
        if status == 403:
            return Failure(
                BackendError(f"{name} does not let this key in (status 403): check {variable}{about}"), status
            )
        if "insufficient_quota" in reasons:
            return Failure(BackendError(f"the quota of the key in {variable} is used up (status {status})"), status)
        retryable = status in (408, 429) or status >= 500
        wait = _asked_wait(response.headers.get("Retry-After")) if retryable else None
        return Failure(BackendError(f"{name} answered with status {status}{about}"), status, retryable, wait)

    def _plain(self, text: str) -> str:
        """A service's words on one line, short, without control characters and without the key."""
        shown = "".join(
            char if char.isprintable() else " " for char in (text.replace(self._key, "***") if self._key else text)
        )
        return shown if len(shown) <= _LONGEST_MESSAGE else f"{shown[:_LONGEST_MESSAGE]}…"


class _Connections:
    """A pool of connections, made when it is first used, once per process: a forked child must not share them."""

    def __init__(self, timeout: float, kept: int) -> None:
        self._timeout = timeout
        self._limits = httpx2.Limits(max_connections=None, max_keepalive_connections=kept)
        self._process = os.getpid()
        self._client: httpx2.Client | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> httpx2.Client:
        """The client of this process."""
        if self._process != os.getpid():
            self._lock, self._client, self._process = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._client is None:
                self._client = httpx2.Client(timeout=self._timeout, limits=self._limits, follow_redirects=False)
            return self._client

    def close(self) -> None:
        """Close the connections of this process."""
        if self._process == os.getpid() and self._client is not None:
            self._client.close()


def _key(service: Service) -> str:
    key = os.environ.get(service.key_variable, "").strip()
    if not key and not service.needs_key:
        return ""
    if not key:
        raise UsageError(f"{service.key_variable} is not set: {service.name} needs a key", hint=service.hint or None)
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(f"{service.key_variable} holds characters that are in no key", hint="set it to the key alone")
    return key


def _address(service: Service) -> str:
    named = os.environ.get(service.address_variable, "").strip().rstrip("/") if service.address_variable else ""
    address = named or service.address
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or not address.isascii() or not address.isprintable() or any(sign in address for sign in " ?#@"):
        hint = "give http:// or https://, the host and perhaps a path; the key has a variable of its own"
        what = service.address_variable or "the model's address"
        raise UsageError(f"{what} is no address of a service", hint=hint)
    return address


def _after(failure: Failure, attempts: int) -> Failure:
    return replace(failure, error=BackendError(f"{failure.error} (after {attempts} attempts)", hint=failure.error.hint))


def _read(response: httpx2.Response, end: float) -> bytes:
    """The body; an error when it is cut short, far too long, or takes longer than the request may."""
    pieces: list[bytes] = []
    size = 0
    for piece in response.iter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > _LONGEST_BODY:
            raise httpx2.ReadError("the answer is too long")
        if time.monotonic() > end:
            raise TimeoutError
    return b"".join(pieces)


def _explained(body: bytes) -> tuple[str, frozenset[str]]:
    """The message of an error answer and the names that it gives the error, as far as it has the usual shape."""
    try:
        error = json.loads(body)["error"]
        message = error.get("message")
        names = [error.get("code"), error.get("type"), *(detail.get("reason") for detail in error.get("details") or [])]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "", frozenset()
    return message if isinstance(message, str) else "", frozenset(name for name in names if isinstance(name, str))


def _asked_wait(header: str | None) -> float | None:
    """What a header Retry-After asks for, in seconds from now; it holds seconds or a date (RFC 9110, 10.2.3)."""
    value = (header or "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if abs(seconds) < float("inf") else None
