"""Cached prefixes in use, failures and memory, of a whole guard backend."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
)

from guardrail.backends.causal_rows import common_length
from guardrail.backends.llama import LlamaBackend
from guardrail.backends.llama_loading import Checkpoint, load_checkpoint
from guardrail.errors import BackendError, OutOfMemoryError
from guardrail.guard import Guard
from guardrail.prompting import Prompt, PromptBuilder
from guardrail.scoring import Logits
from guardrail.types import Conversation
from tests.checkpoints import save_checkpoint, tokenizer_of


@pytest.fixture(scope="module")
def folder(tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("guard"), tokenizer_of("llama-guard-1", tokenizer_files))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(str(folder), device="cpu")


@pytest.fixture
def backend(checkpoint: Checkpoint) -> LlamaBackend:
    return LlamaBackend(checkpoint)


def prompts_of(backend: LlamaBackend, *texts: str) -> list[Prompt]:
    builder = PromptBuilder(backend.template, backend.default_taxonomy)
    return [builder.build(Conversation.parse(text)) for text in texts]


def numbers(answer: Logits | BackendError) -> list[float]:
    assert isinstance(answer, Logits), answer
    return [answer.safe, answer.unsafe, *answer.categories]


def test_each_category_keeps_its_own_prefix(backend: LlamaBackend) -> None:
    guard = Guard(backend, category_scores="each")
    texts = ["hello there", "how are you", "what is this"]
    first = list(guard.check_many(texts))
    runner = backend._runner
    assert runner is not None
    assert len(runner.prefixes) == 1 + len(backend.default_taxonomy)
    kept = runner.prefixes.nbytes
    assert [decision.error for decision in first] == [None] * 3
    for one, other in zip(first, (guard.check(text) for text in texts), strict=True):
        assert other.score == pytest.approx(one.score, abs=1e-6)
        assert [c.score for c in other.categories] == pytest.approx([c.score for c in one.categories], abs=1e-6)
    assert runner.prefixes.nbytes <= kept


# failures


class Failing(torch.nn.Module):
    """Stands before a layer and raises for inputs that are longer than it allows: of rows, or of packed tokens."""

    def __init__(self, inner: torch.nn.Module, longest: int, error: Exception) -> None:
        super().__init__()
        self.inner, self.longest, self.error = inner, longest, error

    def forward(self, ids: torch.Tensor) -> Any:
        if len(ids) > self.longest:
            raise self.error
        return self.inner(ids)


class Padded(LlamaForCausalLM):  # type: ignore[misc]  # transformers is not typed
    """A Llama that is run like any other architecture: with its rows side by side."""


def failing(checkpoint: Checkpoint, longest: int, error: Exception, kind: Any = Padded) -> LlamaBackend:
    """A backend of its own whose model raises the error for batches of more than so many rows, or packed tokens."""
    model = kind.from_pretrained(checkpoint.folder).eval()
    own = Checkpoint(model, checkpoint.tokenizer, "failing@0", checkpoint.folder, 4096, 32000)
    backend = LlamaBackend(own, token_budget=8192)
    model.model.embed_tokens = Failing(model.model.embed_tokens, longest, error)
    return backend


TEXTS = [f"text number {index} " + "and more " * index for index in range(8)]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), RuntimeError("MPS backend out of memory"), MemoryError()]
)
def test_out_of_memory_halves_the_batch_and_says_so(
    checkpoint: Checkpoint, backend: LlamaBackend, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    broken = failing(checkpoint, 4, error)
    with caplog.at_level(logging.WARNING, "guardrail"):
        answers = broken.logits(prompts_of(broken, *TEXTS))
    expected = backend.logits(prompts_of(backend, *TEXTS))
    for one, other in zip(answers, expected, strict=True):
        assert numbers(one) == pytest.approx(numbers(other), abs=1e-5)
    assert "out of memory with 8 rows" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "guardrail"):
        broken.logits(prompts_of(broken, *TEXTS))
    assert not caplog.records, "the lowered budget stays"


def test_packed_rows_are_halved_too(
    checkpoint: Checkpoint, backend: LlamaBackend, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = prompts_of(backend, *TEXTS)
    expected = backend.logits(prompts)
    ids = sorted((tuple(backend.tokenizer.encode(prompt)) for prompt in prompts), key=len)
    shared = common_length(ids)
    half = sum(len(one) - shared for one in ids[4:])
    broken = failing(checkpoint, half, MemoryError(), LlamaForCausalLM)
    with caplog.at_level(logging.WARNING, "guardrail"):
        answers = broken.logits(prompts, categories=False)
    for one, other in zip(answers, expected, strict=True):
        assert numbers(one) == pytest.approx(numbers(other)[:2], abs=1e-5)
    assert "out of memory" in caplog.text


def test_a_second_failure_is_an_error_for_the_rows_of_that_half(checkpoint: Checkpoint) -> None:
    broken = failing(checkpoint, 4, torch.OutOfMemoryError("no memory"))
    nine = [*TEXTS, "the longest text of all of them " * 3]
    answers = broken.logits(prompts_of(broken, *nine))
    assert [isinstance(answer, Logits) for answer in answers] == [True] * 4 + [False] * 5
    assert all(isinstance(answer, OutOfMemoryError) for answer in answers[4:])
    assert all(isinstance(answer, Logits) for answer in broken.logits(prompts_of(broken, *nine)))


def test_any_other_failure_is_an_error_for_the_rows_of_its_batch(checkpoint: Checkpoint) -> None:
    broken = failing(checkpoint, 3, ZeroDivisionError("driver lost"))
    answers = broken.logits(prompts_of(broken, "a long text that runs alone " * 400, *TEXTS))
    assert [isinstance(answer, Logits) for answer in answers] == [True] + [False] * len(TEXTS)
    assert {str(answer) for answer in answers[1:]} == {"ZeroDivisionError: driver lost"}
    assert not any(isinstance(answer, OutOfMemoryError) for answer in answers)


def test_numbers_that_are_not_finite_are_an_error_for_that_row_only(checkpoint: Checkpoint) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder).eval()
    backend = LlamaBackend(Checkpoint(model, checkpoint.tokenizer, "nan@0", checkpoint.folder, 4096, 32000))
    prompts = prompts_of(backend, "plain words", "a zebra", "other words")
    zebra = set(backend.tokenizer.encode(prompts[1])) - set(backend.tokenizer.encode(prompts[0]))
    with torch.no_grad():
        model.model.embed_tokens.weight[list(zebra)] = float("nan")
    fine, error, other = backend.logits(prompts)
    assert isinstance(error, BackendError)
    assert "not finite" in str(error)
    assert all(map(numbers, (fine, other)))


_LIMITED = """
import logging, resource, sys
from pathlib import Path
import torch
from guardrail.backends.llama import LlamaBackend
from guardrail.backends.llama_loading import load_checkpoint
from guardrail.errors import OutOfMemoryError
from guardrail.prompting import PromptBuilder
from guardrail.scoring import Logits
from guardrail.types import Conversation

torch.set_num_threads(1)
checkpoint = load_checkpoint(sys.argv[1], device="cpu")
def fresh():
    backend = LlamaBackend(checkpoint, token_budget=10**9)
    backend.logits(prompts[:2])
    return backend
backend = LlamaBackend(checkpoint)
builder = PromptBuilder(backend.template, backend.default_taxonomy)
texts = [f"{index} " + "word " * (100 if index < 20 else 600) for index in range(40)]
prompts = [builder.build(Conversation.parse(text)) for text in texts]
expected = backend.logits(prompts)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
seen = set()
for megabytes in range(200, 4000, 200):
    limited = fresh()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20, hard))
    answers = limited.logits(prompts)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    failed = sum(isinstance(answer, OutOfMemoryError) for answer in answers)
    for answer, right in zip(answers, expected):
        if isinstance(answer, Logits):
            assert abs(answer.unsafe - right.unsafe) < 1e-5, (answer, right)
        else:
            assert isinstance(answer, OutOfMemoryError), answer
    halved = limited.token_budget < 10**9
    seen.add({0: "all", 40: "none"}.get(failed, "some") + (" halved" if halved else ""))
    print(megabytes, failed, halved, file=sys.stderr)
    if seen >= {"some halved", "all halved"}:
        break
print(sorted(seen))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs the limits of Linux")
def test_a_machine_with_too_little_memory(tokenizer_files: Path, tmp_path: Path) -> None:
    """Real allocations fail: less and less of the batch does until all of it fits."""
    tokenizer = tokenizer_of("llama-guard-1", tokenizer_files)
    folder = save_checkpoint(tmp_path, tokenizer, intermediate_size=4096)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(folder)], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = done.stdout.strip().splitlines()[-1]
    assert "'all halved'" in seen, seen
    assert "'some halved'" in seen, seen


# memory


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's process memory")
def test_memory_does_not_grow_with_the_number_of_requests(backend: LlamaBackend) -> None:
    def requests(start: int, count: int) -> None:
        for index in range(start, start + count):
            backend.logits(prompts_of(backend, f"request {index} " + "word " * (index % 40), f"and {index}"))

    requests(0, 60)
    runner = backend._runner
    assert runner is not None
    before, kept = resident(), runner.prefixes.nbytes
    requests(60, 200)
    assert runner.prefixes.nbytes == kept
    assert len(runner.prefixes) == 1
    assert resident() - before < 8 * 2**20


def test_closing_frees_the_model(checkpoint: Checkpoint) -> None:
    backend = LlamaBackend(checkpoint)
    backend.close()
    backend.close()
    assert backend.token_budget == 0
    with pytest.raises(BackendError, match="closed"):
        backend.logits(prompts_of(backend, "hello"))
