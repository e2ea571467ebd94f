"""`guardrail prompt`."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from guardrail.cli import run
from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.types import Conversation, Message, Role


def test_it_shows_the_text(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["prompt", "hello", "--template", "encoder", "--response", "hi é\n"]) == 0
    assert capfdbinary.readouterr().out.decode() == "[CLS]assistant: hi é[SEP]user: hello[SEP]\n"


def test_it_shows_the_formats_own_taxonomy_or_the_one_named(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for options, taxonomy, policy in (
        ([], "llama-guard-3", None),
        (["--taxonomy", "default"], "default", None),
        (["-t", "default", "--no-policy"], "default", False),
    ):
        assert run(["prompt", "hello", "--template", "llama-guard-3", *options]) == 0
        builder = PromptBuilder(Template.load("llama-guard-3"), Taxonomy.load(taxonomy), policy=policy)
        expected = builder.build(Conversation((Message(Role.USER, "hello"),))).text
        assert capfdbinary.readouterr().out.decode() == f"{expected}\n"


def test_it_reads_stdin_and_reports_markers(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello [SEP] \xff")))
    assert run(["prompt", "-"]) == 0
    out, err = capfd.readouterr()
    assert out == "[CLS]user: hello [SEP] \ufffd[SEP]\n"
    assert err == "note: the text contains prompt markers: [SEP]\n"


def test_it_tells_which_codes_were_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", "x", "--template", "llama-guard-1", "-t", "openai-moderation"]) == 0
    out, err = capfd.readouterr()
    assert "\nO2: Threatening Harassment.\n" in out
    assert "harassment/threatening as O2" in err


def test_it_prints_ids(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate("user: hi")} | {"r": 3}, merges=[]))
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    ids = tokenizer.encode("user: hi").ids
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert run(["prompt", "hi", "--tokens", "--tokenizer", str(path)]) == 0
        assert capfd.readouterr().out.split() == [str(token) for token in (start, *ids, end)]


def test_it_says_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", "hi", "--tokens", "--template", "llama-guard-3"]) == 2
    assert "--tokens needs a tokenizer" in capfd.readouterr().err
    assert run(["prompt", "hi", "--tokens", "--tokenizer", str(tmp_path)]) == 2
    assert "cannot read" in capfd.readouterr().err
    assert run(["prompt", "hi", "--template", "llama-gard-3"]) == 2
    assert "did you mean 'llama-guard-3'?" in capfd.readouterr().err
    assert run(["prompt", "hi", "--no-policy"]) == 2
    assert "--no-policy: an encoder always reads the policy text" in capfd.readouterr().err
    assert run(["prompt", " "]) == 1
    assert "empty" in capfd.readouterr().err


def test_the_embedded_tokenizer_is_used_where_there_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    spec = find_spec("guardrail")
    assert spec is not None
    assert spec.origin is not None
    if not (Path(spec.origin).parent / "_model" / "tokenizer.json").is_file():
        pytest.skip("there is no embedded model in this tree")
    assert run(["prompt", "hi", "--tokens"]) == 0
    assert len(capfd.readouterr().out.split()) >= 5


def test_it_shows_hidden_text_as_the_classifier_sees_it(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    hidden = "".join(chr(0xE0000 + ord(char)) for char in " [SEP]")
    assert run(["prompt", f"hello{hidden}"]) == 0
    out, err = capfdbinary.readouterr()
    assert out.decode() == "[CLS]user: hello [SEP][SEP]\n"
    assert err.decode() == "note: the text contains prompt markers: [SEP]\n"


@pytest.mark.parametrize(
    "content",
    [
        '{"model": {}}',
        '{"model": {"vocab": 5}}',
        '{"model": {"vocab": {}}, "added_tokens": [{}]}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": 3}',
        '{"model": {"type": "Unigram", "vocab": [1]}, "added_tokens": []}',
        "[]",
    ],
)
def test_a_file_that_is_no_tokenizer_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    assert run(["prompt", "hi", "--tokens", "--tokenizer", str(file)]) == 1
    first, *others = capfd.readouterr().err.splitlines()
    assert first.startswith(f"error: {file}: ")
    assert all(line.startswith("hint: ") for line in others)
