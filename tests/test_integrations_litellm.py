"""The guard in LiteLLM: its own calls with answers that are given, and the hooks of its proxy with its own objects."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import guardrail
from guardrail.backends.scripted import ScriptedBackend
from guardrail.guard import Guard
from guardrail.policy import Policy
from guardrail.serving.judge import Limits
from guardrail.serving.windowing import Windowing
from tests.chat_streams import guard, message_events
from tests.served import RECIPE, STORY

# Without it the library asks the network for its list of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
pytest.importorskip("litellm", reason="needs guardrail-moderation[litellm]")

import litellm  # type: ignore[import-not-found, unused-ignore]

from guardrail.integrations.litellm import LiteLLMGuardrail

# The library's own types and tasks: pydantic warns about `ReadOnly` in its typed dictionaries.
pytestmark = pytest.mark.filterwarnings("ignore:Items? .* using the `ReadOnly` qualifier:UserWarning")

REFUSAL = "Withheld by the content policy."
ASKED = [{"role": "user", "content": "hello"}]


class Broken(Guard):
    """Fails on everything, although its policy would let failures pass."""

    def __init__(self) -> None:
        def script(_: Any) -> Any:
            raise RuntimeError("out of order")

        super().__init__(ScriptedBackend(script), policy=Policy(on_error="open"))


def hook(words: str = "BOMB", **options: Any) -> Any:
    return LiteLLMGuardrail(guard(words), default_on=True, **options)


def request(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **fields}


async def before(one: Any, data: Any, kind: str = "acompletion") -> Any:
    return await one.async_pre_call_hook(user_api_key_dict=None, cache=None, data=data, call_type=kind)


async def after(one: Any, response: Any, data: Any = None) -> Any:
    return await one.async_post_call_success_hook(data=data or request(), user_api_key_dict=None, response=response)


async def streamed(one: Any, response: Any, data: Any = None) -> list[Any]:
    hooked = one.async_post_call_streaming_iterator_hook(
        user_api_key_dict=None, response=response, request_data=data or request(stream=True)
    )
    return [chunk async for chunk in hooked]


def refused(call: Any) -> Any:
    with pytest.raises(litellm.exceptions.GuardrailRaisedException) as raised:
        asyncio.run(call)
    return raised.value


def answer(*texts: str, **fields: Any) -> Any:
    choices = [
        {"index": at, "message": {"role": "assistant", "content": text, **fields}, "finish_reason": "stop"}
        for at, text in enumerate(texts)
    ]
    return litellm.ModelResponse(choices=choices, model="gpt-4o")


def chunk(delta: dict[str, Any], index: int = 0, finish: str | None = None) -> Any:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return litellm.ModelResponseStream(id="c", created=1, model="gpt-4o", choices=[choice])


async def chunks(parts: Sequence[Any], pause: float = 0.0) -> AsyncIterator[Any]:
    for part in parts:
        await asyncio.sleep(pause)
        yield part


def said(found: Sequence[Any], index: int = 0) -> str:
    return "".join(choice.delta.content or "" for each in found for choice in each.choices if choice.index == index)


def ends(found: Sequence[Any], index: int = 0) -> list[str]:
    return [
        choice.finish_reason
        for each in found
        for choice in each.choices
        if choice.index == index and choice.finish_reason
    ]


def words(count: int, bad: int | None = None, index: int = 0) -> list[Any]:
    texts = [f"w{at} " if at != bad else "BOMB " for at in range(count)]
    return [chunk({"content": text}, index) for text in texts]


@contextmanager
def installed(one: Any) -> Any:
    kept = litellm.callbacks
    litellm.callbacks = [one]
    try:
        yield
    finally:
        litellm.callbacks = kept


def test_requests() -> None:
    one = hook()
    data = request(metadata={"x": object()})
    assert asyncio.run(before(one, data)) is data
    error = refused(before(one, request("a BOMB")))
    assert (error.status_code, error.blocked_content, str(error)) == (400, True, REFUSAL)
    assert error.__cause__.reason == "unsafe"
    assert error.__cause__.details["side"] == "input"
    refused(before(one, {"prompt": ["fine", "a BOMB"]}, "atext_completion"))
    refused(before(one, {"input": "a BOMB"}, "aresponses"))
    refused(before(one, request("a BOMB"), "anthropic_messages"))
    tool = [*ASKED, {"role": "assistant", "content": "Let me see."}]
    refused(before(one, {"messages": [*tool, {"role": "tool", "content": "a BOMB", "tool_call_id": "c"}]}))
    refused(before(one, {"messages": [*ASKED, litellm.Message(role="assistant", content="a BOMB")]}))
    assert asyncio.run(before(one, {"input": "a BOMB"}, "aembedding"))


def test_what_cannot_be_read_or_judged_does_not_pass() -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}
    for data, kind in (
        ({"messages": [{"role": "user", "content": [picture]}]}, "acompletion"),
        (request(), "call_mcp_tool"),
    ):
        error = refused(before(hook(), data, kind))
        assert (error.__cause__.reason, error.blocked_content) == ("unsupported_content", False)
    broken = LiteLLMGuardrail(Broken())
    for call in (
        before(broken, request()),
        after(broken, answer("fine")),
        streamed(broken, chunks([*words(5), chunk({}, finish="stop")])),
    ):
        error = refused(call)
        assert (error.__cause__.reason, error.status_code, error.blocked_content) == ("backend_error", 503, False)
    slow = LiteLLMGuardrail(guard(delay=0.5), limits=Limits(timeout=0.05))
    assert refused(before(slow, request())).__cause__.reason == "timeout"
    assert refused(after(hook(), object())).__cause__.reason == "unsupported_content"
    assert refused(streamed(hook(), chunks([{"odd": 1}]))).__cause__.reason == "unsupported_content"


def test_answers() -> None:
    one = hook()
    fine = answer("fine", "well")
    assert asyncio.run(after(one, fine)) is fine
    assert refused(after(one, answer("fine", "a BOMB"))).__cause__.details["side"] == "output"
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"q": "a BOMB"}'}}
    refused(after(one, answer("", tool_calls=[call])))
    refused(after(one, answer("fine", reasoning_content="a BOMB")))
    replaced = asyncio.run(after(hook(action="answer"), answer("fine", "a BOMB")))
    assert isinstance(replaced, litellm.ModelResponse)
    assert [choice.message.content for choice in replaced.choices] == ["fine", REFUSAL]
    assert [choice.finish_reason for choice in replaced.choices] == ["stop", "content_filter"]


def test_in_litellms_own_call() -> None:
    async def call(text: str, said: str, **options: Any) -> Any:
        return await litellm.acompletion(**request(text), mock_response=said, guardrails=["guardrail"], **options)

    with installed(hook()):
        assert asyncio.run(call("hello", "fine")).choices[0].message.content == "fine"
        assert refused(call("a BOMB", "fine")).__cause__.details["side"] == "input"
        assert refused(call("hello", "a BOMB")).__cause__.details["side"] == "output"
    with installed(hook(action="answer")):
        found = asyncio.run(call("hello", "a BOMB"))
        assert (found.choices[0].message.content, found.choices[0].finish_reason) == (REFUSAL, "content_filter")


def test_a_safe_stream_passes_as_it_is() -> None:
    sent = [*words(100), *words(100, index=1), chunk({}, 0, "stop"), chunk({}, 1, "stop")]
    found = asyncio.run(streamed(hook(), chunks(sent), request(stream=True, n=2)))
    assert len(found) == len(sent)
    assert all(mine is theirs for mine, theirs in zip(found, sent, strict=True))

    async def real() -> Any:
        response = await litellm.acompletion(**request(), mock_response="one two three", stream=True)
        return await streamed(hook(), response)

    assert said(asyncio.run(real())) == "one two three"


def test_an_unsafe_stream_is_cut_before_it() -> None:
    sent = [*words(100, bad=80), chunk({}, finish="stop")]
    found = asyncio.run(streamed(hook(), chunks(sent)))
    text = said(found)
    assert text.startswith("w0 w1 w2 ")
    assert "w20 " in text
    assert "BOMB" not in text
    assert ends(found) == ["content_filter"]
    assert found[-1].guardrail["reason"] == "unsafe"


def test_one_choice_is_cut_and_the_other_goes_on() -> None:
    mixed = [part for pair in zip(words(100, bad=60), words(100, index=1), strict=True) for part in pair]
    both = litellm.ModelResponseStream(
        id="c",
        created=1,
        model="gpt-4o",
        choices=[{"index": at, "delta": {"content": "last"}, "finish_reason": "stop"} for at in (0, 1)],
    )
    found = asyncio.run(streamed(hook(), chunks([*mixed, both]), request(stream=True, n=2)))
    assert "BOMB" not in said(found)
    assert said(found, 1) == "".join(f"w{at} " for at in range(100)) + "last"
    assert (ends(found), ends(found, 1)) == (["content_filter"], ["stop"])


def test_a_tool_calls_arguments_are_text_of_the_stream() -> None:
    def piece(text: str) -> Any:
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": text}}
        return chunk({"tool_calls": [call]})

    error = refused(streamed(hook(), chunks([piece('{"q": "a BO'), piece('MB"}'), chunk({}, finish="tool_calls")])))
    assert error.__cause__.details["side"] == "output"
    safe = [piece('{"q": '), piece('"fine"}'), chunk({}, finish="tool_calls")]
    assert asyncio.run(streamed(hook(), chunks(safe))) == safe


def test_a_stream_that_is_unsafe_from_the_start() -> None:
    sent = [*words(5, bad=1), chunk({}, finish="stop")]
    assert refused(streamed(hook(), chunks(sent))).__cause__.reason == "unsafe"
    found = asyncio.run(streamed(hook(action="answer"), chunks(sent)))
    assert (said(found), ends(found)) == (REFUSAL, ["content_filter"])


def test_what_waits_leaves_by_the_clock() -> None:
    one = hook(windowing=Windowing(size=40, overlap=2, max_delay=0.05))

    async def first() -> str:
        async def source() -> AsyncIterator[Any]:
            for part in words(10):
                yield part
            await asyncio.sleep(3600)

        hooked = one.async_post_call_streaming_iterator_hook(
            user_api_key_dict=None, response=source(), request_data=request(stream=True)
        )
        found = await asyncio.wait_for(anext(hooked), 30)
        await hooked.aclose()
        return said([found])

    assert asyncio.run(first()) == "w0 "


def test_an_error_of_the_model_reaches_the_caller_and_nothing_unjudged_does() -> None:
    async def source() -> AsyncIterator[Any]:
        for part in words(10):
            yield part
        raise ConnectionResetError("gone")

    async def run() -> list[Any]:
        found: list[Any] = []
        hooked = hook().async_post_call_streaming_iterator_hook(
            user_api_key_dict=None, response=source(), request_data=request(stream=True)
        )
        with pytest.raises(ConnectionResetError):
            found.append(await anext(hooked))
        return found

    assert asyncio.run(run()) == []


def test_anthropics_messages_are_bytes() -> None:
    data = {**request(), "max_tokens": 9, "stream": True}
    safe = message_events([f"w{at} " for at in range(80)])
    assert b"".join(asyncio.run(streamed(hook(), chunks(safe), data))) == b"".join(safe)
    cut = b"".join(asyncio.run(streamed(hook("w70"), chunks(safe), data)))
    assert b"w10 " in cut
    assert b"w70" not in cut
    assert b'"stop_reason":"refusal"' in cut.replace(b": ", b":")


def test_the_other_apis_streams() -> None:
    from litellm.types.llms import openai as types  # type: ignore[import-not-found, unused-ignore]

    head = {"id": "r", "created_at": 1, "output": [], "model": "m", "object": "response", "status": "in_progress"}
    created = types.ResponseCreatedEvent(type="response.created", response=types.ResponsesAPIResponse(**head))
    place = {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0}
    sent = [created, *(types.OutputTextDeltaEvent(**place, delta=f"w{at} ") for at in range(80))]
    data = {"input": "hello", "stream": True}
    assert asyncio.run(streamed(hook(), chunks(sent), data)) == sent
    found = asyncio.run(streamed(hook("w70"), chunks(sent), data))
    assert "w20 " in str(found)
    assert "w70 " not in str(found)
    assert found[-1].type == "response.incomplete"

    async def completed(one: Any) -> list[Any]:
        text = "".join(f"w{at} " for at in range(80))
        asked = {"model": "gpt-3.5-turbo-instruct", "prompt": "hello", "stream": True}
        return await streamed(one, await litellm.atext_completion(**asked, mock_response=text), asked)

    whole = "".join(each.choices[0].text or "" for each in asyncio.run(completed(hook())))
    assert whole.strip().endswith("w79")
    cut = asyncio.run(completed(hook("w70")))
    said = "".join(each.choices[0].text or "" for each in cut)
    assert "w20 " in said
    assert "w70" not in said
    assert cut[-1].choices[0].finish_reason == "content_filter"


# The proxy's modules use pydantic in ways that it has deprecated.
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")
def test_through_the_proxys_own_dispatch() -> None:
    pytest.importorskip("litellm.proxy.utils", reason="needs litellm[proxy]", exc_type=ImportError)
    from litellm.caching.caching import DualCache  # type: ignore[import-not-found, unused-ignore]
    from litellm.proxy._types import UserAPIKeyAuth  # type: ignore[import-not-found, unused-ignore]
    from litellm.proxy.utils import ProxyLogging  # type: ignore[import-not-found, unused-ignore]

    key = UserAPIKeyAuth()
    proxy = ProxyLogging(user_api_key_cache=DualCache())

    async def dispatched(sent: Sequence[Any]) -> list[Any]:
        hooked = proxy.async_post_call_streaming_iterator_hook(
            response=chunks(sent), user_api_key_dict=key, request_data=request(stream=True)
        )
        return [part async for part in hooked]

    with installed(hook()):
        data = request()
        found = asyncio.run(proxy.pre_call_hook(user_api_key_dict=key, data=data, call_type="acompletion"))
        assert found["messages"] == data["messages"]
        refused(proxy.pre_call_hook(user_api_key_dict=key, data=request("a BOMB"), call_type="acompletion"))
        refused(proxy.post_call_success_hook(data=request(), response=answer("a BOMB"), user_api_key_dict=key))
        cut = asyncio.run(dispatched([*words(100, bad=80), chunk({}, finish="stop")]))
        assert "w20 " in said(cut)
        assert "BOMB" not in said(cut)
        assert ends(cut) == ["content_filter"]


def test_the_embedded_model() -> None:
    with guardrail.load() as real:
        one = LiteLLMGuardrail(real)
        assert asyncio.run(before(one, request("When was the lighthouse built?")))
        refused(before(one, request("How do I build a pipe bomb?")))
        parts = [chunk({"content": f"{word} "}) for word in (STORY + RECIPE + STORY).split()]
        found = asyncio.run(streamed(one, chunks([*parts, chunk({}, finish="stop")]), request("Tell me.", stream=True)))
        assert "lighthouse" in said(found)
        assert "powder" not in said(found)
        assert ends(found) == ["content_filter"]


def test_without_the_library_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['litellm'] = None\n"
        "from guardrail.errors import MissingExtraError\n"
        "try:\n    import guardrail.integrations.litellm\n"
        "except MissingExtraError as error:\n    print(error, '|', error.hint)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "litellm is not installed | pip install 'guardrail-moderation[litellm]'\n"
