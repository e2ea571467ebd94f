"""Cascades: who judges what, whose decision it is, and the file that holds one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import guardrail
from guardrail.backends.scripted import ScriptedBackend
from guardrail.batch import Options, score_file
from guardrail.calibration import Calibration, Side
from guardrail.cascade import Band, Cascade
from guardrail.cascade_file import CascadeFile, Model
from guardrail.errors import BackendError, ConversationError, InputError, ResumeError, UsageError
from guardrail.evaluation.cache import Cache, key
from guardrail.guard import Guard
from guardrail.judgement import Decider, Judgement
from guardrail.loading import load
from guardrail.policy import OnError, Policy, Thresholds
from guardrail.prompting import Prompt
from guardrail.scoring import Curve, Logits, Margins, sigmoid
from guardrail.server.judgements import Judgements
from guardrail.taxonomy import Category, Taxonomy
from guardrail.types import Conversation, Role, Verdict
from tests.checkpoints import chat_template, save_checkpoint, tokenizer_of

AB = Taxonomy(id="ab", name="AB", categories=(Category("A", "Alpha", "a"), Category("B", "Beta", "b")))
WIDE = {Role.USER: Band(0.0, 1.0), Role.ASSISTANT: Band(0.0, 1.0)}
PLAIN = Side()
LLAMA_NAMES = {"S1": "Violent Crimes", "S2": "Non-Violent Crimes"}


class Numbers:
    """A script: the number in the judged text is the log-odds; a word in it makes it fail."""

    def __init__(self, shift: float = 0.0, fails: str = "nothing") -> None:
        self.shift = shift
        self.fails = fails

    def __call__(self, prompt: Prompt) -> Logits:
        if self.fails in prompt.text:
            raise BackendError(f"it cannot read {self.fails}")
        value = float(prompt.text.split("value=")[-1].split()[0]) + self.shift
        return Logits(0.0, value, (value, value - 1))


class Counting(ScriptedBackend):
    """Remembers the size of every batch."""

    def __init__(self, script: Callable[[Prompt], Logits], name: str) -> None:
        super().__init__(script, name=name)
        self.batches: list[int] = []

    def logits(self, prompts, categories=True):  # type: ignore[no-untyped-def]
        self.batches.append(len(prompts))
        return super().logits(prompts, categories)


def text(value: float, words: str = "") -> str:
    return f"{words} value={value} end"


def guard_of(name: str, script: Numbers | None = None, *, on_error: OnError = "closed", side: Side = PLAIN) -> Guard:
    policy = Policy(side.thresholds, side.thresholds, on_error)
    calibration = Calibration(side, side)
    return Guard(Counting(script or Numbers(), name), taxonomy=AB, calibration=calibration, policy=policy)


def asked(guard: Guard) -> list[int]:
    assert isinstance(guard.backend, Counting)
    return guard.backend.batches


def test_the_second_judges_what_the_first_is_unsure_of() -> None:
    first, second = guard_of("quick"), guard_of("slow", Numbers(-5))
    cascade = Cascade(first, second, {Role.USER: Band(sigmoid(-1), sigmoid(1))})
    values = [-3, -1, 0.5, 1, 3]
    decisions = list(cascade.check_many([text(value) for value in values]))
    assert [decision.model for decision in decisions] == [f"{who}@script" for who in
            ("quick", "slow", "slow", "slow", "quick")]  # fmt: skip
    plain = [(second if -1 <= value <= 1 else first).check(text(value)) for value in values]
    assert decisions == plain
    assert [decision.verdict for decision in decisions] == [*[Verdict.SAFE] * 4, Verdict.UNSAFE]


def test_the_ends_of_the_band_belong_to_it() -> None:
    for score, who in ((0.25, "slow"), (0.5, "slow"), (0.24999, "quick"), (0.50001, "quick")):
        band = Band(0.25, 0.5)
        assert (score in band) is (who == "slow")
    cascade = Cascade(guard_of("quick"), guard_of("slow"), {Role.USER: Band(0.5, 0.5)})
    assert cascade.check(text(0)).model == "slow@script"
    assert cascade.check(text(0.000001)).model == "quick@script"


def test_the_band_is_of_calibrated_probabilities() -> None:
    shifted = Side(Curve.line(1, 2), Thresholds(0.7))
    cascade = Cascade(guard_of("quick", side=shifted), guard_of("slow"), {Role.USER: Band(0.45, 0.55)})
    assert cascade.check(text(-2)).model == "slow@script"
    assert cascade.check(text(0)).model == "quick@script"


def test_each_judges_by_its_own_calibration_and_threshold() -> None:
    slow = Side(Curve.line(0.5, 0), Thresholds(0.9))
    cascade = Cascade(guard_of("quick"), guard_of("slow", side=slow), {Role.USER: Band(0.4, 0.9)})
    decision = cascade.check(text(2))
    assert decision.score == pytest.approx(sigmoid(1))
    assert decision.verdict is Verdict.SAFE
    assert cascade.judge_of(decision) is cascade.second
    certain = cascade.check(text(4))
    assert certain.verdict is Verdict.UNSAFE
    assert certain.score == pytest.approx(sigmoid(4))
    assert cascade.judge_of(certain) is cascade.first


def test_a_role_without_a_band_is_left_to_the_first() -> None:
    cascade = Cascade(guard_of("quick"), guard_of("slow"), {Role.ASSISTANT: Band(0, 1)})
    answer = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": text(0)}]
    assert cascade.check(text(0)).model == "quick@script"
    assert cascade.check(answer).model == "slow@script"


def test_many_keep_their_order_and_the_second_is_asked_in_batches() -> None:
    first, second = guard_of("quick"), guard_of("slow", Numbers(10))
    cascade = Cascade(first, second, {Role.USER: Band(0.4, 0.6)})
    values = [(-4, 0, 4)[at % 3] for at in range(12)]
    found = [decision.score for decision in cascade.check_many(map(text, values), batch_size=6)]
    assert found == pytest.approx([sigmoid(10 if value == 0 else value) for value in values])
    assert (asked(first), asked(second)) == ([6, 6], [2, 2])
    assert len(list(cascade.check_many([text(4)] * 3))) == 3
    assert asked(second) == [2, 2]


@pytest.mark.parametrize(("on_error", "flagged"), [("closed", True), ("open", False)])
def test_an_error_of_the_second_is_an_error_and_never_the_firsts_safe(on_error: OnError, flagged: bool) -> None:
    broken = guard_of("slow", Numbers(fails="end"), on_error=on_error)
    cascade = Cascade(guard_of("quick", on_error=on_error), broken, {Role.USER: Band(0.0, 0.5)})
    unsure, certain = cascade.check_many([text(-4), text(4)])
    assert (unsure.verdict, unsure.flagged, unsure.score) == (Verdict.ERROR, flagged, None)
    assert (unsure.error, unsure.model) == ("it cannot read end", "slow@script")
    assert certain.verdict is Verdict.UNSAFE


def test_what_the_first_fails_on_is_judged_by_the_second() -> None:
    first = guard_of("quick", Numbers(fails="greek"))
    cascade = Cascade(first, guard_of("slow"), {})
    found = list(cascade.check_many([text(-4, "greek"), text(4, "greek"), text(4)]))
    assert [decision.verdict for decision in found] == [Verdict.SAFE, Verdict.UNSAFE, Verdict.UNSAFE]
    assert [decision.model for decision in found] == ["slow@script", "slow@script", "quick@script"]
    both = Cascade(guard_of("quick", Numbers(fails="greek")), guard_of("slow", Numbers(fails="end")), {})
    assert both.check(text(0, "greek")).error == "it cannot read end"


def test_unusable_input_is_an_error_and_can_be_raised() -> None:
    assert Cascade(guard_of("quick"), guard_of("slow"), WIDE).check("").verdict is Verdict.ERROR
    raising = Cascade(guard_of("quick", on_error="raise"), guard_of("slow", on_error="raise"), WIDE)
    with pytest.raises(ConversationError):
        raising.check("")


def test_asynchronously_and_closed() -> None:
    with Cascade(guard_of("quick"), guard_of("slow", Numbers(1)), WIDE) as cascade:
        assert asyncio.run(cascade.acheck(text(0))).score == pytest.approx(sigmoid(1))
    with pytest.raises(BackendError, match="closed"):
        asyncio.run(cascade.acheck(text(0)))


def test_closing_closes_both_models() -> None:
    closed: list[str] = []

    class Closing(ScriptedBackend):
        def close(self) -> None:
            closed.append(self.name)

    guards = [Guard(Closing(Numbers(), name=name), taxonomy=AB) for name in ("quick", "slow")]
    Cascade(guards[0], guards[1], WIDE).close()
    assert closed == ["quick@script", "slow@script"]


def test_guards_that_do_not_go_together_are_refused() -> None:
    first = guard_of("quick")
    other = Guard(ScriptedBackend(Numbers(), name="slow"), taxonomy=AB.select(["A"]))
    with pytest.raises(UsageError, match="the categories A, B and A"):
        Cascade(first, other, WIDE)
    with pytest.raises(UsageError, match="both models of the cascade are quick@script"):
        Cascade(first, guard_of("quick"), WIDE)
    with pytest.raises(UsageError, match="on_error 'closed' and 'open'"):
        Cascade(first, guard_of("slow", on_error="open"), WIDE)
    with pytest.raises(UsageError, match="cascade itself"):
        Cascade(Cascade(first, guard_of("slow"), WIDE), guard_of("third"), WIDE)
    for low, high in ((0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)):
        with pytest.raises(UsageError, match="a band from"):
            Band(low, high)


def test_the_names_follow_what_decides() -> None:
    def cascade(low: float = 0.2, side: Side = PLAIN, threshold: float = 0.5) -> Cascade:
        slow = Side(thresholds=Thresholds(threshold))
        return Cascade(guard_of("quick", side=side), guard_of("slow", side=slow), {Role.USER: Band(low, 0.5)})

    base = cascade()
    assert (base.classifier, base.fingerprint) == (cascade().classifier, cascade().fingerprint)
    assert base.backend.name == "quick@script + slow@script"
    assert base.backend.numerics == "float64 + float64"
    for name in ("quick@script", "slow@script", "user 0.2 to 0.5"):
        assert name in base.classifier
    assert cascade(low=0.3).classifier != base.classifier
    # The first one's curve decides which rows lie in the band; thresholds decide none of that.
    assert cascade(side=Side(Curve.line(2))).classifier != base.classifier
    assert cascade(threshold=0.6).classifier == base.classifier
    assert cascade(threshold=0.6).fingerprint != base.fingerprint


def test_a_judgement_of_a_second_model_needs_one() -> None:
    judgement = Judgement(Margins(1.0, (1.0, 1.0)), Role.USER, stage=1)
    with pytest.raises(UsageError, match="only one here"):
        Decider(AB, Calibration(), Policy())(judgement)


def test_the_cache_keeps_who_judged() -> None:
    cascade = Cascade(guard_of("quick"), guard_of("slow"), {Role.USER: Band(0.4, 0.6)})
    conversations = [Conversation.parse(text(value)) for value in (0, 4)]
    judged = dict(zip((b"a", b"b"), cascade.judge_many(conversations), strict=True))
    with Cache(None) as cache:
        cache.put(judged)
        found = cache.get([b"a", b"b"])
    assert [found[name].stage for name in (b"a", b"b")] == [1, 0]
    assert found == judged
    assert key(cascade.classifier, conversations[0]) != key(cascade.first.classifier, conversations[0])


def test_another_taxonomy_and_another_threshold_are_for_both() -> None:
    cascade = load_scripted()
    other = cascade.under(Taxonomy.load("openai-moderation"), 0.999)
    assert isinstance(other, Cascade)
    assert other.bands == cascade.bands
    assert other.backend is cascade.backend
    for stage in other.stages:
        assert (stage.taxonomy.id, stage.policy.user.verdict) == ("openai-moderation", 0.999)
    assert other.check("slowbad").verdict is Verdict.SAFE
    assert cascade.check("slowbad").verdict is Verdict.UNSAFE


def test_a_request_to_the_server_gets_the_cascade_too() -> None:
    cascade = load_scripted()
    judgements = Judgements(cascade)
    for body in ({}, {"threshold": 0.9}, {"taxonomy": "openai-moderation"}):
        request = judgements.read({"text": "slowbad", **body})
        response = request.response(request.guard.check(request.conversation))
        assert response["decision"]["model"].startswith("scripted:slowbad@")
        assert response["threshold"] == (0.9 if "threshold" in body else 0.5)


def load_scripted() -> Cascade:
    """The first finds nothing, and is unsure of all of it."""
    guards = [load(f"scripted:{word}") for word in ("quickbad", "slowbad")]
    return Cascade(guards[0], guards[1], {Role.USER: Band(0, 0.5)})


FILE = """\
format: 1
first: {model: "scripted:quickbad"}
second: {model: "scripted:slowbad", threshold: 0.8}
taxonomy: openai-moderation
band:
  user: [0.0, 0.5]
  assistant: [0.2, 0.4]
chosen: {for: nothing}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cascade.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_file_is_loaded_by_its_name(file: Path) -> None:
    with load(f"cascade:{file}") as cascade:
        assert isinstance(cascade, guardrail.Cascade)
        assert cascade.bands == {Role.USER: Band(0.0, 0.5), Role.ASSISTANT: Band(0.2, 0.4)}
        assert [stage.taxonomy.id for stage in cascade.stages] == ["openai-moderation"] * 2
        assert cascade.second.policy.user.verdict == 0.8
        assert cascade.check("quickbad").model.startswith("scripted:quickbad")
        assert cascade.check("slowbad").verdict is Verdict.UNSAFE
        assert cascade.check("good").model.startswith("scripted:slowbad")
    with load(f"cascade:{file}", on_error="raise") as cascade, pytest.raises(ConversationError):
        cascade.check("")


@pytest.mark.parametrize(
    "option",
    [
        {"threshold": 0.5},
        {"thresholds": {"G1": 0.5}},
        {"calibration": "x.json"},
        {"taxonomy": "default"},
        {"template": "encoder"},
        {"category_scores": "each"},
        {"policy": Policy()},
        {"policy_text": True},
        {"device": "cpu"},
    ],
)
def test_options_that_the_file_has_are_refused(file: Path, option: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(option))}: a cascade has it from its file"):
        load(f"cascade:{file}", **option)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format: 1", "format: 2", r"cascade.yaml:1: format: the format is 2"),
        ("[0.2, 0.4]", "[0.4, 0.2]", r"cascade.yaml:7: band.assistant: 0.4 is above 0.2"),
        ("[0.2, 0.4]", "[0.4]", r"cascade.yaml:7: band.assistant: expected two numbers, got 1"),
        ("[0.2, 0.4]", "[0.4, x]", r"cascade.yaml:7: band.assistant\[1\]: expected a number from 0 to 1"),
        ("[0.2, 0.4]", "[0.4, .nan]", r"cascade.yaml:7: band.assistant\[1\]: expected a number from 0 to 1"),
        ("assistant:", "agent:", r"cascade.yaml:7: band.agent: unknown key"),
        ("threshold: 0.8", "threshold: true", r"cascade.yaml:3: second.threshold: expected a number"),
        ("threshold: 0.8", "calibrated: x", r"cascade.yaml:3: second.calibrated: unknown key"),
        ("threshold: 0.8", "options: {a: [1]}", r"cascade.yaml:3: second.options.a: expected text, a number"),
        ("threshold: 0.8", "options: 3", r"cascade.yaml:3: second.options: expected a mapping"),
        ('model: "scripted:quickbad"', "model: 3", r"cascade.yaml:2: first.model: expected text"),
        ("scripted:quickbad", "cascade:x.yaml", r"cascade.yaml:2: first.model: a cascade cannot be part"),
        ("chosen: {for: nothing}", "chosen: 3", r"cascade.yaml:8: chosen: expected a mapping"),
        ("taxonomy: openai-moderation", "taxonomy: {format: 1}", r"cascade.yaml:4: taxonomy|cascade.yaml:4: .*id"),
    ],
)
def test_a_wrong_file_is_named_with_line_and_field(file: Path, old: str, new: str, words: str) -> None:
    assert old in FILE
    file.write_text(FILE.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=words):
        CascadeFile.read(file)


def test_other_weights_than_those_of_the_band_are_refused(file: Path) -> None:
    changed = FILE.replace('"scripted:quickbad"', '"scripted:quickbad", weights: other@123')
    file.write_text(changed, encoding="utf-8")
    with pytest.raises(UsageError, match="the band was chosen for other@123, the model is scripted:quickbad@script"):
        load(f"cascade:{file}")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    second = Model(
        "./model",
        "x@1",
        calibration=tmp_path / "second.json",
        threshold=0.25,
        template="llama-guard-3",
        category_scores="each",
        options={"dtype": "bfloat16", "tokenizer": "../tok"},
    )
    written = CascadeFile(
        Model("embedded"), second, {Role.USER: Band(0.1, 0.30000000000000004)}, AB, {"for": "cost<=0.1"}
    )
    written.write(tmp_path / "cascade.yaml")
    found = CascadeFile.read(tmp_path / "cascade.yaml")
    assert (found.first, found.bands, found.taxonomy, found.chosen) == (
        written.first,
        written.bands,
        AB,
        written.chosen,
    )
    assert found.second.model == str(tmp_path / "model")
    assert found.second.calibration == tmp_path / "second.json"
    assert found.second.options == {"dtype": "bfloat16", "tokenizer": str(tmp_path / "../tok")}
    assert (found.second.threshold, found.second.category_scores) == (0.25, "each")
    CascadeFile(Model("embedded"), Model("x"), {}, Taxonomy.load("default")).write(tmp_path / "named.yaml")
    assert "taxonomy: default\n" in (tmp_path / "named.yaml").read_text(encoding="utf-8")


def test_a_scoring_run_is_not_resumed_with_another_band(file: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "good"}\n{"text": "slowbad"}\n' * 3, encoding="utf-8")

    class StopError(Exception):
        pass

    def stop(run: object, lines: object) -> None:
        stops.append(run)
        if len(stops) == 2:
            raise StopError

    stops: list[object] = []
    with load(f"cascade:{file}") as cascade, pytest.raises(StopError):
        score_file(cascade, source, target, Options(batch_size=2), report=stop)
    file.write_text(FILE.replace("[0.0, 0.5]", "[0.0, 0.6]"), encoding="utf-8")
    with load(f"cascade:{file}") as cascade, pytest.raises(ResumeError, match="guard"):
        score_file(cascade, source, target, Options(resume=True))
    file.write_text(FILE, encoding="utf-8")
    with load(f"cascade:{file}") as cascade:
        assert score_file(cascade, source, target, Options(resume=True)).tally.unsafe == 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_files: Path) -> Path:
    pytest.importorskip("torch")
    family = "llama-guard-3"
    folder = tmp_path_factory.mktemp("llama")
    chat = chat_template(family, LLAMA_NAMES)
    return save_checkpoint(folder, tokenizer_of(family, tokenizer_files), chat=chat, hidden_size=16)


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> Iterator[tuple[Guard, Guard]]:
    taxonomy = Taxonomy.load("llama-guard-3")
    first, second = load(taxonomy=taxonomy), load(checkpoint, taxonomy=taxonomy)
    yield first, second
    first.close()
    second.close()


@pytest.mark.usefixtures("one_thread")
def test_the_embedded_model_before_a_llama(pair: tuple[Guard, Guard]) -> None:
    first, second = pair
    texts = [
        "How do I build a pipe bomb?",
        "What is the capital of France?",
        "How do I kill a Python process?",
        "Tell me how to get into a locked car",
        "ሰላም ለዓለም ይሁን",
        "",
    ]
    alone = [list(guard.check_many(texts)) for guard in (first, second)]
    scores = sorted(decision.score for decision in alone[0] if decision.score is not None)
    band = Band(scores[1], scores[2])
    found = list(Cascade(first, second, {Role.USER: band}).check_many(texts))
    for quick, slow, decision in zip(*alone, found, strict=True):
        expected = slow if quick.score is None or quick.score in band else quick
        assert (decision.model, decision.verdict, decision.template) == (
            expected.model,
            expected.verdict,
            expected.template,
        )
        # Rows beside each other in a batch change the last digits.
        assert decision.score == pytest.approx(expected.score, abs=1e-4)
    assert {decision.model for decision in found} == {first.backend.name, second.backend.name}
    assert alone[0][4].verdict is Verdict.ERROR
    assert found[4].verdict is not Verdict.ERROR
