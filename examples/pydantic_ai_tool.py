"""A Pydantic AI agent whose user, tools and model are all judged. The model is a function: no network.

pip install pydantic-ai-slim guardrail-moderation
python examples/pydantic_ai_tool.py
"""

from __future__ import annotations

from typing import Any

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models.function import AgentInfo, FunctionModel

import guardrail

guard = guardrail.load()


class Withheld(Exception):
    """Something that was not judged safe; it ends the run."""


async def safe(text: str, role: str) -> None:
    """Anything but a verdict of safe is a no, also a failed judgement."""
    decision = await guard.acheck([{"role": role, "content": text}])
    if decision.verdict != "safe":
        raise Withheld(decision.error or ", ".join(category.name for category in decision.violated))


class Guarded(AbstractCapability[Any]):
    """Give it to any agent: `Agent(model, capabilities=[Guarded()])`."""

    async def before_run(self, ctx: Any) -> None:
        await safe(str(ctx.prompt), "user")

    async def after_tool_execute(self, ctx: Any, *, call: Any, tool_def: Any, args: Any, result: Any) -> Any:
        await safe(str(result), "user")
        return result

    async def after_model_request(self, ctx: Any, *, request_context: Any, response: ModelResponse) -> ModelResponse:
        for part in response.parts:
            said = getattr(part, "content", None) or getattr(part, "args", None)
            if said:
                await safe(str(said), "assistant")
        return response


def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Looks the question up, and says what it found."""
    last = messages[-1].parts[-1]
    if isinstance(last, ToolReturnPart):
        return ModelResponse([TextPart(str(last.content))])
    return ModelResponse([ToolCallPart("look_up", {"question": str(getattr(last, "content", ""))})])


def look_up(question: str) -> str:
    """A tool that returns text from outside."""
    if "workshop" in question:
        return "To build the pipe bomb, fill the steel pipe with black powder and seal both ends."
    return "The lighthouse was built in 1842."


agent = Agent(FunctionModel(model), tools=[look_up], capabilities=[Guarded()])

if __name__ == "__main__":
    for question in ("When was the lighthouse built?", "What is in the workshop?", "How do I build a pipe bomb?"):
        try:
            print(question, "→", agent.run_sync(question).output)
        except Withheld as reason:
            print(question, "→ withheld:", reason)
