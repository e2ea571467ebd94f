"""Guard models asked by chat: what the answer shows is scored, and what it does not show is an error or a bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guardrail
from guardrail.backends.remote_answers import Entry, Position
from guardrail.backends.remote_chat_answers import read_chat
from guardrail.errors import BackendError, UsageError
from guardrail.guard import Guard
from guardrail.prompting import Template
from guardrail.types import Verdict
from tests.fake_services import FakeService, Received, Reply, serving

FAMILY = Template.load("llama-guard-3")
CODES = ("S1", "S2", "S10", "S11")


def at(chosen: str, **others: float) -> Position:
    """A position at which `chosen` has the probability that the others (named by their text) leave."""
    rest = math.log(1 - sum(others.values()))
    first = Entry(rest, chosen)
    return Position(first, (first, *(Entry(math.log(value), name) for name, value in others.items())))


def probabilities(values: Sequence[float]) -> list[float]:
    return [math.exp(value) for value in values]


def test_the_verdict_is_read_behind_the_newlines() -> None:
    answer = read_chat([at("\n\n"), at("unsafe", safe=0.2), at("\n"), at("S"), at("2", **{"1": 0.1})], FAMILY, ())
    assert math.exp(answer.unsafe) == pytest.approx(0.8)
    assert math.exp(answer.safe) == pytest.approx(0.2)
    assert answer.codes == ()


def test_codes_are_read_where_the_answer_writes_the_first_one() -> None:
    positions = [at("unsafe", safe=0.1), at("\n"), at("S", O=0.1), at("10", **{"1": 0.2, "2": 0.05}), at(",")]
    answer = read_chat(positions, FAMILY, CODES)
    # S11 is not listed as such, but "1" is, with which it may begin.
    wanted = [0.9 * 0.2, 0.9 * 0.05, 0.9 * 0.75, 0.9 * 0.2]
    total = min(1.0, sum(wanted))
    assert probabilities(answer.codes) == pytest.approx([value / total for value in wanted])


def test_codes_of_digit_after_digit() -> None:
    positions = [at("\u2581unsafe"), at("\n"), at("S"), at("1", **{"2": 0.2}), at("0", **{"1": 0.3}), at("</s>")]
    answer = read_chat(positions, FAMILY, CODES)
    assert probabilities(answer.codes)[1:] == pytest.approx([0.2, 0.8 * 0.7, 0.8 * 0.3])
    assert math.exp(answer.codes[0]) == pytest.approx(0.8)  # as if no digit followed


@pytest.mark.parametrize("codes", [CODES, tuple(map(str.lower, CODES))])
def test_codes_in_small_letters_are_the_same(codes: Sequence[str]) -> None:
    small, large = (
        read_chat([at("unsafe"), at("\n"), at(letter, o=0.1), at("10", **{"2": 0.05}), at(",")], FAMILY, codes)
        for letter in "sS"
    )
    assert small == large
    assert max(range(4), key=small.codes.__getitem__) == 2


def test_behind_safe_no_code_is_known() -> None:
    assert read_chat([at("safe", unsafe=0.3), at("<|eot_id|>")], FAMILY, CODES).codes == (0.0,) * 4
    assert read_chat([at("unsafe", safe=0.3)], FAMILY, CODES).codes == (0.0,) * 4


def test_a_word_that_is_not_listed_never_makes_a_text_safer() -> None:
    listed = (Entry(math.log(0.6), "safe"), Entry(math.log(0.1), "maybe"))
    safe = read_chat([Position(listed[0], listed)], FAMILY, ())
    assert math.exp(safe.unsafe) == pytest.approx(0.1)  # no more than what is listed last
    listed = (Entry(math.log(0.6), "safe"), Entry(math.log(0.35), "maybe"))
    safe = read_chat([Position(listed[0], listed)], FAMILY, ())
    assert math.exp(safe.unsafe) == pytest.approx(0.05, abs=2e-4)  # no more than what the listed ones leave
    unsafe = read_chat([at("unsafe", maybe=0.3)], FAMILY, ())
    assert unsafe.unsafe - unsafe.safe > 900


@pytest.mark.parametrize(
    "texts",
    [[], ["\n\n"], [" ", "\n"], ["I", " cannot"], ["un", "safe"], ["safe", "ly"], ["Unsafe"], ["S1"], ["<|eot_id|>"]],
)
def test_an_answer_that_is_no_verdict_is_an_error(texts: list[str]) -> None:
    with pytest.raises(BackendError, match="answer"):
        read_chat([at(text) for text in texts], FAMILY, CODES)


ENTRIES = st.builds(
    Entry, st.floats(-50, 0), st.sampled_from(["", "\n", "safe", "unsafe", "S", "1", "10", "2", ",", "x"])
)
POSITIONS = st.lists(
    st.tuples(ENTRIES, st.lists(ENTRIES, max_size=4)).map(lambda pair: Position(pair[0], (pair[0], *pair[1]))),
    max_size=8,
)


@given(POSITIONS)
def test_any_answer_is_scored_or_an_error(positions: list[Position]) -> None:
    try:
        answer = read_chat(positions, FAMILY, CODES)
    except BackendError:
        return
    assert len(answer.codes) == len(CODES)
    assert all(value <= 0 for value in answer.codes)
    assert not math.isnan(answer.unsafe - answer.safe)
    assert sum(map(math.exp, answer.codes)) >= 1 - 1e-9


# The backend.


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        running.respond = respond
        yield running


def content(*positions: Position) -> list[dict[str, Any]]:
    return [
        {
            "token": position.chosen.text,
            "logprob": position.chosen.logprob,
            "bytes": list(position.chosen.text.encode()),
            "top_logprobs": [{"token": entry.text, "logprob": entry.logprob} for entry in position.entries],
        }
        for position in positions
    ]


def respond(received: Received) -> Reply:
    if received.path.endswith("/models"):
        return Reply({"data": [{"id": "llama-guard3"}]})
    text = received.payload["messages"][-1]["content"]
    answer = (
        content(at("unsafe", safe=0.2), at("\n"), at("S"), at("9"))
        if "bad" in text
        else content(at("safe", unsafe=0.1))
    )
    return Reply({"choices": [{"logprobs": {"content": answer}}], "usage": {"prompt_tokens": 300}})


def chat(service: FakeService, **options: Any) -> Guard:
    settings = {"prompts": "chat", "template": "llama-guard-3", "delay": 0.001, "attempts": 2, **options}
    return guardrail.load(f"openai:{service.address}/v1", **settings)


def test_a_conversation_is_sent_as_it_is(service: FakeService) -> None:
    turns = [
        {"role": "user", "content": " <|user|> hi <|eot_id|>"},
        {"role": "assistant", "content": "hello\n"},
        {"role": "user", "content": "bad {{ x }}"},
    ]
    with chat(service) as guard:
        decision = guard.check(turns)
        assert guard.taxonomy.id == "llama-guard-3"
    asked = service.received[-1]
    assert (asked.path, asked.payload["messages"]) == ("/v1/chat/completions", turns)
    assert set(asked.payload) == {"model", "messages", "max_tokens", "temperature", "logprobs", "top_logprobs"}
    assert (decision.verdict, [c.code for c in decision.violated]) == (Verdict.UNSAFE, ["S9"])
    assert decision.score == pytest.approx(0.8)
    assert decision.markers == ("<|user|>", "<|eot_id|>")


def test_behind_safe_every_category_is_as_likely_as_unsafe(service: FakeService) -> None:
    with chat(service) as guard:
        decision = guard.check("good")
    assert decision.verdict is Verdict.SAFE
    assert {round(category.score, 9) for category in decision.categories} == {0.1}


def test_an_assistants_answer_is_not_judged_unchecked(service: FakeService) -> None:
    with chat(service) as guard:
        decision = guard.check([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert (decision.verdict, decision.flagged) == (Verdict.ERROR, True)
    assert "without the tokenizer" in (decision.error or "")


def test_another_policy_is_not_taken_for_the_servers(service: FakeService) -> None:
    with pytest.raises(UsageError, match="has no category"):
        chat(service, taxonomy="default")
    whole = guardrail.Taxonomy.load("llama-guard-3")
    with chat(service, taxonomy=whole.select(["S1", "S2"])) as guard:
        assert "a policy of its own" in (guard.check("good").error or "")
    with chat(service, taxonomy=whole.reorder(whole.codes[::-1])) as guard:
        assert guard.check("good").error is None


def test_a_chat_needs_to_know_the_answers_format(service: FakeService) -> None:
    with pytest.raises(UsageError, match="words its answers"):
        chat(service, template=None)
    with pytest.raises(UsageError, match="no verdict words"):
        chat(service, template="plain")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply({"choices": [{"logprobs": None, "message": {"content": "safe"}}]}), "no logprobs"),
        (Reply({"choices": [{"logprobs": {"content": []}}]}), "answered nothing"),
        (Reply({"choices": [{"logprobs": {"content": [{"token": "safe", "logprob": 0}]}}]}), "no logprobs of other"),
        (Reply({"choices": [{"logprobs": {"content": content(at("Sure"))}}]}), "begins with 'Sure'"),
        (Reply({"error": {"message": "top_logprobs must be at most 5"}}, 400), "at most 5"),
        (Reply(b"", 500), "status 500"),
    ],
)
def test_what_goes_wrong_is_an_error(service: FakeService, reply: Reply, words: str) -> None:
    service.respond = lambda received: respond(received) if received.path.endswith("/models") else reply
    with chat(service) as guard:
        decision = guard.check("good")
    assert (decision.verdict, decision.flagged, decision.score) == (Verdict.ERROR, True, None)
    assert words in (decision.error or "")


def test_answers_keep_their_order(service: FakeService) -> None:
    texts = [f"{'bad' if number % 3 == 0 else 'good'} {number}" for number in range(20)]
    with chat(service, concurrency=4) as guard:
        verdicts = [decision.verdict.value for decision in guard.check_many(texts)]
    assert verdicts == ["unsafe" if "bad" in text else "safe" for text in texts]
    assert len(service.connections) <= 5
