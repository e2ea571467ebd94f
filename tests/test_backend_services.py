"""Moderation services: right scores in the right order, and no failure that looks like safe."""

from __future__ import annotations

import email.utils
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guardrail
from guardrail.backends import http, load_backend
from guardrail.backends.labels import label_taxonomy
from guardrail.backends.openai_moderation import OpenAIModerationBackend
from guardrail.backends.perspective import PerspectiveBackend
from guardrail.errors import BackendError, ModelError, TemplateError, UsageError
from guardrail.guard import Guard
from guardrail.policy import Thresholds
from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.taxonomy_map import mapping
from guardrail.tokens import byte_tokenizer
from guardrail.types import Conversation, Decision, Message, Role, Verdict
from guardrail.windows import fit
from tests.fake_services import (
    DROP,
    OPENAI,
    FakeService,
    Received,
    Reply,
    logit,
    openai_reply,
    perspective_reply,
    score_of,
    serving,
)
from tests.strategies import conversations, hostile_texts

KEY = "sk-test-0123456789-secret"
FAST: dict[str, Any] = {"delay": 0.001}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A server, and an environment that leads to it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{running.address}/v1")
        monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
        monkeypatch.setenv("PERSPECTIVE_BASE_URL", running.address)
        monkeypatch.setenv("PERSPECTIVE_QPS", "100000")
        yield running


def openai(**options: Any) -> Guard:
    return guardrail.load("openai-moderation:", **{**FAST, **options})


def perspective(**options: Any) -> Guard:
    return guardrail.load("perspective:", **{**FAST, **options})


def verdicts(decisions: list[Decision]) -> list[str]:
    return [decision.verdict.value for decision in decisions]


# The OpenAI endpoint.


def test_a_hundred_texts_in_concurrent_requests_keep_their_scores_and_their_order(service: FakeService) -> None:
    texts = [f"text {number}{' flag' if number % 7 == 0 else ''}" for number in range(100)]
    with openai() as guard:
        decisions = list(guard.check_many(texts, batch_size=100))
    assert sorted(len(received.texts) for received in service.received) == [4, 32, 32, 32]
    for text, decision in zip(texts, decisions, strict=True):
        scores = {category.code: category.score for category in decision.categories}
        assert scores == pytest.approx({label: score_of(text, label) for label in OPENAI}, abs=1e-12)
        assert decision.score == pytest.approx(max(scores.values()), abs=1e-12)
        assert decision.verdict is (Verdict.UNSAFE if "flag" in text else Verdict.SAFE)
    first = service.received[0]
    assert (first.path, first.headers["Authorization"]) == ("/v1/moderations", f"Bearer {KEY}")
    assert first.headers["Content-Type"] == "application/json"
    assert set(first.payload) == {"model", "input"}
    assert first.payload["model"] == "omni-moderation-latest"


def openai_scores(flagged: bool, **scores: float) -> Reply:
    values = {label: scores.get(label, 0.01) for label in OPENAI}
    return Reply({"results": [{"flagged": flagged, "category_scores": values, "categories": {}}]})


@pytest.mark.parametrize(("flagged", "score"), [(True, 0.3), (False, 0.9)])
def test_the_verdict_is_the_services_own_until_a_threshold_is_named(
    service: FakeService, flagged: bool, score: float
) -> None:
    service.respond = lambda received: openai_scores(flagged, hate=score)
    with openai() as guard:
        decision = guard.check("text")
        assert decision.verdict is (Verdict.UNSAFE if flagged else Verdict.SAFE)
        assert decision.score == pytest.approx(score)
        assert [category.code for category in decision.violated] == (["hate"] if flagged else [])
    with openai(threshold=0.5) as guard:
        assert guard.check("text").verdict is (Verdict.SAFE if flagged else Verdict.UNSAFE)
    with openai(taxonomy=Taxonomy.load("openai-moderation").select(["hate", "violence"])) as guard:
        decision = guard.check("text")  # the service did not decide about these two alone
        assert decision.verdict is (Verdict.SAFE if flagged else Verdict.UNSAFE)
        assert [category.code for category in decision.categories] == ["hate", "violence"]


def test_another_order_of_all_categories_keeps_the_services_verdict(service: FakeService) -> None:
    taxonomy = Taxonomy.load("openai-moderation").reorder(OPENAI[::-1])
    with openai(taxonomy=taxonomy) as guard:
        decision = guard.check("flag this")
    assert decision.verdict is Verdict.UNSAFE
    assert [category.score for category in decision.categories] == pytest.approx(
        [score_of("flag this", label) for label in OPENAI[::-1]], abs=1e-12
    )


def test_codes_that_the_service_does_not_have_are_refused(service: FakeService) -> None:
    with pytest.raises(UsageError, match="has no category G1, G2") as caught:
        openai(taxonomy="default")
    assert caught.value.hint is not None
    assert "violence/graphic" in caught.value.hint
    assert service.received == []


def test_scores_of_zero_and_one_stay_finite(service: FakeService) -> None:
    service.respond = lambda received: openai_scores(True, hate=1, violence=0)
    with openai() as guard:
        (judgement,) = guard.judge_many(["text"])
    assert judgement.margins is not None
    assert judgement.margins.unsafe == pytest.approx(logit(1 - 1e-9))
    assert min(judgement.margins.categories) == pytest.approx(logit(1e-9))


def test_the_earlier_models_have_eleven_categories(service: FakeService) -> None:
    eleven = [label for label in OPENAI if not label.startswith("illicit")]
    service.respond = lambda received: openai_reply(received, eleven)
    with guardrail.load("openai-moderation:text-moderation-stable", **FAST) as guard:
        decision = guard.check("flag this")
    assert service.received[0].payload["model"] == "text-moderation-stable"
    assert [category.code for category in decision.categories] == eleven
    assert decision.verdict is Verdict.UNSAFE
    with openai() as guard:
        decision = guard.check("flag this")
    assert (decision.verdict, decision.flagged) == (Verdict.ERROR, True)
    assert decision.error == "OpenAI gave no score for illicit"


def test_equal_texts_are_sent_once_and_each_category_by_itself_costs_no_request(service: FakeService) -> None:
    with openai(category_scores="each") as guard:
        decisions = list(guard.check_many(["a", "b flag", "a"]))
    assert [received.texts for received in service.received] == [["a", "b flag"]]
    assert verdicts(decisions) == ["safe", "unsafe", "safe"]
    assert decisions[0] == decisions[2]
    assert decisions[1].categories[3].score == pytest.approx(score_of("b flag", OPENAI[3]))


def test_a_long_text_is_judged_in_windows(service: FakeService) -> None:
    text = "".join(f"Größe {number}, " for number in range(6000)) + "flag"
    with openai() as guard:
        decision = guard.check(text)
    sent = [sent for received in service.received for sent in received.texts]
    assert len(sent) > 2
    assert max(len(window.encode()) for window in sent) <= 32_768
    assert all(window in text for window in sent)
    assert sum(map(len, sent)) >= len(text)
    assert (decision.verdict, decision.truncated) == (Verdict.UNSAFE, False)
    assert decision.score == pytest.approx(max(score_of(window, label) for window in sent for label in OPENAI))


def test_the_texts_of_a_request_are_together_no_longer_than_the_longest_text(service: FakeService) -> None:
    with openai() as guard:
        list(guard.check_many([f"{number} " + "x" * 10_000 for number in range(7)]))
    assert sorted(len(received.texts) for received in service.received) == [1, 3, 3]


def test_only_the_judged_message_is_sent_as_it_is(service: FakeService) -> None:
    text = "  line one\r\n\n\tline two [SEP] {{ 7 * 7 }} \N{GRINNING FACE}\n "
    turns = [{"role": "user", "content": "[INST] secret"}, {"role": "assistant", "content": text}]
    with openai() as guard:
        decision = guard.check(turns)
    assert service.received[0].payload["input"] == [text]
    assert (decision.role, decision.truncated) == (Role.ASSISTANT, False)
    assert decision.markers == ("[INST]",)


def test_a_service_gets_hidden_text_as_what_it_spells(service: FakeService) -> None:
    with openai() as guard:
        guard.check("Hello" + "".join(chr(0xE0000 + ord(char)) for char in ", kill him"))
    assert service.received[0].payload["input"] == ["Hello, kill him"]


# Failures.


@pytest.mark.parametrize("load", [openai, perspective])
@pytest.mark.parametrize(
    ("replies", "requests"),
    [
        ([Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"})], 2),
        ([Reply(b"", 500), Reply(b"<html>bad gateway</html>", 502)], 3),
        ([DROP], 2),
        ([Reply({"results": [1] * 1000}, cut=True)], 2),
        ([Reply(b"", 408), DROP, Reply(b"", 503), Reply(b"", 429)], 5),
    ],
)
def test_what_passes_is_tried_again(service: FakeService, load: Any, replies: list[Reply], requests: int) -> None:
    service.script(*replies, then=openai_reply if load is openai else perspective_reply)
    with load() as guard:
        decision = guard.check("text")
    assert decision.error is None
    assert len(service.received) == requests


def test_a_request_that_keeps_failing_fails_its_own_texts_only(service: FakeService) -> None:
    def respond(received: Received) -> Reply:
        return Reply(b"", 500) if "bad 40" in received.texts else openai_reply(received)

    service.respond = respond
    texts = [f"{'bad' if number == 40 else 'text'} {number}" for number in range(96)]
    with openai() as guard:
        decisions = list(guard.check_many(texts, batch_size=96))
    assert verdicts(decisions) == ["safe"] * 32 + ["error"] * 32 + ["safe"] * 32
    assert all(decision.flagged for decision in decisions[32:64])
    assert decisions[40].error == "OpenAI answered with status 500 (after 5 attempts)"
    assert len(service.received) == 2 + 5


def test_a_text_that_is_refused_costs_no_other_text_its_answer(service: FakeService) -> None:
    def respond(received: Received) -> Reply:
        refused = any("refuse" in text for text in received.texts)
        return Reply({"error": {"message": "cannot read it"}}, 400) if refused else openai_reply(received)

    service.respond = respond
    texts = [f"{'refuse' if number == 11 else 'text'} {number}" for number in range(32)]
    with openai() as guard:
        decisions = list(guard.check_many(texts))
    assert [index for index, decision in enumerate(decisions) if decision.verdict is Verdict.ERROR] == [11]
    assert decisions[11].error == "OpenAI answered with status 400: cannot read it"
    assert decisions[12].categories[0].score == pytest.approx(score_of("text 12", OPENAI[0]))


def test_a_dead_connection_is_an_error(service: FakeService) -> None:
    service.respond = lambda received: DROP
    with openai(attempts=2) as guard:
        decision = guard.check("text")
    assert decision.verdict is Verdict.ERROR
    assert decision.error is not None
    assert re.match(r"OpenAI cannot be reached: .+ \(after 2 attempts\)", decision.error)


def test_nobody_listening_is_an_error(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with openai(attempts=2) as guard:
        decision = guard.check("text")
    assert decision.verdict is Verdict.ERROR
    assert "cannot be reached" in (decision.error or "")


def test_a_host_that_cannot_be_one_is_an_error_at_once(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://a..b/v1")
    with openai() as guard:
        decision = guard.check("text")
    assert decision.verdict is Verdict.ERROR
    assert (decision.error or "").startswith("OpenAI cannot be reached: ")
    assert "attempts" not in (decision.error or "")


def test_a_service_that_does_not_answer_in_time_is_an_error(service: FakeService) -> None:
    def respond(received: Received) -> Reply:
        service.stall.wait(10)
        return openai_reply(received)

    service.respond = respond
    with openai(attempts=2, timeout=0.05) as guard:
        decision = guard.check("text")
    assert (decision.verdict, len(service.received)) == (Verdict.ERROR, 2)
    assert decision.error == "OpenAI did not answer in time (after 2 attempts)"


def broken(result: Any) -> Reply:
    return Reply({"results": [result]})


GOOD = {"flagged": False, "category_scores": dict.fromkeys(OPENAI, 0.1)}


def scored(hate: Any) -> Reply:
    return broken({"flagged": False, "category_scores": {**dict.fromkeys(OPENAI, 0.1), "hate": hate}})


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(b"{'results': []}"), "not JSON"),
        (Reply(b""), "not JSON"),
        (Reply(b"\xff\xfe\xfd"), "not JSON"),
        (Reply(b"[" * 100_000), "not JSON"),
        (Reply([]), "without results"),
        (Reply({"results": {}}), "without results"),
        (Reply({"results": []}), "0 results for 1 texts"),
        (Reply({"results": [GOOD, GOOD]}), "2 results for 1 texts"),
        (broken(None), "not an object"),
        (broken({**GOOD, "flagged": None}), "without flagged"),
        (broken({"flagged": True}), "without scores"),
        (scored(None), "no score for hate"),
        (scored(True), "not a probability for hate"),
        (scored("0.1"), "not a probability for hate"),
        (scored(1.5), "not a probability for hate"),
        (scored(-0.1), "not a probability for hate"),
        (
            scored(float("nan")),
            "not a probability for hate",
        ),
        (scored(10**400), "not a probability"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_in_another_shape_is_an_error_and_not_asked_again(
    service: FakeService, reply: Reply, words: str
) -> None:
    service.respond = lambda received: reply
    with openai() as guard:
        decision = guard.check("text")
    assert (decision.verdict, decision.flagged, decision.score) == (Verdict.ERROR, True, None)
    assert words in (decision.error or "")
    assert len(service.received) == 1


def test_one_broken_result_is_the_error_of_its_text(service: FakeService) -> None:
    service.respond = lambda received: Reply({"results": [GOOD, {"flagged": False}, GOOD]})
    with openai() as guard:
        assert verdicts(list(guard.check_many(["a", "b", "c"]))) == ["safe", "error", "safe"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (
            Reply({"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}}, 401),
            "OpenAI refused the key (status 401): check OPENAI_API_KEY",
        ),
        (
            Reply({"error": {"message": f"no access\x1b[31m\nfor {KEY}"}}, 403),
            "OpenAI does not let this key in (status 403): check OPENAI_API_KEY: no access [31m for ***",
        ),
        (
            Reply({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, 429),
            "the quota of the key in OPENAI_API_KEY is used up (status 429)",
        ),
        (
            Reply({"error": {"message": "There is no such model"}}, 404),
            "OpenAI answered with status 404: There is no such model",
        ),
        (Reply({"error": "text"}, 404), "OpenAI answered with status 404"),
        (Reply({"error": {"message": "x" * 1000}}, 404), f"OpenAI answered with status 404: {'x' * 200}…"),
        (Reply(b"", 307, {"Location": "/v1/elsewhere"}), "OpenAI answered with status 307"),
        (Reply(b"", 302, {"Location": "/v1/elsewhere"}), "OpenAI answered with status 302"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(service: FakeService, reply: Reply, error: str) -> None:
    service.respond = lambda received: reply
    with openai() as guard:
        decision = guard.check("text")
    assert (decision.verdict, decision.error) == (Verdict.ERROR, error)
    assert [received.path for received in service.received] == ["/v1/moderations"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("load", [openai, perspective])
def test_the_key_is_in_no_error_and_no_log(
    service: FakeService, load: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def respond(received: Received) -> Reply:
        return Reply({"error": {"message": f"headers {dict(received.headers.items())}", "details": [KEY, 1]}}, status)

    service.respond = respond
    with load(attempts=2) as guard:
        decision = guard.check("text")
        assert KEY not in repr(vars(guard.backend))
    with load(attempts=2, on_error="raise") as guard, pytest.raises(BackendError) as caught:
        guard.check("text")
    assert KEY in str(service.received[0].headers)
    assert decision.verdict is Verdict.ERROR
    for said in (decision.error, caplog.text, str(caught.value), caught.value.hint, guard.backend.name):
        assert KEY not in str(said)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OPENAI_API_KEY", "", "OPENAI_API_KEY is not set"),
        ("OPENAI_API_KEY", "  ", "OPENAI_API_KEY is not set"),
        ("OPENAI_API_KEY", "sk-secret\nX-Header: 1", "holds characters"),
        ("OPENAI_API_KEY", "sk-secret\u00e9", "holds characters"),
        ("OPENAI_API_KEY", "sk-secret second", "holds characters"),
        ("OPENAI_BASE_URL", "file:///etc/secret", "OPENAI_BASE_URL"),
        ("OPENAI_BASE_URL", "api.openai.com/secret", "OPENAI_BASE_URL"),
        ("OPENAI_BASE_URL", "https://user:secret@host/v1", "OPENAI_BASE_URL"),
        ("OPENAI_BASE_URL", "https://host/v1?key=secret", "OPENAI_BASE_URL"),
        ("OPENAI_BASE_URL", "https://host:secret/v1", "OPENAI_BASE_URL"),
        ("OPENAI_BASE_URL", "https://[host/secret", "OPENAI_BASE_URL"),
    ],
)
def test_a_bad_environment_is_found_at_loading(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError) as caught:
        openai()
    assert words in str(caught.value)
    assert caught.value.hint
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_a_key_may_end_with_a_newline(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with openai() as guard:
        assert guard.check("text").error is None
    assert service.received[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("openai-moderation:a b", {}, "no name of a moderation model"),
        ("openai-moderation:", {"concurrency": 0}, "concurrency is 0"),
        ("openai-moderation:", {"attempts": 0}, "attempts is 0"),
        ("openai-moderation:", {"timeout": 0}, "timeout is 0"),
        ("openai-moderation:", {"delay": -1}, "delay is -1"),
        ("openai-moderation:", {"device": "cpu"}, "takes no option 'device'"),
        ("perspective:en", {}, "no model 'en'"),
        ("perspective:", {"rate": 0}, "rate is 0"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    service: FakeService, model: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        load_backend(model, **options)


# Waiting.


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("0.05", 0.05, 0.06),
        ("-5", 0, 0.01),
        pytest.param(email.utils.formatdate(time.time() - 60, usegmt=True), 0, 0.01, id="a minute ago"),
        ("soon", 0, 0.01),
        ("nan", 0, 0.01),
        ("inf", 0, 0.01),
    ],
)
def test_the_wait_is_what_the_service_asks_for(
    service: FakeService, caplog: pytest.LogCaptureFixture, value: str, least: float, most: float
) -> None:
    caplog.set_level(logging.INFO, "guardrail")
    service.script(Reply(b"", 429, {"Retry-After": value}))
    backend = OpenAIModerationBackend.load(**FAST)
    waits: list[float] = []
    backend._client._closed = Recorder(waits)
    with Guard(backend) as guard:
        assert guard.check("text").error is None
    (wait,) = waits
    assert least <= wait <= most
    assert re.search(r"OpenAI answered with status 429; trying again in 0\.\d s \(2 of 5\)", caplog.text)


class Recorder(threading.Event):
    """An event that writes down how long it would have waited."""

    def __init__(self, waits: list[float]) -> None:
        super().__init__()
        self._waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        self._waits.append(timeout or 0.0)
        return self.is_set()


def test_the_waits_double_and_are_spread(service: FakeService) -> None:
    service.respond = lambda received: Reply(b"", 503)
    waits: list[float] = []
    backend = OpenAIModerationBackend.load(delay=16.0)
    backend._client._closed = Recorder(waits)
    with Guard(backend) as guard:
        assert guard.check("text").verdict is Verdict.ERROR
    assert [full / 2 <= wait <= full for wait, full in zip(waits, (16, 32, 60, 60), strict=True)] == [True] * 4


@pytest.mark.parametrize(
    "value",
    [
        "3600",
        # The workers of pytest-xdist must collect the same names, whatever second each of them starts in.
        pytest.param(email.utils.formatdate(time.time() + 7200, usegmt=True), id="in two hours"),
        "1e300",
    ],
)
def test_a_longer_wait_than_a_request_may_take_is_the_end_of_it(service: FakeService, value: str) -> None:
    service.respond = lambda received: Reply(b"", 429, {"Retry-After": value})
    with openai() as guard:
        assert guard.check("text").error == "OpenAI answered with status 429"
    assert len(service.received) == 1


@given(st.none() | st.text() | st.floats().map(str) | st.integers().map(str))
def test_no_header_breaks_the_wait(value: str | None) -> None:
    found = http._asked_wait(value)
    assert found is None or 0 <= found < float("inf")


def test_closing_ends_the_waiting(service: FakeService) -> None:
    asked = threading.Event()

    def respond(received: Received) -> Reply:
        asked.set()
        return Reply(b"", 429, {"Retry-After": "250"})

    service.respond = respond
    guard = openai()
    decisions: list[Decision] = []
    thread = threading.Thread(target=lambda: decisions.append(guard.check("text")), daemon=True)
    thread.start()
    assert asked.wait(10)
    guard.close()
    thread.join(20)
    assert [decision.error for decision in decisions] == ["the guard was closed"]
    assert guard.check("text").verdict is Verdict.ERROR


def test_requests_keep_to_the_quota(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    client = PerspectiveBackend.load(rate=2.0)._client
    waits: list[float] = []
    client._closed = Recorder(waits)
    monkeypatch.setattr("guardrail.backends.http.time.monotonic", lambda: 1000.0)
    for _ in range(4):
        client._take_turn()
    assert waits == [0.0, 0.5, 1.0, 1.5]


def test_the_proxy_of_the_environment_is_used(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://moderation.invalid/v1")
    monkeypatch.setenv("http_proxy", service.address)
    with openai() as guard:
        assert guard.check("text").error is None
    assert service.received[0].path == "http://moderation.invalid/v1/moderations"


# Names: what scores of one day or one place are not mixed with.


def test_the_name_says_which_version_was_asked_and_where(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(model: str) -> str:
        backend = load_backend(model)
        backend.close()
        return backend.name

    today = time.strftime("%Y-%m-%d", time.gmtime())
    place = service.address.removeprefix("http://")
    assert name("openai-moderation:") == f"openai-moderation:omni-moderation-latest@{today}-{place}/v1"
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("PERSPECTIVE_BASE_URL")
    assert name("openai-moderation") == f"openai-moderation:omni-moderation-latest@{today}"
    dated = "omni-moderation-2024-09-26"
    assert name(f"openai-moderation:{dated}") == f"openai-moderation:{dated}@2024-09-26"
    assert name("perspective:") == name("perspective") == f"perspective@{today}"


# Perspective.


def test_perspective_answers_in_order_and_toxicity_is_the_verdict(service: FakeService) -> None:
    service.respond = perspective_reply
    texts = [f"text {number}" for number in range(40)]
    with perspective() as guard:
        decisions = list(guard.check_many(texts))
        labels = guard.backend.labels
    assert labels is not None
    for text, decision in zip(texts, decisions, strict=True):
        scores = {category.code: category.score for category in decision.categories}
        assert scores == pytest.approx({label: score_of(text, label) for label in labels}, abs=1e-12)
        assert decision.score == scores["TOXICITY"]
        assert decision.verdict is (Verdict.UNSAFE if scores["TOXICITY"] >= 0.5 else Verdict.SAFE)
    assert {"safe", "unsafe"} == set(verdicts(decisions))
    assert sorted(received.payload["comment"]["text"] for received in service.received) == sorted(texts)
    received = service.received[0]
    assert received.headers["X-Goog-Api-Key"] == KEY
    assert received.path == "/v1alpha1/comments:analyze"
    assert received.payload["comment"]["type"] == "PLAIN_TEXT"
    assert (received.payload["doNotStore"], received.payload["languages"]) == (True, ["en"])
    assert received.payload["requestedAttributes"] == {label: {} for label in labels}


def test_a_selection_asks_for_these_attributes_only(service: FakeService) -> None:
    service.respond = perspective_reply
    whole = label_taxonomy("mine", "Mine", PerspectiveBackend.labels, "")
    with perspective(taxonomy=whole.select(["INSULT", "THREAT"])) as guard:
        decision = guard.check("text")
    assert service.received[0].payload["requestedAttributes"] == {"INSULT": {}, "THREAT": {}}
    assert decision.score == pytest.approx(max(score_of("text", "INSULT"), score_of("text", "THREAT")))


def test_perspective_windows_are_within_its_limit_in_bytes(service: FakeService) -> None:
    service.respond = perspective_reply
    text = "".join(f"Überfluß {number} " for number in range(4000))
    with perspective() as guard:
        decision = guard.check(text)
    sent = [received.payload["comment"]["text"] for received in service.received]
    assert max(len(window.encode()) for window in sent) <= 20_480
    assert len(sent) > 2
    assert decision.score == pytest.approx(max(score_of(window, "TOXICITY") for window in sent))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply({"attributeScores": {}}), "no score for TOXICITY"),
        (Reply({"attributeScores": {"TOXICITY": {"summaryScore": {"value": "high"}}}}), "not a probability"),
        (Reply({"attributeScores": {"TOXICITY": 1}}), "no score for TOXICITY"),
        (Reply([1]), "no score for TOXICITY"),
        (
            Reply({"error": {"message": "API key not valid", "details": [{"reason": "API_KEY_INVALID"}]}}, 400),
            "Perspective refused the key (status 400): check PERSPECTIVE_API_KEY",
        ),
        (
            Reply({"error": {"message": "Attribute THREAT does not support request languages: xx"}}, 400),
            "Attribute THREAT does not support request languages: xx",
        ),
        (Reply({"error": {"message": "the API is disabled"}}, 403), "check PERSPECTIVE_API_KEY: the API is disabled"),
        (Reply(b"", 410), "status 410"),
    ],
)
def test_a_perspective_failure_is_an_error(service: FakeService, reply: Reply, words: str) -> None:
    service.respond = lambda received: reply
    with perspective() as guard:
        decision = guard.check("text")
    assert (decision.verdict, len(service.received)) == (Verdict.ERROR, 1)
    assert words in (decision.error or "")


def test_a_failed_comment_is_an_error_of_its_own(service: FakeService) -> None:
    def respond(received: Received) -> Reply:
        return Reply(b"", 500) if "bad" in received.payload["comment"]["text"] else perspective_reply(received)

    service.respond = respond
    with perspective(attempts=2, threshold=0) as guard:
        assert verdicts(list(guard.check_many(["a", "bad", "c"]))) == ["unsafe", "error", "unsafe"]


def test_perspective_scores_convert_to_other_taxonomies(service: FakeService) -> None:
    backend = load_backend("perspective:")
    backend.close()
    scores = {code: index / 10 for index, code in enumerate(backend.default_taxonomy.codes)}
    converted = mapping(backend.default_taxonomy, Taxonomy.load("openai-moderation")).convert(scores)
    assert converted["hate"] == scores["IDENTITY_ATTACK"]
    assert converted["harassment"] == scores["INSULT"]
    assert converted["harassment/threatening"] == converted["violence"] == scores["THREAT"]
    assert converted["sexual"] == scores["SEXUALLY_EXPLICIT"]
    assert converted["self-harm"] is None


@pytest.mark.parametrize("value", ["fast", "0"])
def test_a_bad_rate_is_a_usage_error(service: FakeService, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PERSPECTIVE_QPS", value)
    with pytest.raises(UsageError, match=value):
        perspective()


# Labels and the plain format.


def test_labels_become_codes_and_readable_names() -> None:
    taxonomy = label_taxonomy("org/My model!", "x", ["SEVERE_TOXICITY", "hate speech", "self-harm/intent", "iOS"], "")
    assert taxonomy.id == "org-My-model"
    assert taxonomy.codes == ("SEVERE_TOXICITY", "hate_speech", "self-harm/intent", "iOS")
    assert [category.name for category in taxonomy] == ["Severe toxicity", "Hate speech", "Self harm intent", "iOS"]
    for labels in (["a b", "a_b"], ["!"]):
        with pytest.raises(ModelError, match="distinct"):
            label_taxonomy("x", "x", labels, "")


PLAIN = PromptBuilder(Template.load("plain"), Taxonomy.load("default"))


@given(conversations())
def test_the_plain_format_is_the_judged_text_unchanged(conversation: Conversation) -> None:
    prompt = PLAIN.build(conversation)
    assert prompt.text == conversation.judged.text
    assert [segment.control for segment in prompt.segments] == [False]
    assert prompt.role is conversation.role


@given(hostile_texts())
def test_no_text_breaks_the_plain_format(text: str) -> None:
    judged = Message(Role.USER, f"x{text}")
    expected = judged.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    prompt = PLAIN.build(Conversation((judged,)))
    if "\ufffd" not in expected:
        assert prompt.text == expected
    assert len(byte_tokenizer().encode(prompt)) == len(prompt.text.encode())


def test_turns_that_are_not_shown_take_no_room() -> None:
    turns = (Message(Role.USER, "x" * 5000), Message(Role.ASSISTANT, "short"))
    windows = fit(Conversation(turns), 100, PLAIN, byte_tokenizer())
    assert (windows.conversations, windows.truncated) == ((Conversation(turns),), False)
    long = Conversation((turns[0], Message(Role.ASSISTANT, "y" * 250)))
    windows = fit(long, 100, PLAIN, byte_tokenizer())
    assert windows.truncated is False
    assert 90 < max(len(PLAIN.build(window).text) for window in windows.conversations) <= 100


def test_a_template_that_shows_no_context_must_say_so(tmp_path: Path) -> None:
    file = tmp_path / "loose.jinja"
    source = Template.load("plain").source
    file.write_text(source.replace("context: false\n", ""))
    with pytest.raises(TemplateError, match="shows 1 messages of a conversation of 2"):
        PromptBuilder(Template.load(file), PLAIN.taxonomy).build(Conversation((Message(Role.USER, "x"),) * 2))


# The commands.


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "guardrail", *arguments], capture_output=True, text=True, check=False)


def test_check_and_score_run_a_service(service: FakeService, tmp_path: Path) -> None:
    done = command("check", "--json", "-m", "openai-moderation:", "flag this")
    assert json.loads(done.stdout)["verdict"] == "unsafe"
    rows = [{"id": str(number), "text": f"{number} {'flag' if number % 2 else 'fine'}"} for number in range(70)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("score", str(source), "-o", str(target), "-m", "openai-moderation:omni-moderation-2024-09-26")
    assert done.returncode == 0, done.stderr
    out = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["id"], row["verdict"]) for row in out] == [
        (row["id"], "unsafe" if "flag" in row["text"] else "safe") for row in rows
    ]


def test_the_command_says_what_is_missing(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    done = command("check", "-m", "perspective:", "hello")
    assert done.returncode == 2
    assert done.stderr.startswith("error: PERSPECTIVE_API_KEY is not set")
    assert "hint: " in done.stderr
    done = command("check", "-m", "openai-moderation:", "-t", "default", "hello")
    assert done.returncode == 2
    assert "has no category" in done.stderr


def test_a_threshold_of_a_category_works_with_the_services_verdict(service: FakeService) -> None:
    service.respond = lambda received: openai_scores(False, hate=0.3)
    with openai(thresholds={"hate": 0.2}) as guard:
        decision = guard.check("text")
    assert decision.verdict is Verdict.UNSAFE
    assert guard.policy.user == Thresholds(0.5, {"hate": 0.2}, own=True)
