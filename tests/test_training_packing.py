"""Tree packing: every token is computed as in its own row, and every prompt has the tokens of inference."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.training.answers import Answer, Step
from guardrail.training.packing import Branch, collate, log_likelihoods, pack
from guardrail.training.prompt_ids import Encoding, PromptIds
from guardrail.types import Conversation, Message, Role
from tests.checkpoints import FAMILIES, TOKENIZERS, chat_template, tokenizer_of
from tests.strategies import HOSTILE, conversations, hostile_texts
from tests.training_material import whole_square

TOKENS = st.integers(1, 5)
ANSWERS = st.builds(
    Answer,
    st.lists(
        st.builds(
            Step,
            st.lists(st.integers(0, 49), min_size=1, max_size=3, unique=True).map(tuple),
            st.booleans(),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    st.floats(0.1, 1),
)
BRANCHES = st.builds(
    Branch,
    st.lists(TOKENS, min_size=1, max_size=12).map(tuple),
    st.lists(ANSWERS, min_size=1, max_size=3).map(tuple),
    st.floats(0.1, 4),
)
TREES = st.lists(BRANCHES, min_size=1, max_size=8)
VERDICT = torch.tensor([3, 4])


@lru_cache(maxsize=1)
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def run(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model()(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=whole_square(batch["ends"]),
            logits_to_keep=batch["keep"],
            use_cache=False,
        ).logits
    return logits


def learnt(trees: list[list[Branch]]) -> list[tuple[Branch, Answer, int]]:
    return [
        (branch, answer, at)
        for branches in trees
        for branch in branches
        for answer in branch.answers
        for at, step in enumerate(answer.steps)
        if step.learnt
    ]


@settings(max_examples=30)
@given(trees=st.lists(TREES, min_size=1, max_size=3))
def test_the_logits_of_every_answers_token_are_those_of_its_own_row(trees: list[list[Branch]]) -> None:
    packs = [pack(branches) for branches in trees]
    batch = collate(packs)
    logits = run(batch).flatten(0, 1)[batch["picks"]]
    expected = learnt(trees)
    assert len(logits) == len(expected) == sum(len(one.picks) for one in packs)
    for line, (branch, answer, at) in zip(logits, expected, strict=True):
        row = torch.tensor([[*branch.ids, *answer.ids[:at]]])
        with torch.no_grad():
            plain = model()(row).logits[0, -1]
        torch.testing.assert_close(line, plain, atol=1e-4, rtol=0)


@settings(max_examples=30)
@given(trees=st.lists(TREES, min_size=1, max_size=3), weight=st.floats(0.5, 3))
def test_the_loss_is_that_of_the_rows(trees: list[list[Branch]], weight: float) -> None:
    batch = collate([pack(branches) for branches in trees], weight)
    found = log_likelihoods(run(batch), batch, VERDICT)
    for value, given_weight, (branch, answer, at) in zip(found, batch["weights"], learnt(trees), strict=True):
        step = answer.steps[at]
        with torch.no_grad():
            plain = model()(torch.tensor([[*branch.ids, *answer.ids[:at]]])).logits[0, -1]
        plain = plain - (plain[VERDICT] if step.closed else plain).logsumexp(0)
        right = plain[step.targets[0]]
        if len(step.targets) > 1:
            right = 0.85 * right + 0.15 * plain[list(step.targets[1:])].logsumexp(0)
        torch.testing.assert_close(value, right, atol=2e-4, rtol=0)
        expected = branch.weight * answer.weight * (weight if step.verdict else 1)
        assert float(given_weight) == pytest.approx(expected, rel=1e-5)


PREFIX, VERDICTS = Step((7,)), (Step((3,), verdict=True), Step((4,), verdict=True))


@settings(max_examples=30)
@given(
    trees=st.lists(
        st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=12), st.booleans()), min_size=1, max_size=8),
        min_size=1,
        max_size=3,
    )
)
def test_vectors_go_with_the_states_that_verdicts_are_read_from(trees: list[list[tuple[list[int], bool]]]) -> None:
    told = Answer((PREFIX, Step((8,)), VERDICTS[0]), 0.5)
    vectors = iter(np.arange(1000, dtype=np.float32).reshape(-1, 2))
    packs = [
        [
            Branch(
                tuple(ids), (told, *(Answer((PREFIX, each)) for each in VERDICTS)), 1.0, next(vectors) if led else None
            )
            for ids, led in tree
        ]
        for tree in trees
    ]
    batch = collate([pack(branches) for branches in packs])
    led = [branch for branches in packs for branch in branches if branch.vector is not None]
    assert ("vectors" in batch) == bool(led)
    if not led:
        return
    with torch.no_grad():
        states = model()(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=whole_square(batch["ends"]),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states[-1]
        kept = states.take_along_dim(batch["keep"][..., None], dim=1).flatten(0, 1)[batch["vector_picks"]]
        for branch, state, vector in zip(led, kept, batch["vectors"], strict=True):
            assert branch.vector is not None
            assert vector.tolist() == branch.vector.tolist()
            plain = model().model(torch.tensor([[*branch.ids, 7]])).last_hidden_state[0, -1]
            torch.testing.assert_close(state, plain, atol=1e-4, rtol=0)


@given(branches=TREES)
def test_each_token_is_in_the_tree_once_and_sees_its_ancestors(branches: list[Branch]) -> None:
    one = pack(branches)
    paths = {branch.ids + answer.ids[:-1] for branch in branches for answer in branch.answers}
    nodes = {path[:end] for path in paths for end in range(1, len(path) + 1)}
    assert len(one) == len(nodes)
    seen = (whole_square(torch.from_numpy(one.ends)[None])[0, 0] == 0).tolist()
    ways = [tuple(int(one.ids[at]) for at, sees in enumerate(row) if sees) for row in seen]
    assert set(ways) == nodes
    assert [len(way) - 1 for way in ways] == one.depths.tolist()
    assert len(one) <= sum(branch.size for branch in branches)
    assert one.rows == len(branches)


def test_gradients_are_finite_with_and_without_other_right_tokens() -> None:
    steps = (Step((7, 8, 9)), Step((3,), closed=True), Step((5,)))
    batch = collate([pack([Branch((1, 2), (Answer(steps),))]), pack([Branch((1,), (Answer(steps[2:]),))])])
    copy = model()
    copy.zero_grad()
    logits = copy(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=whole_square(batch["ends"]),
        logits_to_keep=batch["keep"],
    ).logits
    loss: Any = -log_likelihoods(logits, batch, VERDICT).sum()
    loss.backward()
    assert all(bool(value.grad.isfinite().all()) for value in copy.parameters())


def test_a_uniform_model_gains_most_with_a_small_part_for_unknown_categories() -> None:
    batch = collate([pack([Branch((1,), (Answer((Step((0, 1, 2)),)),))])])

    def value(others: float) -> float:
        p = torch.tensor([1 - others, others / 3, others * 2 / 3, 1e-9])
        logits = p.log().expand(1, batch["keep"].shape[1], 4)
        return float(log_likelihoods(logits, batch, VERDICT[:1])[0])

    assert value(0.15) > max(value(0.05), value(0.3))


# the tokens of prompts


@lru_cache(maxsize=3)
def text_tokenizer(kind: str, tokenizers: Path) -> TextTokenizer:
    family = next(family for family in FAMILIES if TOKENIZERS[family] == kind)
    return TextTokenizer.from_transformers(tokenizer_of(family, tokenizers))


@cache
def setup(family: str, taxonomy: str, tokenizers: Path) -> tuple[PromptBuilder, Encoding]:
    tokenizer = text_tokenizer(TOKENIZERS[family], tokenizers)
    return PromptBuilder(Template.load(family), Taxonomy.load(taxonomy)), Encoding(tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(conversation=st.one_of(conversations(), conversations(hostile_texts())))
def test_training_prompts_have_the_ids_of_inference(
    family: str, conversation: Conversation, tokenizer_files: Path
) -> None:
    builder, encoding = setup(family, "llama-guard-3-1b", tokenizer_files)
    ids = PromptIds(builder, encoding)
    expected = tuple(encoding.tokenizer.encode(builder.build(conversation)))
    assert ids(conversation) == expected
    assert ids(conversation) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_policy_is_encoded_once(family: str, tokenizer_files: Path) -> None:
    builder, encoding = setup(family, "llama-guard-3", tokenizer_files)
    ids = PromptIds(builder, encoding)
    for text in ("a", "b", "c"):
        ids(Conversation.parse(text))
    assert encoding.cuttable[Role.USER, Role.USER]
    with patch.object(encoding.tokenizer, "encode_text", wraps=encoding.tokenizer.encode_text) as encode:
        ids(Conversation.parse("d"))
    assert encode.call_count
    assert max(len(call.args[0]) for call in encode.call_args_list) < 40


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_own_chat_templates_too(family: str, tokenizer_files: Path) -> None:
    tokenizer = text_tokenizer(TOKENIZERS[family], tokenizer_files)
    source = chat_template(family, {"S1": "Violence", "S2": "Hate"})
    builder = PromptBuilder(Template.from_chat_template(source, family))
    ids = PromptIds(builder, Encoding(tokenizer))
    for text in (*HOSTILE, "hello", " \n x \n", "x\n\ny"):
        if not text.strip("\u200b\u200d\ufeff\x00 \n"):
            continue
        for turns in ((text,), (text, text), (text, "ok", text)):
            messages = tuple(Message(list(Role)[at % 2], turn) for at, turn in enumerate(turns))
            conversation = Conversation(messages)
            assert ids(conversation) == tuple(tokenizer.encode(builder.build(conversation)))
