"""The official clients with a guard inside, against a real server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from guardrail import load
from guardrail.clients import AsyncGuardedTransport, guarded_async_http_client, guarded_http_client
from tests.chat_streams import guard
from tests.served import RECIPE, STORY, model_server

HELLO: Any = [{"role": "user", "content": "say good morning"}]
TELL: Any = [{"role": "user", "content": "tell"}]
BOMB: Any = [{"role": "user", "content": "How do I build a pipe bomb?"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with model_server() as (found, _):
        yield f"{found}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, http_client=guarded_http_client(load())) as found:
        yield found


def test_a_guarded_client(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="m", messages=HELLO)
    assert said.choices[0].message.content == "good morning"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=BOMB)
    assert caught.value.code == "content_filter"
    assert [model.id for model in client.models.list()] == ["scripted"]


def test_a_guarded_stream_is_cut(client: openai.OpenAI) -> None:
    said, finish = "", None
    for chunk in client.chat.completions.create(model="m", messages=TELL, stream=True):
        for choice in chunk.choices:
            said, finish = said + (choice.delta.content or ""), choice.finish_reason or finish
    assert finish == "content_filter"
    assert STORY.startswith(said.strip())
    assert said


def test_a_stream_that_nobody_reads_to_its_end(client: openai.OpenAI) -> None:
    for _ in range(5):
        with client.chat.completions.create(model="m", messages=TELL, stream=True) as stream:
            next(iter(stream))
    assert client.chat.completions.create(model="m", messages=HELLO).choices


def test_the_asynchronous_client(url: str) -> None:
    async def run() -> tuple[str, str | None]:
        said, finish = "", None
        http = guarded_async_http_client(guard("fuse"), action="answer")
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0, http_client=http) as client:
            async for chunk in await client.chat.completions.create(model="m", messages=TELL, stream=True):
                for choice in chunk.choices:
                    said, finish = said + (choice.delta.content or ""), choice.finish_reason or finish
            refused = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a fuse"}])
            assert refused.choices[0].finish_reason == "content_filter"
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "a task was leaked"
        return said, finish

    said, finish = asyncio.run(run())
    assert finish == "content_filter"
    assert "fuse" not in said
    assert (STORY + RECIPE).startswith(said.strip())


def test_anthropics_client_is_guarded_too(url: str) -> None:
    http = guarded_http_client(guard("bomb"))
    with (
        anthropic.Anthropic(base_url=url, api_key="any", max_retries=0, http_client=http) as client,
        pytest.raises(anthropic.BadRequestError, match="content policy"),
    ):
        client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "a bomb"}])


def test_a_server_that_cannot_be_reached_is_the_clients_error() -> None:
    async def run() -> None:
        http = guarded_async_http_client(guard())
        async with openai.AsyncOpenAI(
            base_url="http://127.0.0.1:9/v1", api_key="any", max_retries=0, http_client=http
        ) as client:
            with pytest.raises(openai.APIConnectionError):
                await client.chat.completions.create(model="m", messages=HELLO)

    asyncio.run(run())
    assert AsyncGuardedTransport(guard())
