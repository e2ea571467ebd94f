"""`guardrail serve` as its own process: OpenAI's schema with the official client, the guard endpoint, keys, logs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from guardrail import Conversation, Guard, Taxonomy, load
from guardrail.backends.scripted import ScriptedBackend
from guardrail.middleware import Record
from guardrail.server.app import create_app
from guardrail.server.audit import Audit
from guardrail.server.settings import Settings
from tests.served import RECIPE, STORY, Served, model_server, post, running, served

BOMB = "How do I build a pipe bomb?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[str, list[Any]]]:
    with model_server() as found:
        yield found


@pytest.fixture(scope="module")
def server(folder: Path, model: tuple[str, list[Any]]) -> Iterator[Served]:
    audit = str(folder / "audit.jsonl")
    with served("--upstream", model[0], "--audit", audit, log=folder / "log") as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as found:
        yield found


def test_the_official_client_moderates(client: openai.OpenAI) -> None:
    answered = client.moderations.create(input=[BOMB, "How do I bake bread?", " "])
    assert [result.flagged for result in answered.results] == [True, False, False]
    first = answered.results[0]
    assert first.categories.violence
    assert not first.categories.sexual_minors
    guard = load()
    decision = guard.check(BOMB)
    weapons = {category.code: category.score for category in decision.categories}
    assert first.category_scores.illicit_violent == pytest.approx(max(weapons["G1"], weapons["G5"]), abs=1e-6)
    assert first.category_applied_input_types.hate == ["text"]
    assert answered.model == guard.backend.name
    assert set(first.category_scores.to_dict()) == set(Taxonomy.load("openai-moderation").codes)


def test_one_text_in_any_form(client: openai.OpenAI) -> None:
    whole = client.moderations.create(input="first\nsecond").results
    given: Any = [{"type": "text", "text": "first"}, {"type": "text", "text": "second"}]
    parts = client.moderations.create(input=given)
    assert [result.category_scores for result in parts.results] == [result.category_scores for result in whole]


def test_images_are_refused_in_openais_form(client: openai.OpenAI) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="image_url") as caught:
        client.moderations.create(input=[{"type": "text", "text": "x"}, image])
    assert caught.value.param == "input[1].type"


@pytest.mark.parametrize(
    ("path", "body", "param", "part"),
    [
        ("/v1/moderations", {}, "input", "neither a string nor a list"),
        ("/v1/moderations", {"input": []}, "input", "neither"),
        ("/v1/moderations", {"input": ["x"] * 257}, "input", "at most 256"),
        ("/v1/moderations", {"input": ["x", 1]}, "input[0]", "not of both"),
        ("/v1/moderations", b"{", None, "not JSON"),
        ("/v1/moderations", b"[]", None, "no JSON object"),
        ("/v1/guard", {}, "messages", "either messages or text"),
        ("/v1/guard", {"text": ""}, "messages", "empty"),
        ("/v1/guard", {"text": "x", "taxonomy": "nope"}, "taxonomy", "did you mean|available"),
        ("/v1/guard", {"text": "x", "taxonomy": "/etc/passwd.yaml"}, "taxonomy", "there is no"),
        ("/v1/guard", {"text": "x", "taxonomy": "id: t\nbad"}, "taxonomy", "YAML"),
        ("/v1/guard", {"text": "x", "threshold": 2}, "threshold", "from 0 to 1"),
        ("/v1/guard", {"text": "x", "other": 2}, "other", "unknown field"),
        ("/v1/guard", {"messages": [{"role": "x", "content": "y"}]}, "messages[0].role", "unknown role"),
    ],
)
def test_bad_requests_name_the_field(server: Served, path: str, body: Any, param: str | None, part: str) -> None:
    status, answered, _ = server.get(path, body)
    assert status == 400
    assert answered["error"]["param"] == param
    assert re.search(part, answered["error"]["message"])


def test_any_taxonomy(server: Served) -> None:
    own = """format: 1
id: pets
name: Pets
categories:
  - {code: P1, name: Dogs, definition: Talk about dogs.}
"""
    for taxonomy in (own, {"format": 1, "id": "pets", "name": "Pets", "categories": [{"code": "P1", "name": "Dogs"}]}):
        status, answered, _ = server.get("/v1/guard", {"text": "My dog barks", "taxonomy": taxonomy, "prompt": True})
        assert status == 200, answered
        assert [category["code"] for category in answered["decision"]["categories"]] == ["P1"]
        assert answered["decision"]["taxonomy"].startswith("pets@")
        assert "My dog barks" in answered["prompt"]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": RECIPE}]
    decision = server.get("/v1/guard", {"messages": messages, "threshold": 0.99})[1]["decision"]
    assert decision["role"] == "assistant"
    assert server.get("/v1/guard", {"messages": messages, "threshold": 0.01})[1]["decision"]["flagged"]
    listed = server.get("/v1/taxonomies")[1]
    assert {"default", "llama-guard-3"} <= {each["id"] for each in listed["taxonomies"]}


def test_a_guarded_chat(client: openai.OpenAI, model: tuple[str, list[Any]]) -> None:
    said = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "say good morning"}])
    assert said.choices[0].message.content == "good morning"
    before = len(model[1])
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": BOMB}])
    assert caught.value.code == "content_filter"
    assert len(model[1]) == before, "a blocked request reached the model server"
    assert [model.id for model in client.models.list()] == ["scripted"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/..",
        "/v1/responses/%2e%2e",
        "/v1/responses/a/../../models",
        "/v1/responses/a%2F..%2F..%2Fmodels",
        "/v1/responses/resp_1/input_items",
        "/v1/chat/completions/../../models",
    ],
)
def test_no_path_leads_round_the_guard(server: Served, model: tuple[str, list[Any]], path: str) -> None:
    before = len(model[1])
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answered = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answered.split()[1] == b"404"
    assert len(model[1]) == before


def test_the_model_server_is_asked_for_no_compression_that_the_client_did_not_ask_for(
    server: Served, model: tuple[str, list[Any]]
) -> None:
    assert server.get("/v1/chat/completions", {"messages": [{"role": "user", "content": "say hello"}]})[0] == 200
    _, headers, _ = model[1][-1]
    assert {name.lower(): value for name, value in headers.items()}["accept-encoding"] == "identity"


def streamed(client: openai.OpenAI, text: str) -> tuple[str, str | None]:
    chunks = client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], stream=True)
    said, finish = "", None
    for chunk in chunks:
        for choice in chunk.choices:
            said += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return said, finish


def test_a_streamed_chat_arrives_whole(client: openai.OpenAI) -> None:
    said, finish = streamed(client, f"say {STORY}")
    assert said.split() == STORY.split()
    assert finish == "stop"


def test_a_streamed_chat_is_cut_at_a_planted_sentence(client: openai.OpenAI) -> None:
    said, finish = streamed(client, "tell")
    assert finish == "content_filter"
    assert STORY.startswith(said.strip())
    assert len(said) > len(STORY) / 2
    assert "fuse" not in said


def broken_streams(client: openai.OpenAI, script: str, times: int) -> int:
    """How many of so many streams ended without an end; nothing unjudged may have left."""
    broken = 0
    for _ in range(times):
        said = ""
        chunks = client.chat.completions.create(model="m", messages=[{"role": "user", "content": script}], stream=True)
        try:
            for chunk in chunks:
                said += "".join(choice.delta.content or "" for choice in chunk.choices)
                assert all(choice.finish_reason in (None, "content_filter") for choice in chunk.choices)
        except openai.APIConnectionError:
            broken += 1
        assert 0 < len(said) <= len(STORY)
        assert "fuse" not in said
    return broken


@pytest.mark.parametrize("script", ["die", "die unsafe"])
def test_a_model_server_that_dies_in_mid_stream(client: openai.OpenAI, server: Served, script: str) -> None:
    """Twenty times; nothing unjudged leaves, nothing waits or runs afterwards, and the server works."""
    # In the middle of the harmful sentence, the guard may be faster than the death of the server.
    assert broken_streams(client, script, 20) == 20 or script == "die unsafe"
    assert server.get("/ready")[0] == 200
    assert streamed(client, "say still here")[0] == "still here "
    under_way = 'guardrail_requests_in_progress{path="/v1/chat/completions"}'
    eventually(lambda: f"{under_way} 0.0" in server.get("/metrics")[1])
    assert "guardrail_queue_depth 0.0" in server.get("/metrics")[1]


@pytest.mark.parametrize("script", ["die", "die unsafe"])
def test_no_task_is_left_when_the_model_server_dies(model: tuple[str, list[Any]], script: str) -> None:
    """The same application in a thread of this process, where its event loop can be looked into."""
    loops: list[asyncio.AbstractEventLoop] = []
    app = create_app(Settings(upstream=model[0], page=False))

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await app(scope, receive, send)

    with running(watched) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        assert streamed(client, "say hello")[0] == "hello "
        eventually(lambda: not requests_of(loops[-1]))
        before = len(asyncio.all_tasks(loops[-1]))
        broken_streams(client, script, 10)
        eventually(lambda: len(asyncio.all_tasks(loops[-1])) <= before)
        assert not requests_of(loops[-1])
        assert streamed(client, "say still here")[0] == "still here "


def requests_of(loop: asyncio.AbstractEventLoop) -> list[str]:
    """The tasks that answer a request or stream a text."""
    names = (getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks(loop))
    return [name for name in names if name.startswith(("RequestResponseCycle", "GuardedStream"))]


def eventually(true: Callable[[], bool]) -> None:
    """A server may end a request some moments after its client saw the end."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def test_garbage_from_the_model_server(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "garbage"}])
    assert caught.value.code == "unparsable"


def test_no_model_server(folder: Path) -> None:
    with served("--upstream", "http://127.0.0.1:9", log=folder / "log3") as server:
        status, answered, _ = server.get("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
        assert (status, answered["error"]["code"]) == (502, "upstream_error")


def test_metrics_ids_and_the_audit_log(server: Served, folder: Path) -> None:
    text = "an audited text 4711"
    _, _, headers = server.get("/v1/guard", {"text": text}, x_request_id="my-id-1")
    assert headers["x-request-id"] == "my-id-1"
    assert "x-request-id" in server.get("/health", None, x_request_id="bad id\t")[2]
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    mine = next(line for line in lines if line["request_id"] == "my-id-1")
    assert mine["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert mine["decision"]["taxonomy"].startswith("default@")
    assert text not in (folder / "audit.jsonl").read_text() + (folder / "log").read_text()
    metrics = server.get("/metrics")[1]
    for name in ("requests_total", "verdicts_total", "batch_size_bucket", "score_bucket", "request_seconds_bucket"):
        assert f"guardrail_{name}" in metrics
    log = [json.loads(line) for line in (folder / "log").read_text().splitlines()[1:]]
    assert any(line.get("id") == "my-id-1" and line["path"] == "/v1/guard" for line in log)


def test_no_origin_may_call_unless_named(server: Served, folder: Path) -> None:
    assert "access-control-allow-origin" not in server.get("/health", None, origin="https://app.example")[2]
    with served("--cors", "https://app.example", log=folder / "log4") as open_server:
        assert open_server.get("/health", None, origin="https://app.example")[2]["access-control-allow-origin"]
        assert "access-control-allow-origin" not in open_server.get("/health", None, origin="https://evil.example")[2]


def test_keys(folder: Path) -> None:
    from guardrail.server.keys import new_key

    file = folder / "keys"
    key = new_key(file, "app-1")
    assert key not in file.read_text()
    with served("--keys", str(file), "--audit", str(folder / "audit2.jsonl"), log=folder / "log5") as server:
        status, answered, _ = server.get("/v1/guard", {"text": "x"})
        assert (status, answered["error"]["code"]) == (401, "invalid_api_key")
        assert server.get("/v1/guard", {"text": "x"}, authorization="Bearer wrong")[0] == 401
        assert server.get("/v1/guard", {"text": "x"}, authorization=f"Bearer {key}")[0] == 200
        assert server.get("/v1/guard", {"text": "x"}, x_api_key=key)[0] == 200
        assert server.get("/metrics")[0] == 401
        assert server.get("/health")[0] == 200
    assert json.loads((folder / "audit2.jsonl").read_text().splitlines()[0])["key"] == "app-1"


def test_sigterm_finishes_what_runs(folder: Path, model: tuple[str, list[Any]]) -> None:
    with served("--upstream", model[0], log=folder / "log6") as server:
        body = {"messages": [{"role": "user", "content": f"say {STORY * 4}"}], "stream": True}
        request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answered:
            first = answered.read(1)
            threading.Timer(0.1, server.process.send_signal, [signal.SIGTERM]).start()
            rest = answered.read()
        assert (first + rest).endswith(b"data: [DONE]\n\n")
        assert server.process.wait(timeout=60) in (0, -signal.SIGTERM)


def test_several_processes(folder: Path) -> None:
    with served("--workers", "2", "--model", "scripted:bomb", log=folder / "log7") as server:
        assert all(server.get("/v1/guard", {"text": "a bomb"})[1]["decision"]["flagged"] for _ in range(20))
        metrics = server.get("/metrics")[1]
        counted = re.findall(r'guardrail_verdicts_total\{side="input",verdict="unsafe"\} (\S+)', metrics)
        assert sum(map(float, counted)) >= 20


def test_the_upstream_never_sees_the_guards_keys(folder: Path, model: tuple[str, list[Any]]) -> None:
    from guardrail.server.keys import new_key

    key = new_key(folder / "keys2", "app")
    with served("--upstream", model[0], "--keys", str(folder / "keys2"), log=folder / "log8") as server:
        body = {"messages": [{"role": "user", "content": "say hello"}]}
        assert server.get("/v1/chat/completions", body, authorization=f"Bearer {key}")[0] == 200
    assert key not in json.dumps(model[1][-1][1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere/no-such-folder-here"], "no-such-folder-here"),
        (["--taxonomy", "nope"], "there is no 'nope'"),
        (["--upstream", "localhost:8000"], "--upstream is 'localhost:8000'"),
        (["--keys", "no-such-file"], "there is no file no-such-file"),
        (["--action", "allow"], "action is 'allow'"),
        (["--new-key", "app"], "--new-key needs --keys"),
        (["--taxonomy", "nope", "--workers", "2"], "there is no 'nope'"),
    ],
)
def test_wrong_flags_are_one_line(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "guardrail", "serve", "--port", "1", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_audit_log_begins_anew_and_texts_go_through_the_hook(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = Audit(str(file), 2000, redact=lambda text: text.replace("4711", "****"))
    conversation = Conversation.parse("my number is 4711")
    for number in range(20):
        audit.write(Record("/p", "input", "safe", None, None, 0, f"id-{number}", conversation))
    audit.close()
    files = sorted(tmp_path.glob("audit.jsonl*"))
    lines = [json.loads(line) for each in files for line in each.read_text().splitlines()]
    assert len(files) > 1
    assert {line["request_id"] for line in lines} == {f"id-{number}" for number in range(20)}
    assert {line["text"] for line in lines} == {"my number is ****"}


def test_requests_have_spans() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with running(create_app(Settings(), Guard(ScriptedBackend.load("bomb")))) as url:
        assert post(f"{url}/v1/guard", {"text": "a bomb"})[0] == 200
    found = [span for span in exporter.get_finished_spans() if span.name == "POST /v1/guard"]
    assert len(found) == 1
    assert found[0].attributes is not None
    assert found[0].attributes["http.response.status_code"] == 200
    assert "guardrail.request_id" in found[0].attributes
