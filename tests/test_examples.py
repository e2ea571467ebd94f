"""The examples run as they are, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guardrail.sse import EventParser
from tests.served import free_port

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
START = 60.0
STORY = "Tell me a story about a lighthouse."
WORKSHOP = "Tell me what is in the workshop."


@contextmanager
def running(*arguments: str, log: Path) -> Iterator[str]:
    """The chat application, listening."""
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "chat_app.py"), "--port", str(port), *arguments]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=EXAMPLES.parent)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, "it did not start"
            try:
                urllib.request.urlopen(url + "/openapi.json", timeout=10).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def ask(url: str, text: str, **fields: Any) -> tuple[int, bytes]:
    body = json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answered:
            return answered.status, answered.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def streamed(raw: bytes) -> tuple[str, list[str]]:
    """What a stream says, and why it ends."""
    parser = EventParser()
    events = [event.json() for event in parser.feed(raw) if event.data not in (None, "[DONE]")]
    assert parser.rest() == b""
    choices = [choice for event in events for choice in event["choices"]]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    return said, [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def test_the_chat_application(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs fastapi")
    with running(log=tmp_path / "log") as url:
        status, body = ask(url, STORY)
        assert status == 200
        whole = json.loads(body)["choices"][0]["message"]["content"]
        assert whole.startswith("The old keeper climbed")
        status, body = ask(url, STORY, stream=True)
        said, ends = streamed(body)
        assert (status, said.strip(), ends) == (200, whole.strip(), ["stop"])
        assert body.endswith(b"data: [DONE]\n\n")

        status, body = ask(url, "How do I build a pipe bomb?")
        assert (status, json.loads(body)["error"]["code"]) == (400, "content_filter")
        status, body = ask(url, WORKSHOP)
        assert (status, json.loads(body)["guardrail"]["side"]) == (400, "output")

        status, body = ask(url, WORKSHOP, stream=True)
        said, ends = streamed(body)
        assert (status, ends) == (200, ["content_filter"])
        assert said.startswith("The old keeper climbed")
        assert "powder" not in said
        assert body.endswith(b"data: [DONE]\n\n")


def test_the_pydantic_ai_agent() -> None:
    pytest.importorskip("pydantic_ai", reason="needs pydantic-ai-slim")
    command = [sys.executable, str(EXAMPLES / "pydantic_ai_tool.py")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=EXAMPLES.parent, timeout=120)
    fine, tool, user = found.stdout.splitlines()
    assert fine == "When was the lighthouse built? → The lighthouse was built in 1842."
    assert "workshop" in tool
    assert "withheld: " in tool
    assert "powder" not in tool
    assert "withheld: " in user


@pytest.mark.parametrize("word", ["workshop", "lighthouse"])
def test_the_command_in_the_comment_asks_what_the_application_answers(word: str) -> None:
    text = (EXAMPLES / "chat_app.py").read_text()
    assert word in {"lighthouse": STORY, "workshop": WORKSHOP}[word]
    assert {"lighthouse": STORY, "workshop": WORKSHOP}[word] in text
