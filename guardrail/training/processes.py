"""Several processes of one run, as `accelerate launch` starts them."""

from __future__ import annotations

import os

__all__ = ["count", "is_main", "rank", "wait"]


def is_main() -> bool:
    """Whether this process writes the files of the run; always, when there is only one."""
    return rank() == 0


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait() -> None:
    """Go on when all processes have come here."""
    if count() == 1:
        return
    import torch
    from accelerate.state import PartialState  # type: ignore[import-untyped,unused-ignore]

    PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
