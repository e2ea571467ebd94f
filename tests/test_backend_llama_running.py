"""What runs under the scores: rows, batches, cached prefixes, failures, memory, and other architectures."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
)

from guardrail.backends.llama import LlamaBackend
from guardrail.backends.llama_batching import Question, Row, batch_cost, batch_end, rows_for
from guardrail.backends.llama_forward import Forward
from guardrail.backends.llama_loading import Checkpoint, load_checkpoint
from guardrail.backends.llama_prefix import PrefixCache, common_length
from guardrail.backends.llama_runner import Runner
from guardrail.errors import BackendError, OutOfMemoryError
from guardrail.guard import Guard
from guardrail.prompting import Prompt, PromptBuilder
from guardrail.scoring import Logits
from guardrail.types import Conversation
from tests.checkpoints import save_checkpoint, tokenizer_of

IDS = st.lists(st.integers(0, 3), max_size=8).map(tuple)
SMALL: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def folder(tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("guard"), tokenizer_of("llama-guard-1", tokenizer_files))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(str(folder), device="cpu")


@pytest.fixture
def backend(checkpoint: Checkpoint) -> LlamaBackend:
    return LlamaBackend(checkpoint)


def small(config: Any = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config or LlamaConfig(**SMALL)).eval()


def prompts_of(backend: LlamaBackend, *texts: str) -> list[Prompt]:
    builder = PromptBuilder(backend.template, backend.default_taxonomy)
    return [builder.build(Conversation.parse(text)) for text in texts]


def numbers(answer: Logits | BackendError) -> list[float]:
    assert isinstance(answer, Logits), answer
    return [answer.safe, answer.unsafe, *answer.categories]


# rows and batches


@given(st.lists(IDS, min_size=1, max_size=6), IDS)
def test_every_question_is_answered_once_and_at_its_own_place(
    paths: list[tuple[int, ...]], ids: tuple[int, ...]
) -> None:
    questions = [Question(path, (index,)) for index, path in enumerate(paths)]
    rows = rows_for(7, ids, questions)
    answered = [read.question for row in rows for read in row.reads]
    assert sorted(answered) == list(range(len(paths)))
    for row in rows:
        assert row.prompt == 7
        for read in row.reads:
            assert row.ids[: read.position + 1] == ids + paths[read.question]
            assert read.tokens == (read.question,)
    longest = {path for path in paths if not any(other[: len(path)] == path and other != path for other in paths)}
    assert len(rows) == len(longest)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 300), st.integers(0, 40))
def test_batches_stay_within_the_budget_or_are_single_rows(lengths: list[int], budget: int, prefix: int) -> None:
    rows = [Row(index, (0,) * (prefix + length), ()) for index, length in enumerate(sorted(lengths))]
    start = 0
    while start < len(rows):
        end = batch_end(rows, start, prefix, budget)
        assert end == start + 1 or batch_cost(rows[start:end], prefix) <= budget
        assert end == len(rows) or batch_cost(rows[start : end + 1], prefix) > budget
        start = end


@given(st.lists(IDS, min_size=1, max_size=6))
def test_common_length(rows: list[tuple[int, ...]]) -> None:
    length = common_length(rows)
    assert all(row[:length] == rows[0][:length] for row in rows)
    assert any(len(row) == length or row[: length + 1] != rows[0][: length + 1] for row in rows)


# cached prefixes


def test_a_prefix_is_cut_and_extended_to_what_it_would_have_been() -> None:
    forward = Forward(small())
    ids = tuple(range(1, 101))
    whole = forward.prefix(ids)
    for other in (whole.cut(60), forward.prefix(ids[:60])):
        extended = forward.prefix(ids, other)
        assert (other.ids, extended.ids) == (ids[:60], ids)
        for one, two in zip(extended.states, whole.states, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    assert whole.nbytes == 100 * forward.bytes_per_token


def test_the_prefix_of_a_policy_is_found_once_and_kept() -> None:
    forward = Forward(small())
    cache = PrefixCache(forward, 2**30)
    policy = tuple(range(1, 101))
    assert cache.find("a", [(*policy, 7, 8)]) is None
    first = cache.find("a", [(*policy, 9, 9, 9)])
    assert first is not None
    assert first.ids == policy
    assert cache.find("a", [(*policy, 5, 5), (*policy, 6)]) is first
    cut = cache.find("a", [(*policy[:80], 499, 499)])
    assert cut is not None
    assert cut.ids == policy[:80]
    again = cache.find("a", [(*policy, 5, 5), (*policy, 6)])
    assert again is cut, "so little more to share is not worth computing again"
    assert cache.find("b", [(400, 5, 5), (400, 6)]) is None
    assert (len(cache), cache.nbytes) == (1, cut.nbytes)


def test_a_prefix_that_could_be_much_longer_is_computed_again() -> None:
    cache = PrefixCache(Forward(small()), 2**30)
    policy = tuple(range(1, 201))
    cache.find("a", [(*policy[:40], 300), (*policy[:40], 301)])
    longer = cache.find("a", [(*policy, 300), (*policy, 301)])
    assert longer is not None
    assert longer.ids == policy


def test_prefixes_are_bounded_and_the_least_recently_used_one_goes_first() -> None:
    forward = Forward(small())
    limit = 250 * forward.bytes_per_token
    cache = PrefixCache(forward, limit)

    def use(name: int) -> Any:
        return cache.find(name, [(name,) * 100 + (400 + end,) for end in range(2)])

    one, _ = use(1), use(2)
    assert use(1) is one
    use(3)
    assert cache.nbytes <= limit
    assert use(1) is one
    assert len(cache) == 2
    for name in range(4, 60):
        prefix = use(name)
        assert len(prefix.ids) == 100
        assert cache.nbytes <= limit
    long = cache.find("long", [(9,) * 400 + (end,) for end in range(2)])
    assert long is not None
    assert len(long.ids) == 250
    assert PrefixCache(forward, 0).find("a", [(1,) * 100 + (end,) for end in range(2)]) is None


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
    """Stands before a layer and raises for batches of more rows than it allows."""

    def __init__(self, inner: torch.nn.Module, rows: int, error: Exception) -> None:
        super().__init__()
        self.inner, self.rows, self.error = inner, rows, error

    def forward(self, ids: torch.Tensor) -> Any:
        if len(ids) > self.rows:
            raise self.error
        return self.inner(ids)


def failing(checkpoint: Checkpoint, rows: int, error: Exception) -> LlamaBackend:
    """A backend of its own whose model raises the error for batches of more than so many rows."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder).eval()
    own = Checkpoint(model, checkpoint.tokenizer, "failing@0", checkpoint.folder, 4096, 32000)
    backend = LlamaBackend(own, token_budget=8192)
    model.model.embed_tokens = Failing(model.model.embed_tokens, rows, error)
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
for megabytes in range(25, 500, 25):
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
def test_a_machine_with_too_little_memory(folder: Path) -> None:
    """Real allocations fail: less and less of the batch does until all of it fits."""
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


# other architectures

ARCHITECTURES = {
    "scaled logits": GraniteConfig(**SMALL, logits_scaling=8.0),
    "squashed logits, sliding window": Gemma2Config(
        **SMALL, head_dim=16, sliding_window=16, final_logit_softcapping=3.0
    ),
    "sliding window": MistralConfig(**SMALL, head_dim=16, sliding_window=16),
    "chunked attention": Llama4TextConfig(
        **SMALL,
        head_dim=16,
        intermediate_size_mlp=128,
        num_local_experts=2,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        attention_chunk_size=32,
    ),
    "no attention": MambaConfig(vocab_size=500, hidden_size=64, num_hidden_layers=2),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_give_what_their_plain_forward_pass_gives(name: str) -> None:
    model = small(ARCHITECTURES[name])
    runner = Runner(Forward(model), token_budget=10**6, cache_bytes=2**30)
    generator = torch.Generator().manual_seed(1)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, 500, (count,), generator=generator).tolist())

    policy = some(60)
    starts = [policy + some(count) for count in (5, 12, 30)]
    questions = [Question((), (3, 77, 499)), Question((4, 5), (8, 9)), Question((4, 6), (1,))]
    rows = [row for index, ids in enumerate(starts) for row in rows_for(index, ids, questions)]
    assert len(rows) == 6
    for row, answer in zip(rows, runner.run("key", starts, rows), strict=True):
        assert isinstance(answer, dict)
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0]
        for read in row.reads:
            expected = logits[read.position, list(read.tokens)].tolist()
            assert answer[read.question] == pytest.approx(expected, abs=2e-5)
    assert len(runner.prefixes) == (name != "no attention")
