"""How a server is set up: what `guardrail serve` was told, in a form that its worker processes read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from guardrail.errors import UsageError
from guardrail.guard import Guard
from guardrail.server.keys import Keys
from guardrail.serving.judge import Limits
from guardrail.serving.routes import Action, Mode, Route

__all__ = ["Settings", "from_environment", "to_environment"]

_VARIABLE = "GUARDRAIL_SERVE"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything but the address."""

    model: str = "embedded"
    taxonomy: str | None = None
    threshold: float | None = None
    calibration: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the backend: `device`, `dtype`."""
    upstream: str | None = None
    """URL of a model server; the chat APIs are handed on to it. It ends before `/v1`."""
    upstream_timeout: float = 600.0
    """Seconds without a byte from it."""
    action: str = "block"
    """When a chat is unsafe; see `serving.routes`."""
    mode: str = "withhold"
    keys: str | None = None
    """File of the API keys' hashes; without it everybody may ask."""
    origins: tuple[str, ...] = ()
    """Web origins that may call the API from a browser."""
    audit: str | None = None
    """File of the audit log."""
    audit_bytes: int = 100 << 20
    """After which a new one is begun; the last ten are kept."""
    log_text: bool = False
    """Whether the logs have the judged texts as well."""
    most_bytes: int = 8 << 20
    """Of a request."""
    most_inputs: int = 256
    """Texts of one moderation request."""
    limits: Limits = field(default_factory=Limits)
    page: bool = True
    """Whether there is a page at `/`."""

    def check(self) -> None:
        """Raises UsageError, InputError or ModelError for what would only fail in a worker process."""
        if self.upstream is not None and not self.upstream.startswith(("http://", "https://")):
            raise UsageError(f"--upstream is {self.upstream!r}", hint="give a URL such as http://localhost:8000")
        if self.keys is not None and not Path(self.keys).is_file():
            hint = "make it with the first key: guardrail serve --keys FILE --new-key NAME"
            raise UsageError(f"--keys: there is no file {self.keys}", hint=hint)
        Route("/", "openai-chat", action=cast(Action, self.action), mode=cast(Mode, self.mode))
        if self.keys is not None:
            Keys(Path(self.keys))

    def guard(self) -> Guard:
        """Load the classifier."""
        from guardrail.loading import load

        return load(
            self.model,
            taxonomy=self.taxonomy,
            threshold=self.threshold,
            calibration=self.calibration,
            **self.options,
        )


def to_environment(settings: Settings) -> None:
    """For processes that are started from this one."""
    os.environ[_VARIABLE] = json.dumps(asdict(settings))


def from_environment() -> Settings:
    """What the starting process was told."""
    raw = json.loads(os.environ[_VARIABLE])
    values = {each.name: raw[each.name] for each in fields(Settings)}
    return Settings(**{**values, "limits": Limits(**values["limits"]), "origins": tuple(values["origins"])})
