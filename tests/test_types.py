"""Reading what callers pass, and the shape of a decision."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import ConversationError
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


def test_an_assistant_turn_without_content_is_context_like_any_other() -> None:
    user: list[Any] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    turns = [user[0], {"role": "assistant", "content": None}, user[1]]
    assert [message.text for message in Conversation.parse(turns).messages] == ["a", "", "b"]


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
