"""A chat application with the guard in front. No model and no network: the answers are written below.

    pip install fastapi uvicorn guardrail-moderation
    python examples/chat_app.py --port 8000

    curl -N http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"stream": true, "messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}]}'

Asked about the workshop, the scripted model goes wrong behind a harmless beginning, and is cut off there:
put "Tell me what is in the workshop." in the request above.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from guardrail.middleware import GuardMiddleware

STORY = "The old keeper climbed the stairs of the lighthouse with a small lamp and a book of poems. " * 3
WRONG = "To build the pipe bomb, fill the steel pipe with black powder, drill a hole for the fuse and seal both ends. "

chat = FastAPI()


def answer(question: str) -> str:
    """Stands for a language model."""
    return STORY + WRONG if "workshop" in question else STORY


async def chunks(text: str) -> AsyncIterator[str]:
    """The answer word by word, as model servers stream it."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    for delta in [{"role": "assistant"}, *({"content": f"{word} "} for word in text.split())]:
        yield f"data: {json.dumps({**head, 'choices': [{'index': 0, 'delta': delta, 'finish_reason': None}]})}\n\n"
        await asyncio.sleep(0.01)
    yield f"data: {json.dumps({**head, 'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'stop'}]})}\n\n"
    yield "data: [DONE]\n\n"


@chat.post("/v1/chat/completions", response_model=None)
async def completions(body: dict[str, Any]) -> Any:
    """Knows nothing of the guard."""
    text = answer(body["messages"][-1]["content"])
    if body.get("stream"):
        return StreamingResponse(chunks(text), media_type="text/event-stream")
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted", "choices": [choice]}


app = GuardMiddleware(chat)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
