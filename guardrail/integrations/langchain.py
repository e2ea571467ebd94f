"""LangChain: a step for chains, and a middleware for agents.

chain = GuardRunnable() | model | GuardRunnable(action="answer")
agent = create_agent(model, tools, middleware=[GuardAgentMiddleware()])
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, get_args

from guardrail.errors import MissingExtraError, UsageError
from guardrail.guard import Guard
from guardrail.integrations.checks import Checks, WithheldError
from guardrail.integrations.langchain_messages import conversation, turns
from guardrail.schemas.base import Notice
from guardrail.serving.exchange import Blocked, Observer
from guardrail.serving.failures import JudgeFailure
from guardrail.serving.judge import Limits
from guardrail.serving.routes import Check, Side
from guardrail.types import Message, Role

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
    from langchain_core.runnables import Runnable, RunnableConfig
    from langgraph.prebuilt.tool_node import ToolCallRequest
    from langgraph.types import Command
except ImportError as error:
    raise MissingExtraError("langchain", "langchain") from error

__all__ = ["Action", "GuardAgentMiddleware", "GuardRunnable", "WithheldError"]

Action = Literal["answer", "raise"]
"""A refusal takes the text's place; `WithheldError`."""

_MESSAGE = "Withheld by the content policy."
_MARK = "guardrail"


class GuardRunnable(Runnable[Any, Any]):
    """Passes its input on as it is, when that is safe: text, a message, messages, a prompt, a state with `messages`.

    What the user said last is judged, or what the model said if that is the last. A streamed input is held back until
    it is whole.
    """

    def __init__(
        self,
        guard: Guard | None = None,
        *,
        role: Role | str = Role.USER,
        action: Action = "raise",
        message: str = _MESSAGE,
        limits: Limits | None = None,
        observe: Observer | None = None,
    ) -> None:
        """`role`: who says what comes as plain text. `action` "answer": a refusal goes on in place of the input, as
        text for text and as an `AIMessage` for all else; use it behind the model, not before it.
        """
        self.role = Role(_known("role", role, tuple(Role)))
        self.action = _known("action", action, get_args(Action))
        self._checks = Checks(guard, "langchain:runnable", message=message, limits=limits, observe=observe)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """The input; WithheldError, or a refusal, when it does not pass."""
        return self._call_with_config(self._invoke, input, config, run_type="chain")

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As `invoke`; `batch` and `abatch` run several at a time."""
        return await self._acall_with_config(self._ainvoke, input, config, run_type="chain")

    def _invoke(self, value: Any) -> Any:
        said, side, blocked = self._read(value)
        return self._passed(value, blocked or self._checks.check(said, side))

    async def _ainvoke(self, value: Any) -> Any:
        said, side, blocked = self._read(value)
        return self._passed(value, blocked or await self._checks.acheck(said, side))

    def _read(self, value: Any) -> tuple[Sequence[Message], Side, Blocked | None]:
        try:
            said = conversation(value, self.role)
        except JudgeFailure as failure:
            return (), "input", self._checks.refused("input", failure)
        return said, "output" if said and said[-1].role is Role.ASSISTANT else "input", None

    def _passed(self, value: Any, blocked: Blocked | None) -> Any:
        if blocked is None:
            return value
        if self.action == "raise":
            raise WithheldError(blocked)
        return blocked.notice.message if isinstance(value, str) else _refusal(blocked.notice)


class GuardAgentMiddleware(AgentMiddleware[Any, Any, Any]):
    """Judges what user and tools say before the model reads it, and what the model says before anybody does.

    An answer counts with the arguments of its tool calls, which do not run when it is unsafe. What did not pass is
    replaced in the agent's state as well, so that later turns do not bring it back. Put it first in the list.
    """

    def __init__(
        self,
        guard: Guard | None = None,
        *,
        check: Check = "both",
        action: Action = "answer",
        message: str = _MESSAGE,
        limits: Limits | None = None,
        observe: Observer | None = None,
    ) -> None:
        """`action` "answer": the run ends with an `AIMessage` that has the reason in `response_metadata`."""
        super().__init__()
        self.action = _known("action", action, get_args(Action))
        self._checks = Checks(guard, "langchain:agent", check=check, message=message, limits=limits, observe=observe)

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: AgentState[Any], runtime: Any) -> dict[str, Any] | None:
        """What was said since the model spoke last."""
        said, blocked = self._asked(state["messages"])
        return self._ended(state["messages"], blocked or self._checks.check(said, "input"))

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: AgentState[Any], runtime: Any) -> dict[str, Any] | None:
        """As `before_model`."""
        said, blocked = self._asked(state["messages"])
        return self._ended(state["messages"], blocked or await self._checks.acheck(said, "input"))

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """The model's answer, before it gets into the state or into a stream."""
        if not self._checks.route.checks("output"):
            return handler(request)
        response = handler(_unstreamed(request))
        said, blocked = self._answered(request.messages, response)
        return self._replaced(response, blocked or self._checks.check(said, "output"))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`."""
        if not self._checks.route.checks("output"):
            return await handler(request)
        response = await handler(_unstreamed(request))
        said, blocked = self._answered(request.messages, response)
        return self._replaced(response, blocked or await self._checks.acheck(said, "output"))

    @hook_config(can_jump_to=["end"])
    def after_model(self, state: AgentState[Any], runtime: Any) -> dict[str, Any] | None:
        """A refusal is the run's end."""
        return {"jump_to": "end"} if _MARK in state["messages"][-1].response_metadata else None

    @hook_config(can_jump_to=["end"])
    async def aafter_model(self, state: AgentState[Any], runtime: Any) -> dict[str, Any] | None:
        """As `after_model`."""
        return self.after_model(state, runtime)

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        """The result of a tool that ends the run with it: no model reads it, so that it is an answer."""
        result = handler(request)
        said, blocked = self._direct(request, result)
        return _in_place(request, result, self._notice(blocked or self._checks.check(said, "output")))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        """As `wrap_tool_call`."""
        result = await handler(request)
        said, blocked = self._direct(request, result)
        return _in_place(request, result, self._notice(blocked or await self._checks.acheck(said, "output")))

    def _direct(self, request: ToolCallRequest, result: Any) -> tuple[Sequence[Message], Blocked | None]:
        if not (self._checks.route.checks("output") and getattr(request.tool, "return_direct", False)):
            return (), None
        update = result.update if isinstance(result, Command) else {"messages": [result]}
        found, blocked = self._turns(list(update.get("messages", [])) if isinstance(update, dict) else [], "output")
        if blocked is not None or not found:
            return (), blocked
        before = request.state.get("messages", []) if isinstance(request.state, dict) else []
        return self._turns([*before, AIMessage(found[-1].text)], "output")

    def _notice(self, blocked: Blocked | None) -> Notice | None:
        if blocked is not None and self.action == "raise":
            raise WithheldError(blocked)
        return None if blocked is None else blocked.notice

    def _asked(self, messages: Sequence[BaseMessage]) -> tuple[Sequence[Message], Blocked | None]:
        return self._turns(messages, "input") if self._checks.route.checks("input") else ((), None)

    def _answered(
        self, asked: Sequence[BaseMessage], response: ModelResponse[Any]
    ) -> tuple[Sequence[Message], Blocked | None]:
        # Structured output comes with a tool message of its own behind the answer.
        answer = [message for message in response.result if isinstance(message, AIMessage)]
        said, blocked = self._turns([*asked, *answer], "output")
        # A blank answer leaves the question as the last turn: there is nothing to judge.
        return (said if said and said[-1].role is Role.ASSISTANT else ()), blocked

    def _turns(self, messages: Sequence[BaseMessage], side: Side) -> tuple[Sequence[Message], Blocked | None]:
        try:
            return turns(messages), None
        except JudgeFailure as failure:
            return (), self._checks.refused(side, failure)

    def _ended(self, messages: Sequence[BaseMessage], blocked: Blocked | None) -> dict[str, Any] | None:
        notice = self._notice(blocked)
        if notice is None:
            return None
        start = len(messages)
        for begun in (True, False):  # an answer that is begun, and what was said before it
            while start and isinstance(messages[start - 1], AIMessage) is begun:
                start -= 1
        withheld = [_withheld(message, notice) for message in messages[start:] if message.type != "system"]
        return {"messages": [*withheld, _refusal(notice)], "jump_to": "end"}

    def _replaced(self, response: ModelResponse[Any], blocked: Blocked | None) -> ModelResponse[Any]:
        notice = self._notice(blocked)
        if notice is None:
            return response
        names = [message.name for message in response.result if isinstance(message, AIMessage)]
        return ModelResponse(result=[_refusal(notice, *names[:1])])


def _in_place(request: ToolCallRequest, result: Any, notice: Notice | None) -> Any:
    if notice is None:
        return result
    call = request.tool_call
    return ToolMessage(
        notice.message, tool_call_id=call["id"], name=call["name"], response_metadata={_MARK: notice.to_dict()}
    )


def _withheld(message: BaseMessage, notice: Notice) -> BaseMessage:
    calls: dict[str, Any] = {"tool_calls": [], "invalid_tool_calls": []} if isinstance(message, AIMessage) else {}
    return message.model_copy(update={"content": notice.message, "additional_kwargs": {}, **calls})


def _refusal(notice: Notice, name: str | None = None) -> AIMessage:
    told = {"finish_reason": "content_filter", _MARK: notice.to_dict()}
    return AIMessage(notice.message, name=name, response_metadata=told)


def _unstreamed(request: ModelRequest[Any]) -> ModelRequest[Any]:
    """With a model whose tokens LangGraph does not send out while they are written."""
    model: Any = request.model
    if isinstance(model, BaseChatModel):
        quiet = model.model_copy(update={"tags": [*(model.tags or ()), "nostream"]})
    else:  # one that is chosen at run time
        quiet = model.with_config(tags=["nostream"])
    return request.override(model=quiet)


def _known(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise UsageError(f"{name} is {value!r}, which is not known", hint=f"known: {', '.join(known)}")
    return value
