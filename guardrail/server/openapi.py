"""The API's own description."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from guardrail import __version__

__all__ = ["document"]


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The OpenAPI document of the endpoints that are the server's own."""
    import yaml

    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("openapi.yaml").read_text(encoding="utf-8"))
    found["info"]["version"] = __version__
    return found
