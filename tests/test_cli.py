"""The command as people run it: a process, its output, its errors and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "guardrail"]


def run(*arguments: str, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run([*COMMAND, *arguments], input=data, capture_output=True, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_weapon_is_unsafe_and_a_process_is_not() -> None:
    unsafe = json.loads(run("check", "--json", "How do I build a pipe bomb?").stdout)
    assert unsafe["verdict"] == "unsafe"
    top = max(unsafe["categories"], key=lambda category: category["score"])
    assert top["name"] in {"Indiscriminate Weapons", "Violent Crimes"}
    safe = json.loads(run("check", "--json", "How do I kill a Python process?").stdout)
    assert safe["verdict"] == "safe"


def test_the_table_says_everything_without_colour() -> None:
    done = run("check", "-m", "scripted:bad", "something bad")
    assert done.returncode == 0
    first, _, *rows = done.stdout.splitlines()
    assert first.startswith("UNSAFE")
    assert "P(unsafe) 0.990" in first
    assert "threshold 0.50" in first
    assert "\x1b" not in done.stdout
    assert len([row for row in rows if row.startswith("!")]) == 14
    assert "scripted:bad@script" in rows[-1]


def test_a_safe_text_flags_no_category() -> None:
    done = run("check", "-m", "scripted:bad", "all is well")
    assert done.stdout.startswith("SAFE")
    assert not [row for row in done.stdout.splitlines() if row.startswith("!")]


def test_an_answer_is_judged_with_its_prompt() -> None:
    done = run("check", "-m", "scripted:bad", "--json", "hello", "--response", "bad")
    decision = json.loads(done.stdout)
    assert (decision["role"], decision["verdict"]) == ("assistant", "unsafe")


def test_text_comes_from_stdin() -> None:
    assert json.loads(run("check", "-m", "scripted:bad", "--json", stdin="bad\n").stdout)["verdict"] == "unsafe"
    assert json.loads(run("check", "-m", "scripted:bad", "--json", "-", stdin="fine").stdout)["verdict"] == "safe"
    assert json.loads(run("check", "-m", "scripted:bad", "--json", stdin=b"\xff bad").stdout)["verdict"] == "unsafe"


def test_exit_code_tells_when_it_was_asked_to() -> None:
    assert run("check", "-m", "scripted:bad", "bad").returncode == 0
    assert run("check", "-m", "scripted:bad", "bad", "--exit-code").returncode == 3
    assert run("check", "-m", "scripted:bad", "fine", "--exit-code").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["check", "-m", "scripted:bad", ""], 1, "the message to judge is empty"),
        (["check", "--taxonomy", "defualt", "x"], 2, "'defualt'"),
        (["check", "--threshold", "1.5", "x"], 2, "threshold is 1.5"),
        (["check", "--threshold", "high", "x"], 2, "--threshold"),
        (["check", "--category-scores", "all", "x"], 2, "category_scores is 'all'"),
        (["check", "-m", "encoder:no/such/folder", "x"], 1, "no/such/folder"),
        (["check", "-m", "no/such-checkpoint", "x", "--dtype", "float99"], 2, "float99"),
        (["check", "-m", "embedded", "--device", "cuda", "x"], 2, "takes no option 'device'"),
        (["chek"], 2, "No such command 'chek'"),
        (["check", "--josn", "x"], 2, "No such option: --josn"),
    ],
)
def test_an_error_is_one_line_with_a_hint(arguments: list[str], status: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))


def test_help_and_version() -> None:
    help_ = run("--help")
    assert help_.returncode == 0
    for command in ("check", "score", "taxonomy", "prompt"):
        assert command in help_.stdout
    assert run("--version").stdout.startswith("guardrail ")
    assert run("check", "-h").stdout == run("check", "--help").stdout


@pytest.mark.parametrize("arguments", [[], ["taxonomy"]])
def test_no_arguments_show_the_help_as_it_is(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.lstrip().startswith("Usage: guardrail")
    assert len(done.stderr.splitlines()) > 8


def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, "check", "-m", "scripted:bad", "--json", "hi"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": "fine"}) + "\n" for _ in range(20000))
    (tmp_path / "in.jsonl").write_text(rows)
    score = [*COMMAND, "score", str(tmp_path / "in.jsonl"), "-o", "-", "-m", "scripted:bad"]
    with subprocess.Popen(score, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["verdict"] == "safe"
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(("closing", "name"), [("<&-", "stdin"), (">&-", "stdout")])
def test_a_closed_stream_is_one_line(closing: str, name: str) -> None:
    command = f'"{sys.executable}" -m guardrail check -m scripted:bad - {closing}'
    done = subprocess.run(["sh", "-c", command], input="hi", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"error: {name} is closed"
    assert len(done.stderr.splitlines()) == 2


def test_a_closed_stderr_says_nothing() -> None:
    command = f'"{sys.executable}" -m guardrail check -m scripted:bad --json {{}} 2>&-'
    done = subprocess.run(["sh", "-c", command.format("bad")], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["verdict"], done.stderr) == (0, "unsafe", "")
    done = subprocess.run(["sh", "-c", command.format("''")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
