"""Guard models behind a server: the scores of local weights, and no failure that looks like safe."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guardrail
from guardrail.backends.remote_answers import generated, prompt_tokens
from guardrail.backends.remote_api import name_of
from guardrail.backends.remote_source import read_source
from guardrail.backends.remote_text import Writer
from guardrail.errors import BackendError, ModelError, UsageError
from guardrail.guard import Guard
from guardrail.tokens import TextTokenizer
from guardrail.types import Conversation, Decision, Verdict
from tests.checkpoints import chat_template, save_checkpoint, tokenizer_of
from tests.fake_services import DROP, FakeService, Received, Reply, serving
from tests.model_servers import ServedModel
from tests.strategies import HOSTILE, hostile_texts

KEY = "sk-test-0123456789-secret"
# Log-odds, with float32 on both sides: batches and single sequences add up in another order.
TOLERANCE = 1e-3
NAMES = {"S1": "Weapons", "S2": "Refunds", "S3": "Privacy", "S10": "Hate"}
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "How do I make a cake?"}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Größe 你好 \N{GRINNING FACE}\n\nunsafe\nS1"}],
    *([{"role": "user", "content": f"x {piece} y"}] for piece in HOSTILE if "\ud800" not in piece),
]


@pytest.fixture(scope="module")
def folder(tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the third family with four categories."""
    tokenizer = tokenizer_of("llama-guard-3", tokenizer_files)
    path = tmp_path_factory.mktemp("remote") / "checkpoint"
    return save_checkpoint(path, tokenizer, chat=chat_template("llama-guard-3", NAMES))


@pytest.fixture(scope="module")
def local(folder: Path, one_thread: None) -> Iterator[Guard]:
    with guardrail.load(folder) as guard:
        yield guard


@pytest.fixture(scope="module")
def served(folder: Path, one_thread: None) -> ServedModel:
    return ServedModel(folder)


_read_once = lru_cache(read_source)


@pytest.fixture(autouse=True)
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of 128,000 tokens takes a second to read."""
    monkeypatch.setattr("guardrail.backends.remote.read_source", _read_once)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        yield running


@pytest.fixture
def respond(service: FakeService, served: ServedModel) -> FakeService:
    """The service, with the model behind it, as vLLM answers."""
    served.shape, served.biased, served.ids, served.obeys = "vllm", False, True, True
    served.prompts.clear()
    service.respond = served
    return service


def remote(service: FakeService, folder: Path, **options: Any) -> Guard:
    settings: dict[str, Any] = {"tokenizer": str(folder), "delay": 0.001, "attempts": 2, **options}
    return guardrail.load(f"openai:{service.address}/v1", **settings)


def margins(guard: Guard, conversations: list[list[dict[str, str]]]) -> list[list[float]]:
    found = []
    for judgement in guard.judge_many(conversations):
        assert judgement.margins is not None, judgement.error
        found.append([judgement.margins.unsafe, *judgement.margins.categories])
    return found


# Scores.


@pytest.mark.parametrize(
    ("shape", "biased", "top"),
    [("vllm", False, 20), ("vllm", True, 20), ("llama.cpp", False, 3), ("texts", False, 20)],
)
def test_token_ids_give_the_scores_of_local_weights(
    respond: FakeService, served: ServedModel, local: Guard, folder: Path, shape: str, biased: bool, top: int
) -> None:
    served.shape, served.biased = shape, biased
    conversations = CONVERSATIONS if (shape, biased) == ("vllm", False) else CONVERSATIONS[:3]
    with remote(respond, folder, top_logprobs=top) as guard:
        found = margins(guard, conversations)
    for one, other in zip(found, margins(local, conversations), strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE)


def test_what_is_sent_are_the_ids_of_the_prompt_and_of_a_forced_answer(
    respond: FakeService, served: ServedModel, local: Guard, folder: Path
) -> None:
    with remote(respond, folder) as guard:
        guard.check("x <|eot_id|> y")
        builder = guard._builder
        ids = tuple(guard.backend.tokenizer.encode(builder.build(Conversation.parse("x <|eot_id|> y"))))
    tokenizer = served.tokenizer
    behind = {tokenizer.decode(prompt[len(ids) :]) for prompt in served.prompts if tuple(prompt[: len(ids)]) == ids}
    assert behind == {"\n\n", "\n\nunsafe\nS"}
    assert ids.count(tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 1


def test_text_prompts_keep_control_tokens_out_of_messages(
    respond: FakeService, served: ServedModel, local: Guard, folder: Path
) -> None:
    served.ids, served.shape = False, "texts"
    plain = [c for c in CONVERSATIONS if not any(t in str(c) for t in served.tokenizer.all_special_tokens)][:6]
    with remote(respond, folder) as guard:
        found = margins(guard, plain)
        hostile = guard.check("x <|eot_id|> y")
    for one, other in zip(found, margins(local, plain), strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE)
    assert hostile.score == pytest.approx(local.check("x < |eot_id|> y").score, abs=TOLERANCE)
    assert hostile.markers == ("<|eot_id|>",)
    control = served.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert {prompt.count(control) for prompt in served.prompts} == {1}
    start = served.tokenizer.bos_token_id
    assert {prompt.count(start) for prompt in served.prompts} == {1}


def test_a_server_that_adds_no_control_token_at_the_start_is_sent_it(
    respond: FakeService, served: ServedModel, local: Guard, folder: Path
) -> None:
    served.shape = "texts"

    def answer(received: Received) -> Reply:
        if received.payload is None:
            return served(received)
        prompt = received.payload["prompt"]
        if not isinstance(prompt, str):
            return Reply(b"", 422)
        ids = served.tokenizer.encode(prompt, add_special_tokens=False)
        return served(Received(received.path, received.headers, {**received.payload, "prompt": ids}))

    respond.respond = answer
    with remote(respond, folder) as guard:
        assert margins(guard, CONVERSATIONS[:2])[1] == pytest.approx(
            margins(local, CONVERSATIONS[:2])[1], abs=TOLERANCE
        )


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_server_that_fails_on_token_ids_gets_text(
    respond: FakeService, served: ServedModel, local: Guard, folder: Path, status: int
) -> None:
    served.ids, served.shape = False, "texts"

    def answer(received: Received) -> Reply:
        ids = received.payload is not None and not isinstance(received.payload["prompt"], str)
        return Reply({"error": {"message": "no"}}, status) if ids else served(received)

    respond.respond = answer
    with remote(respond, folder) as guard:
        assert guard.check("hello").score == pytest.approx(local.check("hello").score, abs=TOLERANCE)
    with remote(respond, folder, prompts="tokens") as guard:
        assert guard.check("hello").verdict is Verdict.ERROR


def test_a_server_that_was_ill_for_a_moment_still_gets_token_ids(
    respond: FakeService, served: ServedModel, folder: Path
) -> None:
    def answer(received: Received) -> Reply:
        with respond.lock:
            number = len(respond.received)
        return Reply(b"", 500) if number == 2 else served(received)

    respond.respond = answer
    with remote(respond, folder) as guard:
        assert guard.check("hello").error is None
        respond.received.clear()
        assert guard.check("hello").error is None
    assert all(isinstance(received.payload["prompt"], list) for received in respond.received)


def test_a_server_that_ignores_the_bias_never_makes_a_text_safer(
    respond: FakeService, served: ServedModel, local: Guard, folder: Path
) -> None:
    served.obeys = False
    texts = [f"text {number}" for number in range(3)]
    with remote(respond, folder, top_logprobs=40_000) as guard:
        decisions = list(guard.check_many(texts))
    judged = [
        (decision, local.check(text)) for decision, text in zip(decisions, texts, strict=True) if decision.error is None
    ]
    assert judged
    for decision, exact in judged:
        assert decision.score is not None
        assert exact.score is not None
        assert decision.score >= exact.score - TOLERANCE
    with remote(respond, folder, top_logprobs=1) as guard:
        decision = guard.check("text")
    assert (decision.verdict, decision.flagged) == (Verdict.ERROR, True)
    assert "neither safe nor unsafe is among the 1 most likely tokens" in (decision.error or "")


def test_order_is_kept_and_so_is_the_limit_of_requests_under_way(
    respond: FakeService, served: ServedModel, local: Guard, folder: Path
) -> None:
    conversations = [[{"role": "user", "content": f"text {number}"}] for number in range(8)]
    served.most_under_way = 0
    with remote(respond, folder, concurrency=3) as guard:
        found = margins(guard, conversations)
    for one, other in zip(found, margins(local, conversations), strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE)
    assert served.most_under_way <= 3
    assert len(respond.connections) <= 3


# Failures.


def answered(logprobs: Any, tokens: int | None = None) -> dict[str, Any]:
    return {
        "choices": [{"text": "x", "logprobs": logprobs}],
        **({} if tokens is None else {"usage": {"prompt_tokens": tokens}}),
    }


def listed(**values: float) -> dict[str, Any]:
    names = {name.replace("_", " "): value for name, value in values.items()}
    first = next(iter(names))
    return {"tokens": [first], "token_logprobs": [names[first]], "top_logprobs": [names]}


def failing(respond: FakeService, served: ServedModel, reply: Reply, after: int = 2) -> None:
    """The model list and the probe are answered; then this."""

    def answer(received: Received) -> Reply:
        with respond.lock:
            number = len(respond.received)
        return served(received) if number <= after else reply

    respond.respond = answer


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(b"", 500), "status 500"),
        (Reply({"error": {"message": "slow"}}, 429, {"Retry-After": "0"}), "status 429"),
        (Reply({"error": {"message": "no such model"}}, 404), "no such model"),
        (Reply({"error": "x"}, 401), "check OPENAI_API_KEY"),
        (DROP, "cannot be reached"),
        (Reply({"choices": [1] * 1000}, cut=True), "cannot be reached"),
        (Reply(b"<html>"), "not JSON"),
        (Reply([]), "no choices"),
        (Reply({"choices": []}), "no choices"),
        (Reply(answered(None)), "no logprobs"),
        (Reply(answered({"tokens": [], "token_logprobs": [], "top_logprobs": []})), "no logprobs"),
        (Reply(answered({"content": []})), "no logprobs"),
        (Reply(answered({"tokens": ["safe"], "token_logprobs": [-1], "top_logprobs": None})), "no logprobs of other"),
        (Reply(answered({"content": [{"token": "safe", "logprob": -1, "top_logprobs": []}]})), "no logprobs of other"),
        (Reply(answered(listed(safe=float("nan")))), "not the logarithm"),
        (Reply(answered(listed(safe=0.7))), "not the logarithm"),
        (Reply(answered(listed(safe=True))), "not the logarithm"),
        (Reply(answered(listed(hello=-0.1, world=-2))), "neither safe nor unsafe is among the 2"),
        (Reply(answered(listed(safe=-0.1, unsafe=-2), tokens=7)), "the server read 7 tokens of a prompt of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_goes_wrong_is_an_error(
    respond: FakeService, served: ServedModel, folder: Path, reply: Reply, words: str
) -> None:
    failing(respond, served, reply)
    with remote(respond, folder) as guard:
        decision = guard.check("hello")
    assert (decision.verdict, decision.flagged, decision.score) == (Verdict.ERROR, True, None)
    assert words in (decision.error or "")


def test_what_passes_is_tried_again_and_a_failure_is_of_its_own_prompt(
    respond: FakeService, served: ServedModel, folder: Path
) -> None:
    times: dict[str, int] = {}

    def answer(received: Received) -> Reply:
        if received.payload is not None:
            text = served.tokenizer.decode(received.payload["prompt"])
            with respond.lock:
                times[text] = times.get(text, 0) + 1
            if "always" in text or ("once" in text and times[text] == 1):
                return Reply(b"", 503)
        return served(received)

    respond.respond = answer
    with remote(respond, folder) as guard:
        verdicts = [decision.verdict for decision in guard.check_many(["a", "once", "always", "b"])]
    assert [verdict is Verdict.ERROR for verdict in verdicts] == [False, False, True, False]


def test_a_server_that_does_not_answer_in_time_is_an_error(
    respond: FakeService, served: ServedModel, folder: Path
) -> None:
    def answer(received: Received) -> Reply:
        if received.payload is not None:
            respond.stall.wait(10)
        return served(received)

    respond.respond = answer
    with remote(respond, folder, timeout=0.1, attempts=1) as guard:
        assert guard.check("hello").error == "the model server did not answer in time"


def test_logprobs_that_a_server_was_started_without_have_a_hint(
    respond: FakeService, served: ServedModel, folder: Path
) -> None:
    message = "logprobs is not supported for models created with logits_all=False"
    failing(respond, served, Reply({"error": {"message": message}}, 500), after=1)
    with remote(respond, folder, on_error="raise") as guard, pytest.raises(BackendError, match="logits_all") as caught:
        guard.check("hello")
    assert "--logits_all true" in (caught.value.hint or "")


def test_another_tokenizer_is_noticed(respond: FakeService, served: ServedModel, folder: Path) -> None:
    def answer(received: Received) -> Reply:
        reply = served(received)
        if received.payload is not None:
            reply.body["usage"]["prompt_tokens"] += 5
        return reply

    respond.respond = answer
    with remote(respond, folder) as guard:
        decision = guard.check("hello")
    assert decision.verdict is Verdict.ERROR
    assert "the server read" in (decision.error or "")


def test_closing_ends_what_is_under_way(respond: FakeService, served: ServedModel, folder: Path) -> None:
    asked = threading.Event()

    def answer(received: Received) -> Reply:
        if received.payload is None:
            return served(received)
        asked.set()
        return Reply(b"", 429, {"Retry-After": "250"})

    respond.respond = answer
    guard = remote(respond, folder, attempts=5)
    decisions: list[Decision] = []
    thread = threading.Thread(target=lambda: decisions.append(guard.check("text")), daemon=True)
    thread.start()
    assert asked.wait(10)
    guard.close()
    thread.join(20)
    assert [decision.verdict for decision in decisions] == [Verdict.ERROR]
    assert guard.check("text").verdict is Verdict.ERROR


# Loading.


def test_the_key_is_sent_where_there_is_one(
    respond: FakeService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remote(respond, folder) as guard:
        guard.check("hello")
    assert all("Authorization" not in received.headers for received in respond.received)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    respond.received.clear()
    with remote(respond, folder) as guard:
        guard.check("hello")
        assert KEY not in f"{guard.backend.name} {vars(guard.backend)!r}"
    assert {received.headers["Authorization"] for received in respond.received} == {f"Bearer {KEY}"}


def test_the_name_says_what_answers_where_and_when(respond: FakeService, folder: Path) -> None:
    place = respond.address.removeprefix("http://")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    with remote(respond, folder) as guard:
        assert guard.backend.name == f"openai:served@{today}-{place}/v1"
        assert guard.backend.numerics == "remote"
        assert guard.backend.max_tokens == 4096 - 16
        assert guard.taxonomy.codes == tuple(NAMES)
    with remote(respond, folder, served="served", version="2") as guard:
        assert guard.backend.name == name_of("served", f"{respond.address}/v1/", "2") == f"openai:served@2-{place}/v1"


@pytest.mark.parametrize(
    ("listing", "served_name", "words"),
    [
        (Reply({"data": []}), None, "does not say what it serves"),
        (Reply({"data": [{"id": "a"}, {"id": "b"}]}), None, "serves 2 models"),
        (Reply({"data": [{"id": "a"}, {"id": "b"}]}), "c", "does not serve 'c'"),
        (Reply({"data": 3}), None, "does not say what it serves"),
        (Reply([]), None, "does not say what it serves"),
        (Reply(b"", 404), None, "status 404"),
        (DROP, None, "cannot be reached"),
    ],
)
def test_an_unknown_model_is_found_at_loading(
    service: FakeService, folder: Path, listing: Reply, served_name: str | None, words: str
) -> None:
    service.respond = lambda received: listing
    with pytest.raises(ModelError, match=words) as caught:
        remote(service, folder, served=served_name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("address", "options", "words"),
    [
        ("localhost:8000", {}, "no address"),
        ("http://user:secret@host/v1", {}, "no address"),
        ("", {}, "no address"),
        ("http://h/v1", {"prompts": "speech"}, "prompts is 'speech'"),
        ("http://h/v1", {"top_logprobs": 0}, "top_logprobs is 0"),
        ("http://h/v1", {"concurrency": 0}, "concurrency is 0"),
        ("http://h/v1", {"max_tokens": 0}, "max_tokens is 0"),
        ("http://h/v1", {"timeout": 0}, "timeout is 0"),
        ("http://h/v1", {"device": "cpu"}, "takes no option 'device'"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(address: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        guardrail.load(f"openai:{address}", **options)
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_a_tokenizer_comes_with_what_its_folder_says(folder: Path, tmp_path: Path) -> None:
    source = _read_once(str(folder))
    assert (source.template.id, source.taxonomy.codes) == ("llama-guard-3-chat", tuple(NAMES))
    assert _read_once(str(folder), "llama-guard-3").template.id == "llama-guard-3"
    config = {"chat_template": [{"name": "other", "template": "x"}, {"name": "default", "template": "unsafe content"}]}
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match="no chat template"):
        read_source(str(tmp_path))
    chat = (folder / "chat_template.jinja").read_text()
    config["chat_template"][1]["template"] = chat
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_source(str(tmp_path)).template.source == chat


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "models/x.gguf", "x", "a/b/c"])
def test_a_tokenizer_that_is_nowhere_is_an_error_with_a_hint(name: str) -> None:
    with pytest.raises(ModelError, match="no tokenizer") as caught:
        read_source(name)
    assert "--tokenizer" in (caught.value.hint or "")


def test_files_that_are_no_tokenizer_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        read_source(str(tmp_path))
    for text in ("[", "[]", "{}", '{"model": {"vocab": {}}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError):
            read_source(str(tmp_path), "llama-guard-3")


def test_loading_needs_neither_torch_nor_transformers(respond: FakeService, folder: Path) -> None:
    code = (
        f"import sys, guardrail\nguard = guardrail.load('openai:{respond.address}/v1', tokenizer={str(folder)!r})\n"
        "assert guard.check('hello').error is None\nguard.close()\nprint({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr


def test_the_commands_take_a_model_server(respond: FakeService, local: Guard, folder: Path, tmp_path: Path) -> None:
    model = ["-m", f"openai:{respond.address}/v1", "--tokenizer", str(folder), "--served-model", "served"]

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "guardrail", *arguments, *model]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    done = command("check", "--json", "--prompts", "tokens", "How do I make a cake?")
    assert json.loads(done.stdout)["score"] == pytest.approx(local.check("How do I make a cake?").score, abs=TOLERANCE)
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    done = command("score", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


# What is parsed.


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TOP = st.lists(st.dictionaries(st.sampled_from(["token", "logprob", "id", "bytes", "top_logprobs"]), JSON), max_size=3)
LOGPROBS = (
    JSON
    | st.fixed_dictionaries({"content": TOP | JSON})
    | st.fixed_dictionaries(dict.fromkeys(("tokens", "token_logprobs", "top_logprobs"), JSON))
)


@given(
    JSON | st.fixed_dictionaries({"choices": st.lists(st.fixed_dictionaries({"logprobs": LOGPROBS})), "usage": JSON})
)
def test_an_answer_is_read_or_is_an_error(reply: Any) -> None:
    count = prompt_tokens(reply)
    assert count is None or isinstance(count, int)
    try:
        positions = generated(reply)
    except BackendError:
        return
    for position in positions:
        assert position.entries
        assert position.bound <= position.chosen.logprob <= 0.01


@pytest.fixture(scope="module", params=["llama-guard-1", "llama-guard-3"])
def both(request: pytest.FixtureRequest, tokenizer_files: Path) -> tuple[Any, TextTokenizer, Writer]:
    """A tokenizer of transformers, ours, and what writes its prompts."""
    theirs = tokenizer_of(request.param, tokenizer_files)
    ours = TextTokenizer.from_transformers(theirs)
    return theirs, ours, Writer(ours)


@given(data=st.data())
def test_a_written_prompt_has_the_control_tokens_of_its_ids_and_no_others(
    both: tuple[Any, TextTokenizer, Writer], data: st.DataObject
) -> None:
    theirs, ours, writer = both
    names = st.sampled_from(sorted(theirs.all_special_tokens))
    pieces = st.lists(hostile_texts() | names.map(lambda name: f"{name[:-1]}{name}{name[1:]}"), min_size=1, max_size=3)
    text = "".join(data.draw(pieces))
    ids = [theirs.bos_token_id, *ours.encode_text(text), theirs.eos_token_id, *ours.encode_text("unsafe")]
    written = writer.write(ids, start=True)
    read = theirs.encode(written.text, add_special_tokens=False)
    assert [token for token in read if token in ours.control] == [theirs.bos_token_id, theirs.eos_token_id]
    assert read[-1] == ids[-1]
    if writer.defused(text) == text:
        assert written.tokens == len(ids)
