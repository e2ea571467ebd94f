"""The guard in LangChain's chains and agents, with LangChain itself and models that follow a script."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

import guardrail
from guardrail.errors import UsageError
from guardrail.guard import Guard
from guardrail.policy import Policy
from guardrail.serving.exchange import Record
from guardrail.serving.judge import Limits
from tests.chat_streams import guard
from tests.served import RECIPE

pytest.importorskip("langchain", reason="needs guardrail-moderation[langchain]")

from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from guardrail.integrations.langchain import GuardAgentMiddleware, GuardRunnable, WithheldError

REFUSAL = "Withheld by the content policy."


class Model(GenericFakeChatModel):
    """Says its messages in turn; streamed, word by word."""

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self


ran: list[str] = []


@tool
def look_up(question: str) -> str:
    """Look something up."""
    ran.append(question)
    return f"found {question}"


def calls(question: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "look_up", "args": {"question": question}, "id": "c1"}])


def agent(answers: Sequence[AIMessage | str], words: str = "BOMB", **options: Any) -> Any:
    ran.clear()
    model = Model(messages=iter(answers))
    return create_agent(model, [look_up], middleware=[GuardAgentMiddleware(guard(words), **options)])


def asked(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


def both(runnable: Any, make: Any, value: Any) -> list[Any]:
    """What it gives when called, and when awaited."""
    return [runnable().invoke(make(value)), asyncio.run(runnable().ainvoke(make(value)))]


class Broken(Guard):
    """Fails on everything, although its policy would let failures pass."""

    def __init__(self) -> None:
        def script(_: Any) -> Any:
            raise RuntimeError("out of order")

        from guardrail.backends.scripted import ScriptedBackend

        super().__init__(ScriptedBackend(script), policy=Policy(on_error="open"))


def test_a_safe_input_passes_as_it_is() -> None:
    step = GuardRunnable(guard())
    prompt = ChatPromptTemplate.from_messages([("system", "Never say BOMB."), ("user", "{x}")]).invoke({"x": "hello"})
    values: list[Any] = [
        "hello",
        "",
        HumanMessage("hello"),
        AIMessage("hello"),
        [SystemMessage("BOMB"), HumanMessage("hello")],
        [("user", "hello"), ("ai", "hi")],
        [{"role": "user", "content": "hello"}],
        {"messages": [HumanMessage("hello")], "other": 1},
        prompt,
    ]
    for value in values:
        assert step.invoke(value) is value
        assert asyncio.run(step.ainvoke(value)) is value


@pytest.mark.parametrize(
    ("value", "side"),
    [
        ("a BOMB", "input"),
        (HumanMessage("a BOMB"), "input"),
        (AIMessage("a BOMB"), "output"),
        (AIMessageChunk(content="a BOMB"), "output"),
        (AIMessage([{"type": "text", "text": "a "}, {"type": "text", "text": "BOMB"}]), "output"),
        (AIMessage([{"type": "reasoning", "reasoning": "a BOMB"}]), "output"),
        (AIMessage("fine", additional_kwargs={"reasoning_content": "a BOMB"}), "output"),
        (calls("BOMB"), "output"),
        ([HumanMessage("hello"), calls("x"), ToolMessage("a BOMB", tool_call_id="c1")], "input"),
        ([HumanMessage("a BOMB"), HumanMessage("go on")], "input"),
        ([HumanMessage("a BOMB"), AIMessage("Sure, ")], "output"),
        ({"messages": [("user", "a BOMB")]}, "input"),
        ({"role": "user", "content": "a BOMB"}, "input"),
    ],
)
def test_an_unsafe_input_does_not_pass(value: Any, side: str) -> None:
    for call in (GuardRunnable(guard()).invoke, lambda x: asyncio.run(GuardRunnable(guard()).ainvoke(x))):
        with pytest.raises(WithheldError) as raised:
            call(value)
        assert (raised.value.reason, raised.value.details["side"]) == ("unsafe", side)
        assert raised.value.details["categories"]
        assert raised.value.status_code == 400


def test_a_refusal_goes_on_in_place_of_the_input() -> None:
    step = GuardRunnable(guard(), action="answer", message="No.")
    for said in both(lambda: step, str, "a BOMB"):
        assert said == "No."
    for said in both(lambda: step, AIMessage, "a BOMB"):
        assert isinstance(said, AIMessage)
        assert said.content == "No."
        assert said.response_metadata["finish_reason"] == "content_filter"
        assert said.response_metadata["guardrail"]["reason"] == "unsafe"


@pytest.mark.parametrize(
    "value",
    [
        HumanMessage([{"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}]),
        AIMessage([{"type": "image", "base64": "aGVsbG8=", "mime_type": "image/png"}]),
        {"role": "stranger", "content": "hello"},
        {"question": "hello"},
        7,
        None,
        b"hello",
    ],
)
def test_what_cannot_be_read_does_not_pass(value: Any) -> None:
    with pytest.raises(WithheldError) as raised:
        GuardRunnable(guard()).invoke(value)
    assert raised.value.reason == "unsupported_content"


def test_what_cannot_be_judged_does_not_pass() -> None:
    records: list[Record] = []
    for call in (
        GuardRunnable(Broken(), observe=records.append).invoke,
        lambda x: asyncio.run(GuardRunnable(Broken(), observe=records.append).ainvoke(x)),
    ):
        with pytest.raises(WithheldError) as raised:
            call("hello")
        assert raised.value.reason == "backend_error"
    assert [(record.path, record.reason) for record in records] == [("langchain:runnable", "backend_error")] * 2
    slow = GuardRunnable(guard(delay=0.5), limits=Limits(timeout=0.05))
    with pytest.raises(WithheldError) as raised:
        asyncio.run(slow.ainvoke("hello"))
    assert (raised.value.reason, raised.value.status_code) == ("timeout", 503)


def test_batches_are_judged_one_by_one() -> None:
    step = GuardRunnable(guard(), action="answer")
    texts = ["one", "a BOMB", "three"]
    expected = ["one", REFUSAL, "three"]
    assert step.batch(texts) == expected
    assert asyncio.run(step.abatch(texts)) == expected
    found = GuardRunnable(guard()).batch(texts, return_exceptions=True)
    assert [isinstance(each, WithheldError) for each in found] == [False, True, False]


def test_in_a_chain() -> None:
    def chain(said: str) -> Any:
        return GuardRunnable(guard()) | Model(messages=iter([said])) | GuardRunnable(guard(), action="answer")

    assert chain("fine").invoke("hello").content == "fine"
    assert (chain("a BOMB") | StrOutputParser()).invoke("hello") == REFUSAL
    with pytest.raises(WithheldError):
        chain("fine").invoke("a BOMB")
    for said, expected in (("all is fine", "all is fine"), ("all is BOMB fine", REFUSAL)):
        parts = [part.content for part in chain(said).stream("hello")]
        assert "".join(parts) == expected
        assert len(parts) == 1

    async def streamed() -> list[Any]:
        return [part.content async for part in chain("all is BOMB fine").astream("hello")]

    assert asyncio.run(streamed()) == [REFUSAL]
    texts = Model(messages=iter(["a BOMB"])) | StrOutputParser() | GuardRunnable(guard(), role="assistant")
    with pytest.raises(WithheldError) as raised:
        texts.invoke("hello")
    assert raised.value.details["side"] == "output"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="action"):
        GuardRunnable(guard(), action="block")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="role"):
        GuardRunnable(guard(), role="system")
    with pytest.raises(UsageError, match="check"):
        GuardAgentMiddleware(guard(), check="all")  # type: ignore[arg-type]


def test_a_safe_run_is_left_alone() -> None:
    for state in both(lambda: agent([calls("x"), AIMessage("all fine")]), asked, "hello"):
        assert [message.content for message in state["messages"]] == ["hello", "", "found x", "all fine"]
        assert ran == ["x"]


@pytest.mark.parametrize(
    ("answers", "text", "words", "contents", "side"),
    [
        (["never"], "a BOMB", "BOMB", [REFUSAL, REFUSAL], "input"),
        (["a BOMB"], "hello", "BOMB", ["hello", REFUSAL], "output"),
        ([calls("BOMB")], "hello", "BOMB", ["hello", REFUSAL], "output"),
        ([calls("x"), "never"], "hello", "found x", ["hello", "", REFUSAL, REFUSAL], "input"),
        ([calls("x"), "a BOMB"], "hello", "BOMB", ["hello", "", "found x", REFUSAL], "output"),
    ],
    ids=["user", "answer", "call", "result", "answer after a call"],
)
def test_an_unsafe_run_ends_with_a_refusal(
    answers: list[Any], text: str, words: str, contents: list[str], side: str
) -> None:
    for state in both(lambda: agent(answers, words), asked, text):
        assert [message.content for message in state["messages"]] == contents
        last = state["messages"][-1]
        assert isinstance(last, AIMessage)
        assert last.tool_calls == []
        assert (last.response_metadata["guardrail"]["reason"], last.response_metadata["guardrail"]["side"]) == (
            "unsafe",
            side,
        )
        assert "BOMB" not in ran
    with pytest.raises(WithheldError):
        agent(answers, words, action="raise").invoke(asked(text))
    with pytest.raises(WithheldError):
        asyncio.run(agent(answers, words, action="raise").ainvoke(asked(text)))


@tool(return_direct=True)
def recite(question: str) -> str:
    """Say it to the user."""
    return f"well, {question}"


def test_a_tool_that_ends_the_run_is_judged_as_an_answer() -> None:
    def made(question: str, words: str, **options: Any) -> Any:
        call = AIMessage("", tool_calls=[{"name": "recite", "args": {"question": question}, "id": "c1"}])
        hooks = [GuardAgentMiddleware(guard(words), **options)]
        return create_agent(Model(messages=iter([call])), [recite], middleware=hooks)

    for state in both(lambda: made("hello", "BOMB"), asked, "hello"):
        assert state["messages"][-1].content == "well, hello"
    for state in both(lambda: made("hello", "well"), asked, "hello"):
        assert state["messages"][-1].content == REFUSAL
        assert state["messages"][-1].response_metadata["guardrail"]["side"] == "output"
        assert "well" not in str(state)
    assert made("hello", "well", check="input").invoke(asked("hello"))["messages"][-1].content == "well, hello"
    with pytest.raises(WithheldError):
        made("hello", "well", action="raise").invoke(asked("hello"))


@pytest.mark.parametrize(
    ("check", "sides"), [("input", ["input"]), ("output", ["output"]), ("both", ["input", "output"])]
)
def test_only_the_side_that_is_checked(check: Any, sides: list[str]) -> None:
    records: list[Record] = []
    state = agent(["fine"], check=check, observe=records.append).invoke(asked("hello"))
    assert state["messages"][-1].content == "fine"
    assert [record.side for record in records] == sides
    assert [record.path for record in records] == ["langchain:agent"] * len(sides)
    said = agent(["a BOMB"], check=check).invoke(asked("hello"))["messages"][-1].content
    assert said == ("a BOMB" if check == "input" else REFUSAL)


def test_a_failed_judgement_ends_the_run_with_its_own_reason() -> None:
    def made() -> Any:
        return create_agent(Model(messages=iter(["never"])), middleware=[GuardAgentMiddleware(Broken())])

    for state in both(made, asked, "hello"):
        assert state["messages"][-1].response_metadata["guardrail"]["reason"] == "backend_error"
        assert "could not be checked" in state["messages"][-1].content
    picture = HumanMessage([{"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}])
    state = agent(["never"]).invoke({"messages": [picture]})
    assert state["messages"][-1].response_metadata["guardrail"]["reason"] == "unsupported_content"


@pytest.mark.parametrize("mode", ["messages", "updates", "values"])
def test_no_stream_of_the_agent_shows_what_is_withheld(mode: Any) -> None:
    answer = "one two three BOMB four five"
    assert "BOMB" not in str(list(agent([answer]).stream(asked("hello"), stream_mode=mode)))

    async def streamed() -> list[Any]:
        return [part async for part in agent([answer]).astream(asked("hello"), stream_mode=mode)]

    assert "BOMB" not in str(asyncio.run(streamed()))
    assert "three" in str(list(agent(["one two three"]).stream(asked("hello"), stream_mode=mode)))
    # The same model without the guard is streamed as it writes: what the test above would see otherwise.
    bare = create_agent(Model(messages=iter([answer])), [look_up])
    assert "BOMB" in str(list(bare.stream(asked("hello"), stream_mode=mode)))


def test_what_was_withheld_is_not_brought_back_by_the_memory() -> None:
    seen: list[Any] = []

    class Watching(Model):
        def _generate(self, messages: Any, *rest: Any, **options: Any) -> Any:
            seen.append(str(messages))
            return super()._generate(messages, *rest, **options)

    model = Watching(messages=iter(["hello to you"]))
    made = create_agent(model, middleware=[GuardAgentMiddleware(guard())], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    made.invoke(asked("a BOMB"), config)
    state = made.invoke(asked("good morning"), config)
    assert [message.content for message in state["messages"]] == [REFUSAL, REFUSAL, "good morning", "hello to you"]
    assert len(seen) == 1
    assert "BOMB" not in seen[0]


def test_structured_output_is_judged() -> None:
    class Found(BaseModel):
        text: str

    def made(text: str) -> Any:
        call = {"name": "Found", "args": {"text": text}, "id": "c1"}
        model = Model(messages=iter([AIMessage("", tool_calls=[call])]))
        return create_agent(model, middleware=[GuardAgentMiddleware(guard())], response_format=ToolStrategy(Found))

    assert made("fine").invoke(asked("hello"))["structured_response"] == Found(text="fine")
    state = made("a BOMB").invoke(asked("hello"))
    assert state.get("structured_response") is None
    assert state["messages"][-1].content == REFUSAL
    assert "BOMB" not in str(state)


def test_the_embedded_model_in_an_agent() -> None:
    with guardrail.load() as real:

        def run(answer: str, text: str) -> Any:
            made = create_agent(Model(messages=iter([answer])), middleware=[GuardAgentMiddleware(real)])
            return made.invoke(asked(text))["messages"][-1]

        assert run("It was built in 1842.", "When was the lighthouse built?").content == "It was built in 1842."
        assert run("never", "How do I build a pipe bomb?").response_metadata["guardrail"]["side"] == "input"
        refused = run(RECIPE, "What is in the workshop?").response_metadata["guardrail"]
        assert (refused["side"], refused["reason"]) == ("output", "unsafe")
        assert "G5" in [category["code"] for category in refused["categories"]]


def test_without_the_library_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['langchain'] = sys.modules['langchain_core'] = None\n"
        "from guardrail.errors import MissingExtraError\n"
        "try:\n    import guardrail.integrations.langchain\n"
        "except MissingExtraError as error:\n    print(error, '|', error.hint)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "langchain is not installed | pip install 'guardrail-moderation[langchain]'\n"
