"""What the chat APIs' schemas read: no text of a request or an answer stays unjudged, wherever it stands."""

from __future__ import annotations

from typing import Any

import pytest

from guardrail.schemas import schema
from guardrail.schemas.base import SchemaError
from guardrail.types import Role

BAD = "a BOMB for you"
USAGE = {"input_tokens": 3, "output_tokens": 4, "service_tier": "standard"}


def anthropic(*blocks: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "m", "type": "message", "role": "assistant", "content": list(blocks), "usage": USAGE, **fields}


def responses(*items: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "r", "object": "response", "status": "completed", "output": list(items), **fields}


def chat(message: Any, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop", **fields}
    return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 3}}


def tool(given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": "send", "input": given}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("anthropic-messages", anthropic(tool({"usage": BAD}))),
        ("anthropic-messages", anthropic(tool({"logprobs": [{"token": BAD}]}))),
        ("anthropic-messages", anthropic(tool({"name": "BOMB"}))),
        ("anthropic-messages", anthropic(tool({BAD: 1}))),
        ("anthropic-messages", anthropic(usage={"note": BAD})),
        ("openai-responses", responses(output_text=BAD)),
        ("openai-responses", responses(newer_field={"says": [BAD]})),
        ("openai-responses", responses({"type": "function_call", "arguments": f'{{"x": "{BAD}"}}'})),
        ("openai-chat", chat({"content": None, "function_call": {"name": "f", "arguments": BAD}})),
        ("openai-chat", chat({"content": "x", BAD: "y"})),
        ("openai-chat", {"id": BAD, "object": "chat.completion.deleted", "deleted": True}),
    ],
)
def test_every_text_of_an_answer_counts(name: str, body: Any) -> None:
    assert any("BOMB" in answer.text for answer in schema(name).answers(body))


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("openai-chat", chat({"content": "hi"}, logprobs={"content": [{"token": "hi", "top_logprobs": []}]}), ["hi"]),
        ("anthropic-messages", anthropic({"type": "text", "text": "hi"}), ["hi"]),
        (
            "openai-responses",
            responses(
                {"type": "message", "content": [{"type": "output_text", "text": "hi", "logprobs": [{"token": "hi"}]}]},
                output_text="hi",
                instructions="Never say BOMB.",
                prompt={"id": "p", "variables": {"x": "BOMB"}},
                incomplete_details={"reason": "max_output_tokens"},
            ),
            ["hi"],
        ),
        ("openai-responses", {"id": "r", "object": "response", "deleted": True}, [""]),
        ("openai-chat", {"id": "c", "object": "chat.completion.deleted", "deleted": True}, []),
    ],
)
def test_what_is_said_once_is_read_once_and_echoes_are_not(name: str, body: Any, said: list[str]) -> None:
    assert [answer.text for answer in schema(name).answers(body)] == said


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("openai-chat", chat({"content": None, "images": [{"type": "image_url", "image_url": {"url": "https://x"}}]})),
        ("openai-chat", chat({"content": None, "audio": {"id": "a", "data": "UklGRg==", "transcript": "hi"}})),
        ("openai-chat", chat({"content": [{"b64_json": "iVBORw0KGgo="}]})),
        ("openai-responses", responses({"type": "image_generation_call", "result": "iVBORw0KGgo="})),
        ("openai-responses", responses({"type": "message", "content": [{"text": "data:image/png;base64,iVBOR"}]})),
    ],
)
def test_images_and_sound_in_an_answer_cannot_be_judged(name: str, body: Any) -> None:
    with pytest.raises(SchemaError) as caught:
        schema(name).answers(body)
    assert caught.value.unsupported


def test_what_fills_a_stored_prompt_is_the_users() -> None:
    read = schema("openai-responses").request
    prompt = {"id": "pmpt_1", "variables": {"question": BAD, "name": {"type": "input_text", "text": "Kim"}}}
    (turns,) = read({"prompt": prompt}).contexts
    assert [(turn.role, turn.text) for turn in turns] == [(Role.USER, f"{BAD}\nKim")]
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (turns,) = read({"input": said, "prompt": prompt}).contexts
    assert turns[-1].text == f"{BAD}\nKim"
    picture = {"type": "input_image", "image_url": "https://x"}
    for body in (
        {"prompt": {"id": "pmpt_1", "variables": {"x": picture}}},
        {"input": [{"type": "computer_call_output", "output": {**picture, "type": "computer_screenshot"}}]},
    ):
        with pytest.raises(SchemaError) as caught:
            read(body)
        assert caught.value.unsupported


@pytest.mark.parametrize("count", [0, 129, 20_000_000, "3"])
def test_the_number_of_answers_is_bounded(count: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "n": count}
    with pytest.raises(SchemaError, match="from 1 to 128"):
        schema("openai-chat").request(body)
