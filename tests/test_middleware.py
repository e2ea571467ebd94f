"""The middleware over ASGI: what is judged, what is blocked, and what each failure does."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from guardrail import Taxonomy, UsageError, load
from guardrail.backends.scripted import ScriptedBackend
from guardrail.errors import BackendError
from guardrail.guard import Guard
from guardrail.middleware import GuardMiddleware, Limits, Record, Route
from guardrail.prompting import Prompt
from guardrail.scoring import Logits
from tests.chat_streams import Answered, Upstream, ask, chat_body, chat_events, guard

GUARD = guard()
CHAT = "/v1/chat/completions"
REASONS = {
    "/v1/chat/completions": "finish_reason",
    "/v1/completions": "finish_reason",
    "/v1/responses": "incomplete_details",
    "/v1/messages": "stop_reason",
}


def completion(*texts: str) -> bytes:
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for index, text in enumerate(texts)
    ]
    return json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}).encode()


def asked(path: str, text: str, **fields: Any) -> dict[str, Any]:
    """A request of the path's API."""
    if path == "/v1/completions":
        return {"model": "m", "prompt": text, **fields}
    if path == "/v1/responses":
        return {"model": "m", "input": text, **fields}
    return chat_body(text, **fields)


def answer(path: str, text: str) -> bytes:
    """A whole response of the path's API."""
    if path == "/v1/chat/completions":
        return completion(text)
    if path == "/v1/completions":
        return json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}).encode()
    part = {"type": "output_text" if path == "/v1/responses" else "text", "text": text}
    if path == "/v1/responses":
        item = {"type": "message", "role": "assistant", "content": [part]}
        return json.dumps({"id": "r", "object": "response", "status": "completed", "output": [item]}).encode()
    return json.dumps({"id": "m", "type": "message", "role": "assistant", "content": [part]}).encode()


def get(body: Any, *, upstream: Any = None, path: str = CHAT, app: Any = None, **options: Any) -> Answered:
    upstream = upstream or Upstream(answer(path, "fine"))
    request = {name: options.pop(name) for name in ("method", "headers") if name in options}
    return asyncio.run(
        ask(app or GuardMiddleware(upstream, options.pop("guard", GUARD), **options), body, path, **request)
    )


@pytest.mark.parametrize("path", REASONS)
def test_what_is_safe_passes_byte_for_byte(path: str) -> None:
    upstream = Upstream(answer(path, "fine"), x_own="1")
    answered = get(asked(path, "hello"), upstream=upstream, path=path)
    assert answered.body == upstream.parts[0]
    assert answered.status == 200
    assert answered.headers["x-own"] == "1"
    assert json.loads(upstream.asked[0]) == asked(path, "hello")


@pytest.mark.parametrize("path", REASONS)
@pytest.mark.parametrize("side", ["input", "output"])
def test_block_and_answer(path: str, side: str) -> None:
    ask_text, say = ("a BOMB", "fine") if side == "input" else ("hello", "a BOMB")
    for action in ("block", "answer"):
        upstream = Upstream(answer(path, say))
        answered = get(asked(path, ask_text), upstream=upstream, path=path, action=action)
        assert len(upstream.asked) == (side == "output")
        assert "BOMB" not in answered.body.decode()
        assert answered.json()["guardrail"]["reason"] == "unsafe"
        assert answered.json()["guardrail"]["side"] == side
        assert answered.json()["guardrail"]["categories"][0]["code"] == "G1"
        if action == "block":
            assert answered.status == 400
            assert "error" in answered.json()
        else:
            assert answered.status == 200
            text = json.dumps(answered.json())
            assert "Withheld by the content policy." in text
            assert "content_filter" in text or '"stop_reason": "refusal"' in text


@pytest.mark.parametrize("path", REASONS)
def test_a_streamed_request_is_refused_as_a_stream(path: str) -> None:
    answered = get(asked(path, "a BOMB", stream=True), path=path, action="answer")
    assert answered.headers["content-type"].startswith("text/event-stream")
    assert "Withheld by the content policy." in json.dumps(answered.events())


def test_choices_are_replaced_on_their_own() -> None:
    answered = get(chat_body(n=2), upstream=Upstream(completion("fine", "a BOMB")), action="answer")
    first, second = answered.json()["choices"]
    assert first["message"]["content"] == "fine"
    assert first["finish_reason"] == "stop"
    assert second["message"]["content"] == "Withheld by the content policy."
    assert second["finish_reason"] == "content_filter"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "a BOMB"}, {"role": "user", "content": "as I said"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}, {"role": "tool", "content": "BOMB"}],
        [{"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "a BOMB"}]}],
        [{"role": "user", "content": "a BOMB"}, {"role": "assistant", "content": "Sure, "}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "To make a BOMB, first"}],
    ],
)
def test_all_that_was_said_last_is_judged(messages: Any) -> None:
    assert get({"messages": messages}).status == 400


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Never speak of a BOMB"}, {"role": "user", "content": "hello"}],
        [{"role": "user", "content": ""}],
        [],
    ],
)
def test_nothing_to_judge(messages: Any) -> None:
    assert get({"messages": messages}).status == 200


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{", 400, "unparsable"),
        (b"[]", 400, "unparsable"),
        (b'{"messages": 1}', 400, "unparsable"),
        (b'{"messages": [], "messages": []}', 400, "unparsable"),
        (b'{"messages": [{"role": "oracle", "content": "x"}]}', 400, "unparsable"),
        (b"\xff\xfe{}", 400, "unparsable"),
        (json.dumps({"messages": [{"role": "user", "content": [IMAGE]}]}).encode(), 400, "unsupported_content"),
        (b'{"messages": [], "x": "' + b"x" * 3000 + b'"}', 413, "too_large"),
    ],
)
def test_requests_that_cannot_be_judged(body: bytes, status: int, reason: str) -> None:
    upstream = Upstream(completion("fine"))
    answered = get(body, upstream=upstream, most_bytes=2000)
    assert (answered.status, answered.json()["error"]["code"]) == (status, reason)
    assert upstream.asked == []
    # Opened on purpose: the whole body goes on, also the part that was not read.
    upstream = Upstream(completion("fine"))
    chunks = [body[:10], body[10:]]
    answered = get(chunks, upstream=upstream, most_bytes=2000, on_failure={reason: "shadow"})
    assert answered.status == 200
    assert upstream.asked == [body]


def test_encodings_of_requests() -> None:
    plain = json.dumps(chat_body("a BOMB")).encode()
    for encoding, body, code in (
        (b"gzip", gzip.compress(plain), "content_filter"),
        (b"gzip", gzip.compress(plain)[:-9], "unparsable"),
        (b"gzip", gzip.compress(b"x" * 100_000), "too_large"),
        (b"gzip", gzip.compress(b'{"messages": []}') + gzip.compress(plain), "unparsable"),
        (b"br", b"x", "unsupported_encoding"),
    ):
        answered = get(body, headers=[(b"content-encoding", encoding)], most_bytes=50_000)
        assert answered.json()["error"]["code"] == code
    upstream = Upstream(completion("fine"))
    body = gzip.compress(json.dumps(chat_body("hello")).encode())
    assert get(body, upstream=upstream, headers=[(b"content-encoding", b"gzip")]).status == 200
    assert upstream.asked == [body]


def test_encodings_of_answers() -> None:
    packed = gzip.compress(completion("fine"))
    answered = get(chat_body(), upstream=Upstream(packed, content_encoding="gzip"))
    assert answered.body == packed
    assert answered.headers["content-encoding"] == "gzip"
    answered = get(chat_body(), upstream=Upstream(gzip.compress(completion("a BOMB")), content_encoding="gzip"))
    assert answered.json()["error"]["code"] == "content_filter"
    assert "content-encoding" not in answered.headers
    answered = get(chat_body(), upstream=Upstream(b"?", content_encoding="br"))
    assert (answered.status, answered.json()["error"]["code"]) == (502, "unsupported_encoding")
    events = b"".join(chat_events([(0, "fine ")] * 50))
    streamed = Upstream(gzip.compress(events), "text/event-stream", content_encoding="gzip")
    answered = get(chat_body(stream=True), upstream=streamed)
    assert answered.body == events
    assert "content-encoding" not in answered.headers


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (b"hello", "text/plain", "unparsable"),
        (b"{}", "application/json", "unparsable"),
        (b'{"choices": [', "application/json", "unparsable"),
        (b"x" * 3000, "application/json", "too_large"),
        (b"data: {\n\n", "text/event-stream", "unparsable"),
        (b"data: \xff\n\n", "text/event-stream", "unparsable"),
        (b"data: " + b"x" * 3000, "text/event-stream", "unparsable"),
        (b"data: {", "text/event-stream", "unparsable"),
        (b"Take\n\na BOMB\n\n", "text/event-stream", "unparsable"),
        (b"Take a BOMB", "text/event-stream", "unparsable"),
        (completion("a BOMB"), "text/event-stream", "unparsable"),
    ],
)
def test_answers_that_cannot_be_judged(body: bytes, kind: str, reason: str) -> None:
    answered = get(chat_body(), upstream=Upstream(body, kind), most_bytes=2000)
    assert (answered.status, answered.json()["error"]["code"]) == (502, reason)
    answered = get(chat_body(), upstream=Upstream(body, kind), most_bytes=2000, on_failure="annotate")
    assert answered.body == body
    assert answered.headers["x-guardrail-output"] == reason


def test_what_is_no_event_ends_a_stream_that_has_begun() -> None:
    answered = get(chat_body(stream=True), upstream=Upstream([b": ping\n\n", b"a BOMB\n\n"], "text/event-stream"))
    assert answered.body.startswith(b": ping\n\n")
    assert b"BOMB" not in answered.body
    assert answered.events()[0]["guardrail"]["reason"] == "unparsable"


@pytest.mark.parametrize("status", [400, 404, 500, 204])
def test_errors_of_the_application_pass(status: int) -> None:
    answered = get(chat_body(), upstream=Upstream(b"any BOMB" if status != 204 else b"", "text/plain", status))
    assert answered.status == status


def test_annotate_and_shadow() -> None:
    for action in ("annotate", "shadow"):
        answered = get(chat_body("a BOMB"), upstream=Upstream(completion("the BOMB")), action=action)
        assert answered.body == completion("the BOMB")
        tags = {name: value for name, value in answered.headers.items() if name.startswith("x-guardrail")}
        if action == "annotate":
            assert tags["x-guardrail-input"] == "unsafe"
            assert tags["x-guardrail-output-categories"].startswith("G1,")
        else:
            assert tags == {}


def test_other_paths_websockets_and_lifespan_pass_untouched() -> None:
    class Untouched:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        async def __call__(self, *asgi: Any) -> None:
            self.seen.append(asgi)

    app = Untouched()
    guarded = GuardMiddleware(app, GUARD)
    for scope in (
        {"type": "http", "path": "/chat", "method": "POST", "headers": []},
        {"type": "http", "path": CHAT, "method": "OPTIONS", "headers": []},
        {"type": "websocket", "path": CHAT, "headers": []},
        {"type": "lifespan"},
    ):
        given: tuple[Any, Callable[[], None], Callable[[], None]] = (scope, lambda: None, lambda: None)
        asyncio.run(guarded(*given))  # type: ignore[arg-type]
        assert all(seen is each for seen, each in zip(app.seen[-1], given, strict=True))


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions/", "//v1//chat/completions", "/openai/deployments/d/chat/completions"]
)
def test_paths_that_mean_the_same(path: str) -> None:
    assert get(chat_body("a BOMB"), path=path).status == 400


def test_stored_answers_are_judged() -> None:
    path = "/v1/responses/resp_1"
    answered = get(b"", upstream=Upstream(answer("/v1/responses", "a BOMB")), path=path, method="GET")
    assert answered.json()["error"]["code"] == "content_filter"


def test_a_body_is_judged_whatever_the_method() -> None:
    for method in ("GET", "DELETE", "OPTIONS", "HEAD"):
        upstream = Upstream(completion("fine"))
        size = [(b"content-length", b"100")]
        answered = get(chat_body("a BOMB"), upstream=upstream, method=method, headers=size)
        assert (answered.status, upstream.asked) == (400, [])


def test_a_request_without_a_body_and_an_answer_without_one_say_nothing() -> None:
    for path in ("/v1/responses/resp_1/cancel", "/v1/chat/completions"):
        answered = get(b"", upstream=Upstream(answer(path.removesuffix("/resp_1/cancel"), "fine")), path=path)
        assert answered.status == 200
    assert get(chat_body(), upstream=Upstream(b"", status=307, location="/elsewhere")).status == 307
    deleted = b'{"id": "resp_1", "object": "response", "deleted": true}'
    answered = get(b"", upstream=Upstream(deleted), path="/v1/responses/resp_1", method="DELETE")
    assert (answered.status, answered.body) == (200, deleted)


def test_the_worst_of_several_texts_is_what_the_headers_tell() -> None:
    words = " ".join(["fine"] * 100)
    for text in (f"a BOMB {words}", f"{words} a BOMB", f"{words} a BOMB {words}"):
        answered = get(chat_body(), upstream=Upstream(completion(text)), action="annotate")
        assert answered.headers["x-guardrail-output"] == "unsafe"
    prompts = {"model": "m", "prompt": ["a BOMB", "hello"]}
    path = "/v1/completions"
    answered = get(prompts, upstream=Upstream(answer(path, "fine")), path=path, action="annotate")
    assert answered.headers["x-guardrail-input"] == "unsafe"


def test_routes_have_their_own_policies() -> None:
    weapons = Taxonomy.load("default").select(["G1"])
    own = Guard(ScriptedBackend.load("knife"), taxonomy=weapons)
    routes = [Route("/strict", "openai-chat", guard=own, status=451), Route("/input", "openai-chat", check="input")]
    app = GuardMiddleware(Upstream(completion("fine")), GUARD, routes=routes)
    assert get(chat_body("a knife"), path="/strict", app=app).status == 451
    assert get(chat_body("a BOMB"), path="/strict", app=app).status == 200
    assert get(chat_body("a BOMB"), path="/input", app=app).status == 400
    app.app = Upstream(completion("a BOMB"))
    assert get(chat_body("hello"), path="/input", app=app).body == completion("a BOMB")
    assert get(chat_body("a BOMB"), path=CHAT, app=app).status == 200


def test_observers_are_told_and_decide_nothing() -> None:
    records: list[Record] = []

    def observe(record: Record) -> None:
        records.append(record)
        raise RuntimeError("a mistake")

    answered = get(chat_body("hello"), upstream=Upstream(completion("a BOMB")), observe=observe)
    assert answered.status == 400
    assert [(record.side, record.reason, record.action) for record in records] == [
        ("input", "safe", None),
        ("output", "unsafe", "block"),
    ]
    assert records[1].decision is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action": "allow"}, "action is 'allow'"),
        ({"on_failure": {"bad": "block"}}, "on_failure is 'bad'"),
        ({"on_failure": {"timeout": "allow"}}, "on_failure of timeout"),
        ({"status": 200}, "status is 200"),
        ({"schema": "openai"}, "no schema is called 'openai'"),
    ],
)
def test_wrong_routes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Route(**{"path": "/", "schema": "openai-chat", **fields})


class Failing:
    """A classifier that hangs or fails as long as it is told to."""

    def __init__(self) -> None:
        self.failing = True
        self.calls = 0

    def guard(self) -> Guard:
        def script(prompt: Prompt) -> Logits:
            self.calls += 1
            if self.failing:
                raise BackendError("the device is lost, token=secret")
            return Logits(0.0, -5.0, tuple(-5.0 for _ in prompt.taxonomy))

        return Guard(ScriptedBackend(script))


def test_a_failing_classifier_opens_the_circuit_and_one_probe_closes_it() -> None:
    failing = Failing()
    app = GuardMiddleware(Upstream(completion("fine")), failing.guard(), limits=Limits(failures=2, cooldown=0.2))

    async def run() -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []

        async def once() -> None:
            answered = await ask(app, chat_body())
            body = answered.json()
            found.append((answered.status, body["error"]["code"] if "error" in body else "passed"))
            assert "secret" not in answered.body.decode()
            if answered.status == 503:
                assert int(answered.headers["retry-after"]) >= 1

        for _ in range(4):
            await once()
        await asyncio.sleep(0.3)
        await once()
        failing.failing = False
        await once()
        await asyncio.sleep(0.3)
        await once()
        return found

    broken, left = (503, "backend_error"), (503, "circuit_open")
    assert asyncio.run(run()) == [broken, broken, left, left, broken, left, (200, "passed")]
    assert failing.calls == 5


def test_texts_that_the_model_cannot_read_open_no_circuit() -> None:
    with load() as embedded:
        app = GuardMiddleware(Upstream(completion("fine")), embedded, limits=Limits(failures=2), check="input")
        for _ in range(4):
            answered = get(chat_body("🔪👶🔫"), app=app)
            assert (answered.status, answered.json()["error"]["code"]) == (400, "unsupported_content")
        assert get(chat_body("good morning"), app=app).status == 200


def test_a_hanging_classifier_and_a_full_queue() -> None:
    slow = guard(delay=0.5)
    limits = Limits(queue=2, batch=1, timeout=0.1, failures=100)
    app = GuardMiddleware(Upstream(completion("fine")), slow, limits=limits)

    async def run() -> list[str]:
        return [
            each.json()["error"]["code"] for each in await asyncio.gather(*(ask(app, chat_body()) for _ in range(5)))
        ]

    codes = asyncio.run(run())
    slow.close()
    assert sorted(codes) == ["overloaded", "overloaded", "timeout", "timeout", "timeout"]


def test_a_long_answer_does_not_fill_the_queue_alone() -> None:
    """It has far more windows than the queue has places."""
    answered = get(chat_body(), upstream=Upstream(completion("a word " * 1000)), limits=Limits(queue=8, batch=4))
    assert answered.status == 200
    answered = get(
        chat_body(), upstream=Upstream(completion("a word " * 1000 + "BOMB")), limits=Limits(queue=8, batch=4)
    )
    assert answered.json()["error"]["code"] == "content_filter"


def test_failures_can_be_opened_one_by_one() -> None:
    failing = Failing()
    answered = get(chat_body(), guard=failing.guard(), on_failure={"backend_error": "annotate"})
    assert answered.status == 200
    assert answered.headers["x-guardrail-input"] == "backend_error"
    assert answered.headers["x-guardrail-output"] == "backend_error"
    assert get(b"{", guard=failing.guard(), on_failure={"backend_error": "annotate"}).status == 400


def test_an_application_that_dies_in_its_stream_releases_nothing_unjudged() -> None:
    class Dying(Upstream):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
            for event in chat_events([(0, f"w{number} ") for number in range(100)])[:80]:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            raise RuntimeError("the model is gone")

    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": json.dumps(chat_body(stream=True)).encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
        with pytest.raises(RuntimeError, match="the model is gone"):
            await GuardMiddleware(Dying(b""), GUARD)(scope, receive, send)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "a task was leaked"

    asyncio.run(run())
    assert all(message.get("more_body", True) for message in sent)


def test_the_application_is_stopped_when_its_stream_was_cut() -> None:
    upstream = Upstream(chat_events([(0, "w ")] * 50 + [(0, "BOMB ")] + [(0, "w ")] * 5000), "text/event-stream")
    answered = get(chat_body(stream=True), upstream=upstream)
    assert answered.finish() == "content_filter"
    assert upstream.sent < 200


@pytest.mark.parametrize("body", [completion("fine"), completion("a BOMB")])
def test_what_follows_the_body(body: bytes) -> None:
    """Trailers go on behind an answer that passed, and not behind one that was replaced."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": body})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(chat_body()).encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    asyncio.run(GuardMiddleware(app, GUARD)(scope, receive, send))
    whole = ["http.response.start", "http.response.body"]
    assert sent == (whole if b"BOMB" in body else [*whole, "http.response.trailers"])
