"""Rows, batches, cached prefixes, and other architectures than Llama's: without a guard around them."""

from __future__ import annotations

from collections.abc import Sequence
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

from guardrail.backends.causal_rows import Group, Question, Row, common_length, rows_for
from guardrail.backends.llama_batching import Piece, batch_cost, batch_end
from guardrail.backends.llama_forward import Forward, Prefix
from guardrail.backends.llama_packed import blocks_of
from guardrail.backends.llama_prefix import PrefixCache
from guardrail.backends.llama_runner import Runner

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


def small(config: Any = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config or LlamaConfig(**SMALL)).eval()


def assert_plain(model: Any, rows: Sequence[Row], answers: Sequence[Any]) -> None:
    """Each answer is what the model's own forward pass gives for the whole row."""
    for row, answer in zip(rows, answers, strict=True):
        assert isinstance(answer, dict)
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0]
        for read in row.reads:
            expected = logits[read.position, list(read.tokens)].tolist()
            assert answer[read.question] == pytest.approx(expected, abs=2e-5)


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
    begin = Prefix((0,) * prefix, ())
    pieces = [Piece(at, Row(at, (0,) * (prefix + length), ()), begin) for at, length in enumerate(sorted(lengths))]
    for pads in (True, False):
        start = 0
        while start < len(pieces):
            end = batch_end(pieces, start, budget, pads=pads)
            assert end == start + 1 or batch_cost(pieces[start:end], pads=pads) <= budget
            assert end == len(pieces) or batch_cost(pieces[start : end + 1], pads=pads) > budget
            start = end
    assert batch_cost(pieces, pads=False) == sum(lengths)
    assert batch_cost(pieces) == len(lengths) * (max(lengths) + prefix // 4)


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
    assert_plain(model, rows, runner.run([Group("key", tuple(starts), tuple(rows))]))
    assert len(runner.prefixes) == (name != "no attention")


# rows one behind the other


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(LENGTHS, st.integers(1, 30))
def test_blocks_hold_every_query_once_and_hide_all_but_its_own_rows_earlier_tokens(
    lengths: list[int], size: int
) -> None:
    owner = [row for row, length in enumerate(lengths) for _ in range(length)]
    blocks = list(blocks_of(lengths, size))
    assert [place for block in blocks for place in range(block.start, block.stop)] == list(range(sum(lengths)))
    for block in blocks:
        assert 0 < block.stop - block.start <= size
        for query in range(block.start, block.stop):
            seen = [
                block.first + at for at, hidden in enumerate(block.hidden[query - block.start].tolist()) if not hidden
            ]
            assert seen == [place for place in range(query + 1) if owner[place] == owner[query]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    ],
    ids=["grouped", "biases", "one group, wide heads, tied", "llama 3 positions"],
)  # fmt: skip
def test_packed_rows_get_what_padded_rows_get(settings: dict[str, Any], dtype: torch.dtype) -> None:
    model = small(LlamaConfig(**{**SMALL, "initializer_range": 0.1, **settings})).to(dtype)
    padded, packed = Forward(model, pack=False), Forward(model)
    assert padded.pads
    assert not packed.pads
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(1, 500, (count,), generator=generator).tolist() for count in (3, 90, 1, 40, 300, 7)]
    places = [(index, at) for index, row in enumerate(rows) for at in {0, len(row) // 2, len(row) - 1}]
    wanted = [5, 77, 400]
    policy = torch.randint(1, 500, (60,), generator=generator).tolist()
    tolerance = 2e-5 if dtype == torch.float32 else 0.08
    for prefix in (None, padded.prefix(policy)):
        plain = torch.tensor(padded.read(rows, [prefix] * len(rows), places, wanted))
        assert plain.abs().max() > 0.5
        torch.testing.assert_close(
            torch.tensor(packed.read(rows, [prefix] * len(rows), places, wanted)), plain, atol=tolerance, rtol=0
        )


@pytest.mark.parametrize("budget", [1, 60, 100, 4096])
@pytest.mark.parametrize("pack", [False, True], ids=["padded", "packed"])
def test_groups_get_what_they_get_alone(pack: bool, budget: int) -> None:
    """Groups with a long beginning of their own, with one too short to keep, and of rows that are forced apart."""
    model = small(LlamaConfig(**{**SMALL, "initializer_range": 0.1}))
    forward = Forward(model, pack=pack)
    runner = Runner(forward, budget, 2**20)
    read = forward.read
    beside: list[int] = []

    def counted(rows: Any, prefixes: Any, places: Any, tokens: Any) -> Any:
        beside.append(len({id(each) for each in prefixes}))
        return read(rows, prefixes, places, tokens)

    forward.read = counted  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(4)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, 500, (count,), generator=generator).tolist())

    questions = [Question((), (3, 77, 499)), Question((4, 5), (8, 9)), Question((4, 6), (1,))]
    groups = []
    for key, shared in (("a", 50), ("b", 4), ("c", 70), ("d", 40)):
        policy = some(shared)
        starts = tuple(policy + some(count) for count in (9, 2, 30))
        rows = [row for index, ids in enumerate(starts) for row in rows_for(index, ids, questions)]
        groups.append(Group(key, starts, tuple(rows)))
    found = runner.run(groups)
    assert max(beside) == (1 if budget == 1 or not pack else 2 if budget < 4096 else 4)
    assert_plain(model, [row for group in groups for row in group.rows], found)
    assert len(runner.prefixes) == 3


def test_weights_are_joined_without_a_second_copy() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Forward(model)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
