"""Several processes of one run, as `accelerate launch` starts them."""

from __future__ import annotations

import os

__all__ = ["count", "is_main"]


def is_main() -> bool:
    """Whether this process writes the files of the run; always, when there is only one."""
    return os.environ.get("RANK", "0") == "0"


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))
