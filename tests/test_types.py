"""Reading what callers pass, and the shape of a decision."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import ConversationError
from guardrail.hidden import spelled_out
from guardrail.types import CategoryScore, Conversation, Decision, Message, Role, Verdict, is_blank


def test_a_string_is_a_user_prompt() -> None:
    assert Conversation.parse("hello").messages == (Message(Role.USER, "hello"),)


def test_the_last_message_is_judged() -> None:
    conversation = Conversation.parse(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
    )
    assert conversation.role is Role.ASSISTANT
    assert conversation.judged.text == "hello"


def test_system_developer_and_tool_messages_are_left_out() -> None:
    conversation = Conversation.parse(
        [
            {"role": "system", "content": "be kind"},
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "tool", "content": "{}"},
            {"role": "function", "content": "{}"},
            {"role": "agent", "content": "hello"},
        ]
    )
    assert [message.text for message in conversation.messages] == ["hi", "hello"]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert Conversation.parse([{"role": "user", "content": parts}]).judged.text == "a\nb"


def test_an_empty_turn_is_context_like_any_other() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "b"}]
    assert [message.text for message in Conversation.parse(turns).messages] == ["a", "", "b"]


SEND = {"id": "1", "type": "function", "function": {"name": "send", "arguments": '{"to": "you"}'}}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "Now.", "tool_calls": [SEND, SEND]}, 'Now.\n{"to": "you"}\n{"to": "you"}'),
        ({"content": None, "tool_calls": [SEND], "function_call": None}, '{"to": "you"}'),
        ({"tool_calls": [SEND]}, '{"to": "you"}'),
        ({"content": None, "function_call": SEND["function"], "tool_calls": None}, '{"to": "you"}'),
        ({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": ["é"]}}}]}, '{"a": ["é"]}'),
        ({"content": None, "tool_calls": [{"type": "custom", "custom": {"name": "run", "input": "ls"}}]}, "ls"),
        ({"content": None, "function_call": {"name": "I hate you", "arguments": "{}"}}, "I hate you\n{}"),
        ({"content": None, "refusal": "I cannot do that."}, "I cannot do that."),
    ],
)
def test_what_a_message_calls_is_part_of_its_text(message: dict[str, Any], text: str) -> None:
    assert Conversation.parse([{"role": "assistant", **message}]).judged.text == text


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ("", None, "empty"),
        (" \n\t", None, "empty"),
        ([], "messages", "no message"),
        (7, None, "got int"),
        (b"bytes", None, "got bytes"),
        (["text"], "messages[0]", "got str"),
        ([{"role": "usr", "content": "x"}], "messages[0].role", "unknown role 'usr'"),
        ([{"content": "x"}], "messages[0].role", "unknown role None"),
        ([{"role": "user", "text": "x"}], "messages[0].content", "missing"),
        ([{"role": "user", "text": "x"}, {"role": "assistant", "content": "y"}], "messages[0].content", "missing"),
        ([{"role": "user", "content": None}], "messages[0].content", "missing"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "messages[0].content", "missing"),
        ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls", "got str"),
        ([{"role": "assistant", "tool_calls": ["x"]}], "messages[0].tool_calls[0]", "got str"),
        ([{"role": "assistant", "tool_calls": [{"name": "f"}]}], "messages[0].tool_calls[0].function", "missing"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
            "messages[0].tool_calls[0].function.arguments",
            "missing",
        ),
        ([{"role": "assistant", "function_call": "x"}], "messages[0].function_call", "got str"),
        ([{"role": "user", "content": 3}], "messages[0].content", "got int"),
        ([{"role": "user", "content": [3]}], "messages[0].content[0]", "got int"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "got NoneType"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0]",
            "'image_url' cannot be judged",
        ),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}], "messages[1].role", "not judged"),
        ([{"role": "system", "content": "x"}], "messages[0].role", "not judged"),
    ],
)
def test_what_cannot_be_judged_is_an_error_that_names_the_field(value: Any, field: str | None, words: str) -> None:
    with pytest.raises(ConversationError) as caught:
        Conversation.parse(value)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(min_size=1)), min_size=1))
def test_texts_and_roles_are_kept_as_they_are(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    if is_blank(turns[-1][1]):
        with pytest.raises(ConversationError):
            Conversation.parse(messages)
        return
    parsed = Conversation.parse(messages)
    assert [(str(message.role), message.text) for message in parsed.messages] == turns


def test_a_decision_is_plain_json() -> None:
    category = CategoryScore("G1", "Violent Crimes", 0.9, True)
    decision = Decision(Verdict.UNSAFE, True, 0.9, (category,), Role.USER, "m@1", "t@2", "p@3", markers=("[INST]",))
    assert json.loads(json.dumps(decision.to_dict())) == {
        "verdict": "unsafe",
        "flagged": True,
        "score": 0.9,
        "categories": [{"code": "G1", "name": "Violent Crimes", "score": 0.9, "flagged": True}],
        "role": "user",
        "model": "m@1",
        "taxonomy": "t@2",
        "template": "p@3",
        "truncated": False,
        "markers": ["[INST]"],
        "error": None,
    }


def test_violated_categories_come_highest_first() -> None:
    rows = [("a", 0.6, True), ("b", 0.2, False), ("c", 0.8, True)]
    scores = tuple(CategoryScore(code, code, score, flagged) for code, score, flagged in rows)
    decision = Decision(Verdict.UNSAFE, True, 0.9, scores, Role.USER, "m", "t", "p")
    assert [category.code for category in decision.violated] == ["c", "a"]


ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


def tags(text: str) -> str:
    """The text in tag characters, which nobody sees."""
    return "".join(chr(0xE0000 + ord(char)) for char in text)


def test_tag_characters_are_the_letters_that_they_spell() -> None:
    every = "".join(map(chr, range(0x20, 0x7F)))
    assert spelled_out(f"a{tags(every)}b") == f"a{every}b"
    assert spelled_out(f"\U000e0001{tags('en')} hi\U000e007f") == "en hi"
    assert spelled_out(f"{ENGLAND}{tags('go')}") == f"{ENGLAND}go"
    for no_flag in (f"\U0001f3f4{tags('gbeng')}", f"\U0001f3f4{tags('england')}\U000e007f", f"x{ENGLAND[1:]}"):
        assert spelled_out(no_flag)[1:] in ("gbeng", "england")


DISCS, SQUARES = ("".join(chr(first + at) for at in range(26)) for first in (0x1F150, 0x1F170))


def test_letters_on_black_are_letters() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert spelled_out(f"{DISCS}, {SQUARES}?") == f"{alphabet}, {alphabet}?"
    # NFKC, which the model's own tokenizer applies, knows the others.
    assert unicodedata.normalize("NFKC", "🄷Ⓐ𝐇") == "HAH"


SPELLINGS = [ENGLAND, *SQUARES[:3], DISCS[-1], "\U0001f3f4", "\U000e0001", "\U000e007f", "é", " "]
TAGGED = st.lists(
    st.sampled_from(SPELLINGS) | st.text(max_size=5)
    | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8).map(tags)
).map("".join)  # fmt: skip


@given(TAGGED)
def test_spelling_out_leaves_nothing_to_spell_out(text: str) -> None:
    once = spelled_out(text)
    assert spelled_out(once) == once
    assert is_blank(text) == is_blank(once)


PLAIN = st.characters(exclude_categories=["Cs"], exclude_characters=DISCS + SQUARES)


@given(st.text(PLAIN.filter(lambda char: not 0xE0000 <= ord(char) <= 0xE007F)))
def test_a_text_without_such_characters_is_not_changed(text: str) -> None:
    assert spelled_out(text) == text


def test_hidden_letters_are_not_blank() -> None:
    assert not any(is_blank(tags(chr(code))) for code in range(0x21, 0x7F))
    assert Conversation.parse(tags("kill")).judged.text == tags("kill")
    for blank in (tags(" "), "\U000e0001", "\U000e007f", "\u200b\ufeff"):
        assert is_blank(blank)


def test_a_conversation_is_spelled_out_in_all_of_its_turns() -> None:
    conversation = Conversation.parse([{"role": "user", "content": tags("a")}, {"role": "assistant", "content": "b"}])
    assert [message.text for message in conversation.spelled_out().messages] == ["a", "b"]
    plain = Conversation.parse("é")
    assert plain.spelled_out() is plain
