"""Fixtures for the assets that are not part of the project; their paths come from the environment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No test asserts a time: these machines are shared.
settings.register_profile("guardrail", deadline=None)
settings.load_profile("guardrail")

# A shell's background job ignores it, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _folder(variable: str) -> Path:
    value = os.environ.get(variable, "")
    if not value:
        pytest.skip(f"{variable} is not set")
    path = Path(value)
    if not path.is_dir():
        pytest.skip(f"{variable}: there is no folder {path}")
    return path


@pytest.fixture(scope="session")
def tokenizer_files() -> Path:
    """The folder with llama2/, llama3/ and llama4/tokenizer.model."""
    return _folder("GUARDRAIL_TOKENIZERS")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with train/ and eval/."""
    return _folder("GUARDRAIL_DATA")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes with one thread: tiny models are slower, and differ between runs, with more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
