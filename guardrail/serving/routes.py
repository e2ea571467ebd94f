"""Which requests are guarded, by what, and what happens when something is unsafe or cannot be judged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

from guardrail.errors import UsageError
from guardrail.guard import Guard
from guardrail.schemas import schema
from guardrail.schemas.base import Schema
from guardrail.serving.failures import Reason
from guardrail.serving.windowing import Windowing

__all__ = ["DEFAULT_ROUTES", "Action", "Check", "Mode", "Route", "Side", "matching"]

Action = Literal["block", "answer", "annotate", "shadow"]
"""An error response; a refusal in the API's own form; pass it on with headers that tell; pass it on and only log."""
Check = Literal["input", "output", "both"]
Mode = Literal["withhold", "rewind", "end"]
"""Of a stream: nothing leaves before the windows it lies in are safe; everything leaves at once, and an unsafe window
ends the stream and takes it back; everything waits until the whole stream was judged."""
Side = Literal["input", "output"]

_SLASHES = re.compile(r"/{2,}")


@dataclass(frozen=True, slots=True)
class Route:
    """Requests to one path and their answers."""

    path: str
    """Of the URL. `*` is any part between two slashes, at the beginning any number of them; doubled slashes and one at
    the end make no difference."""
    schema: str | Schema
    """`openai-chat`, `openai-completions`, `openai-responses`, `anthropic-messages`, or one of your own."""
    check: Check = "both"
    guard: Guard | None = None
    """With its own taxonomy and thresholds; by default the middleware's."""
    action: Action = "block"
    """When it is unsafe."""
    on_failure: Action | Mapping[str, Action] = "block"
    """When it cannot be judged; by reason, what is not named is blocked."""
    status: int = 400
    """Of the error response to something unsafe."""
    mode: Mode = "withhold"
    windowing: Windowing | None = field(default_factory=Windowing)
    """Of answers, streamed or whole; None judges each text at its end, at once."""
    message: str = "Withheld by the content policy."
    """What a refusal says."""

    def __post_init__(self) -> None:
        for name, known in (("check", Check), ("action", Action), ("mode", Mode)):
            _known(name, getattr(self, name), get_args(known))
        if isinstance(self.on_failure, str):
            _known("on_failure", self.on_failure, get_args(Action))
        else:
            for reason, action in self.on_failure.items():
                _known("on_failure", reason, [one.value for one in Reason if one is not Reason.UNSAFE])
                _known(f"on_failure of {reason}", action, get_args(Action))
        if not 400 <= self.status <= 599:
            raise UsageError(f"status is {self.status}", hint="give one of an error: 400 to 599")
        object.__setattr__(self, "schema", schema(self.schema))

    @property
    def api(self) -> Schema:
        """The schema itself."""
        assert not isinstance(self.schema, str)
        return self.schema

    def checks(self, side: Side) -> bool:
        """Whether this side of an exchange is judged."""
        return self.check in (side, "both")

    def taken(self, reason: str) -> Action:
        """The action for this reason."""
        if reason == Reason.UNSAFE:
            return self.action
        return self.on_failure if isinstance(self.on_failure, str) else self.on_failure.get(reason, "block")


def _known(name: str, value: str, known: tuple[str, ...] | list[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} is {value!r}, which is not known", hint=f"known: {', '.join(known)}")


DEFAULT_ROUTES: Mapping[str, str] = {
    "*/chat/completions": "openai-chat",
    "*/chat/completions/*": "openai-chat",
    "*/v1/completions": "openai-completions",
    "*/v1/responses": "openai-responses",
    "*/v1/responses/*": "openai-responses",
    "*/v1/responses/*/cancel": "openai-responses",
    "*/v1/messages": "anthropic-messages",
}
"""Paths and their schemas; those that end in `/*` are of stored answers."""


def matching(path: str, routes: tuple[Route, ...]) -> Route | None:
    """The first route of this path."""
    plain = _SLASHES.sub("/", path).rstrip("/") or "/"
    return next((route for route in routes if _pattern(route.path).fullmatch(plain)), None)


@lru_cache
def _pattern(path: str) -> re.Pattern[str]:
    first = ".*" if path.startswith("*") else ""
    return re.compile(first + "[^/]*".join(map(re.escape, path.removeprefix("*").split("*"))))
