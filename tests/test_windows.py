"""Over-long conversations: nothing of the judged message is lost, and nothing is longer than the limit."""

from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from guardrail.errors import TemplateError, UsageError
from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Category, Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.types import Conversation, Message, Role, is_blank
from guardrail.windows import Windows, fit
from tests.strategies import conversations, hostile_texts, texts
from tests.test_prompting_chat import CHAT_3

TINY = Taxonomy("tiny", "Tiny", (Category("S1", "Violent Crimes"), Category("S2", "Hate")))
BUILDERS = {name: PromptBuilder(Template.load(name), TINY) for name in ("encoder", "llama-guard-3")}
BUILDERS["chat"] = PromptBuilder(Template.from_chat_template(CHAT_3, "llama-guard-3"))
# Room for about 100 tokens of conversation beside each format.
LIMITS = {"encoder": 110, "llama-guard-3": 620, "chat": 650}


@cache
def by_bytes(name: str) -> TextTokenizer:
    """One token per byte, with a few merges so that text around a cut is encoded in another way."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)}
    merges = [("o", "r"), ("Ġ", "w"), ("Ġw", "or"), ("a", "a"), ("aa", "aa")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(BUILDERS[name].template.control))
    return TextTokenizer.from_json(tokenizer.to_str())


def fitted(name: str, conversation: Conversation, limit: int | None = None, max_windows: int = 10_000) -> Windows:
    limit = LIMITS[name] if limit is None else limit
    return fit(conversation, limit, BUILDERS[name], by_bytes(name), max_windows=max_windows)


def length(name: str, conversation: Conversation) -> int:
    return len(by_bytes(name).encode(BUILDERS[name].build(conversation)))


LONG = st.one_of(
    texts(),
    hostile_texts(),
    st.tuples(st.one_of(texts(), hostile_texts()), st.integers(1, 60)).map(lambda pair: pair[0] * pair[1]),
    st.tuples(texts(), st.integers(0, 400), texts()).map(lambda three: three[0] + " " * three[1] + three[2]),
)


@pytest.mark.parametrize("name", BUILDERS)
@settings(deadline=None)
@given(data=st.data())
def test_every_character_of_the_judged_message_is_in_a_window(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(LONG, alternating=name == "chat", max_turns=4))
    windows = fitted(name, conversation)
    assert all(length(name, window) <= LIMITS[name] for window in windows.conversations)
    assert all(window.role is conversation.role for window in windows.conversations)
    text, covered = conversation.judged.text, 0
    for window in windows.conversations:
        piece = window.judged.text
        rest = text[covered:]
        blank = next((index for index, char in enumerate(rest) if not is_blank(char)), len(rest))
        at = text.rfind(piece, 0, covered + len(piece) + blank)
        assert at >= 0
        assert is_blank(text[covered:at])
        covered = max(covered, at + len(piece))
    assert is_blank(text[covered:])
    assert windows.truncated == (windows.conversations[0].messages[:-1] != conversation.messages[:-1])


@pytest.mark.parametrize("name", BUILDERS)
@settings(deadline=None)
@given(data=st.data())
def test_what_fits_is_unchanged(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(LONG, alternating=name == "chat", max_turns=4))
    tokens = length(name, conversation)
    whole = fitted(name, conversation, tokens)
    assert whole == Windows((conversation,), truncated=False)
    assert whole.conversations[0] is conversation
    assert fitted(name, conversation, 10_000_000).conversations[0] is conversation


@settings(deadline=None)
@given(conversation=conversations(LONG, max_turns=4), most=st.integers(1, 4))
def test_no_more_windows_than_asked_for_and_the_end_is_kept(conversation: Conversation, most: int) -> None:
    every, some = fitted("encoder", conversation), fitted("encoder", conversation, max_windows=most)
    assert len(some.conversations) == min(most, len(every.conversations))
    assert all(length("encoder", window) <= LIMITS["encoder"] for window in some.conversations)
    if len(every.conversations) > most:
        assert some.truncated
        assert conversation.judged.text.rstrip().endswith(some.conversations[-1].judged.text.rstrip())
        assert some.conversations[: most - 1] == every.conversations[: most - 1]


def turns(*texts: str) -> Conversation:
    """Turns that alternate; the last one is the assistant's."""
    roles = [Role.ASSISTANT if turn % 2 == 0 else Role.USER for turn in range(len(texts))][::-1]
    return Conversation(tuple(Message(role, text) for role, text in zip(roles, texts, strict=True)))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_newest_turns_are_kept(name: str) -> None:
    windows = fitted(name, turns("old " * 300, "older answer", "question", "the answer"))
    (window,) = windows.conversations
    assert windows.truncated
    assert [message.text for message in window.messages[-2:]] == ["question", "the answer"]
    assert len(window.messages) < 4 or window.messages[0].text.strip() != ("old " * 300).strip()


def test_of_a_long_question_the_end_is_kept_beside_a_long_answer() -> None:
    windows = fitted("encoder", turns("first " * 100 + "last", "the answer " * 60), 200)
    assert windows.truncated
    assert len(windows.conversations) > 2
    for window in windows.conversations:
        assert len(window.messages) == 2
        assert window.messages[0].text.endswith("last")


def test_neighbouring_windows_overlap() -> None:
    text = " ".join(str(number) for number in range(200))
    windows = fitted("encoder", Conversation((Message(Role.USER, text),))).conversations
    ends = [text.index(window.judged.text) + len(window.judged.text) for window in windows]
    starts = [text.index(window.judged.text) for window in windows]
    assert all(end - start >= 5 for end, start in zip(ends, starts[1:], strict=False))


def test_an_answer_keeps_a_question_where_the_format_needs_one() -> None:
    windows = fitted("chat", turns("question " * 200, "the answer " * 300))
    assert all([m.role for m in window.messages] == [Role.USER, Role.ASSISTANT] for window in windows.conversations)
    windows = fitted("chat", turns("q", "a", "q " * 300, "the answer"))
    assert [m.role for m in windows.conversations[0].messages] == [Role.USER, Role.ASSISTANT]


def test_a_policy_without_room_beside_it_is_an_error() -> None:
    with pytest.raises(TemplateError, match="takes 9 tokens without the conversation, of 20"):
        fitted("encoder", Conversation((Message(Role.USER, "word " * 50),)), limit=20)
    with pytest.raises(UsageError, match="max_windows is 0"):
        fitted("encoder", turns("x"), max_windows=0)


def test_a_megabyte_and_ten_thousand_turns_take_reasonable_time() -> None:
    start = time.perf_counter()
    windows = fitted("encoder", Conversation((Message(Role.USER, "word " * 200_000),)), 512, 32)
    assert len(windows.conversations) == 32
    assert windows.truncated
    many = fitted("encoder", turns(*(f"turn {turn}" for turn in range(10_000))), 512, 32)
    assert many.truncated
    assert len(many.conversations) == 1
    assert many.conversations[0].messages[-1].text == "turn 9999"
    assert fitted("encoder", turns("word " * 200_000, "fine"), 512, 32).truncated
    assert time.perf_counter() - start < 30
