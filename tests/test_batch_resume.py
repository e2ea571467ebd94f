"""Interrupted runs: killed, stopped by hand, resumed with other input or other options."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import guardrail
from guardrail.batch import Options, score_file
from guardrail.batch_run import Run
from guardrail.errors import ResumeError, UsageError
from guardrail.guard import Guard
from guardrail.jsonl import LineReader

KILL_SCORE = Path(__file__).with_name("kill_score.py")
MIXED = [
    b'{"text": "hello", "n": 1}',
    b'{"id": "x", "text": "a bomb"}',
    b'{"text": 1}',
    b"",
    b"\xff",
    b'{"text": "\\u4f60"}',
]


class Stopped(Exception):
    """Stands for whatever ends a run from outside."""


@pytest.fixture(scope="module")
def guard() -> Guard:
    return guardrail.load("scripted:bomb")


def stop_at(call: int) -> Callable[[Run, LineReader], None]:
    """A report that raises when it is called for the n-th time, from 0."""
    calls = iter(range(call + 1))

    def report(run: Run, lines: LineReader) -> None:
        if next(calls) == call:
            raise Stopped

    return report


def interrupted(guard: Guard, source: Path, target: Path, at: int, options: Options) -> bool:
    """Whether the run was stopped before its end."""
    try:
        score_file(guard, source, target, options, report=stop_at(at))
    except Stopped:
        return True
    except StopIteration:  # pragma: no cover
        raise AssertionError("the report went on after the stop") from None
    return False


def mixed(path: Path, lines: int) -> Path:
    path.write_bytes(b"".join(MIXED[number % len(MIXED)] + b"\n" for number in range(lines)))
    return path


def kill_score(*arguments: str | Path) -> int:
    """How many attempts were killed."""
    command = [sys.executable, KILL_SCORE, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(guardrail.__file__).parent.parent)}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize(("lines", "kills"), [(2400, 60), (60, 60), (30, 0)])
def test_killed_at_any_moment_the_output_is_that_of_one_run(
    guard: Guard, tmp_path: Path, lines: int, kills: int, suffix: str
) -> None:
    source, whole = mixed(tmp_path / "in.jsonl", lines), tmp_path / f"whole{suffix}"
    score_file(guard, source, whole, Options(batch_size=8))
    (tmp_path / "outs").mkdir()
    killed = kill_score(source, tmp_path / "outs", suffix, *(["--kills", str(kills)] if kills else []))
    assert killed >= (kills or 15)
    outputs = list((tmp_path / "outs").glob(f"*{suffix}"))
    assert outputs
    assert all(output.read_bytes() == whole.read_bytes() for output in outputs)
    assert len(list((tmp_path / "outs").iterdir())) == 2 * len(outputs)  # with the records, nothing else
    opened = gzip.open if suffix.endswith("gz") else open
    with opened(whole, "rb") as file:
        assert sum(1 for _ in file) == lines * 5 // 6


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(MIXED), max_size=40), st.integers(1, 9), st.lists(st.integers(0, 5), max_size=4))
def test_stopped_between_any_batches_the_output_is_that_of_one_run(
    guard: Guard, tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], size: int, stops: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("stops")
    source, whole, target = folder / "in", folder / "whole", folder / "out"
    source.write_bytes(b"\n".join(lines))
    complete = score_file(guard, source, whole, Options(batch_size=size))
    for at in stops:
        interrupted(guard, source, target, at, Options(batch_size=size, resume=True))
    resumed = score_file(guard, source, target, Options(batch_size=size, resume=True))
    assert target.read_bytes() == whole.read_bytes()
    assert resumed == complete


def test_the_embedded_model_gives_the_same_bytes_after_a_resume(tmp_path: Path) -> None:
    source = tmp_path / "in"
    texts = (f"Row {n}: {'How do I stop a process that does not answer? ' * (n * 7 % 11)}" for n in range(90))
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    guard = guardrail.load(threads=1)
    score_file(guard, source, tmp_path / "whole", Options(batch_size=16))
    assert interrupted(guard, source, tmp_path / "out", 2, Options(batch_size=16))
    score_file(guardrail.load(threads=1), source, tmp_path / "out", Options(batch_size=16, resume=True))
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_torn_last_batch_is_cut_off_and_scored_again(guard: Guard, tmp_path: Path) -> None:
    source = mixed(tmp_path / "in", 100)
    score_file(guard, source, tmp_path / "whole", Options(batch_size=8))
    assert interrupted(guard, source, tmp_path / "out", 3, Options(batch_size=8))
    with (tmp_path / "out.partial").open("ab") as file:
        file.write(b'{"id": 99, "verdict": "sa')
    score_file(guard, source, tmp_path / "out", Options(batch_size=8, resume=True))
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_without_resume_nothing_is_overwritten(guard: Guard, tmp_path: Path) -> None:
    source, target = mixed(tmp_path / "in", 100), tmp_path / "out"
    assert interrupted(guard, source, target, 3, Options(batch_size=8))
    partial = (tmp_path / "out.partial").read_bytes()
    with pytest.raises(UsageError, match=r"out.partial is there: an earlier run") as caught:
        score_file(guard, source, target)
    assert "--resume" in (caught.value.hint or "")
    assert (tmp_path / "out.partial").read_bytes() == partial
    score_file(guard, source, target, Options(overwrite=True))
    scored = target.read_bytes()
    with pytest.raises(UsageError, match="out is there already"):
        score_file(guard, source, target)
    assert target.read_bytes() == scored


def test_overwriting_keeps_the_old_output_until_the_new_one_is_whole(guard: Guard, tmp_path: Path) -> None:
    source, target = mixed(tmp_path / "in", 100), tmp_path / "out"
    target.write_bytes(b"old")
    assert interrupted(guard, source, target, 3, Options(batch_size=8, overwrite=True))
    assert target.read_bytes() == b"old"
    score_file(guard, source, target, Options(batch_size=8, resume=True))
    assert len(target.read_bytes().splitlines()) > 50


def test_resuming_a_finished_run_changes_nothing(guard: Guard, tmp_path: Path) -> None:
    source, target = mixed(tmp_path / "in", 100), tmp_path / "out"
    run = score_file(guard, source, target)
    before = target.stat()
    assert score_file(guard, source, target, Options(resume=True)) == run
    assert target.stat().st_mtime_ns == before.st_mtime_ns
    with source.open("ab") as file:
        file.write(b'{"text": "new"}\n')
    with pytest.raises(ResumeError, match="the input has grown"):
        score_file(guard, source, target, Options(resume=True))


def test_resuming_with_another_guard_or_other_options_is_an_error(guard: Guard, tmp_path: Path) -> None:
    source, target = mixed(tmp_path / "in", 100), tmp_path / "out"
    assert interrupted(guard, source, target, 3, Options(batch_size=8))
    other = guardrail.load("scripted:bomb", threshold=0.3)
    with pytest.raises(ResumeError, match=r"out: guard: the earlier run had scripted:bomb@script .*, this one has "):
        score_file(other, source, target, Options(resume=True))
    with pytest.raises(ResumeError, match="--max-line-bytes: the earlier run had 10000000, this one has 500"):
        score_file(guard, source, target, Options(resume=True, max_line_bytes=500))


def test_resuming_with_other_input_is_an_error_and_new_lines_at_its_end_are_not(guard: Guard, tmp_path: Path) -> None:
    source, target = mixed(tmp_path / "in", 100), tmp_path / "out"
    assert interrupted(guard, source, target, 3, Options(batch_size=8))
    data = source.read_bytes()
    source.write_bytes(b'{"text": "HELLO"}\n' + data)
    with pytest.raises(ResumeError, match=r"in: the first \d+ lines are not those that were scored before"):
        score_file(guard, source, target, Options(resume=True))
    source.write_bytes(data + b'{"id": "last", "text": "new"}\n')
    score_file(guard, source, target, Options(resume=True))
    assert json.loads(target.read_bytes().splitlines()[-1])["id"] == "last"


@pytest.mark.parametrize("record", [b"", b"{}", b"[]", b'{"format": 2}', b'{"format": 1, "guard": 3}', b"\xff"])
def test_a_broken_record_is_an_error(guard: Guard, tmp_path: Path, record: bytes) -> None:
    source, target = mixed(tmp_path / "in", 100), tmp_path / "out"
    assert interrupted(guard, source, target, 3, Options(batch_size=8))
    (tmp_path / "out.run.json").write_bytes(record)
    with pytest.raises(ResumeError, match=r"out.run.json: this is not the record of a run"):
        score_file(guard, source, target, Options(resume=True))


def test_missing_pieces_are_errors(guard: Guard, tmp_path: Path) -> None:
    source, target = mixed(tmp_path / "in", 100), tmp_path / "out"
    assert interrupted(guard, source, target, 3, Options(batch_size=8))
    partial, record = tmp_path / "out.partial", tmp_path / "out.run.json"
    data, kept = partial.read_bytes(), record.read_bytes()
    partial.write_bytes(data[:-1])
    with pytest.raises(ResumeError, match=r"out.partial: shorter than its record says"):
        score_file(guard, source, target, Options(resume=True))
    partial.unlink()
    with pytest.raises(ResumeError, match=r"out.partial: the file is gone"):
        score_file(guard, source, target, Options(resume=True))
    partial.write_bytes(data)
    record.unlink()
    with pytest.raises(ResumeError, match="there is no record of the run"):
        score_file(guard, source, target, Options(resume=True))
    record.write_bytes(kept)
    score_file(guard, source, target, Options(resume=True))


def test_two_processes_cannot_write_one_output(guard: Guard, tmp_path: Path) -> None:
    source, target = mixed(tmp_path / "in", 100), tmp_path / "out"

    def second(run: Run, lines: LineReader) -> None:
        with pytest.raises(ResumeError, match="another process is writing it"):
            score_file(guard, source, target, Options(resume=True))

    score_file(guard, source, target, Options(batch_size=8, sync_seconds=0.0), report=second)
    assert len(target.read_bytes().splitlines()) > 50


def wait_for(path: Path, size: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size >= size:
                return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not grow to {size} bytes")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_interrupted_while_it_waits_for_input(guard: Guard, tmp_path: Path, how: signal.Signals) -> None:
    source, target = mixed(tmp_path / "in", 200), tmp_path / "out"
    score_file(guard, source, tmp_path / "whole", Options(batch_size=16))
    whole = (tmp_path / "whole").read_bytes()
    command = [sys.executable, "-m", "guardrail", "score", "-", "-o", str(target), "--batch-size", "16"]
    command += ["--model", "scripted:bomb"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    with process.stdin, process.stderr:
        process.stdin.write(b"".join(source.read_bytes().splitlines(keepends=True)[:100]))
        process.stdin.flush()
        wait_for(tmp_path / "out.partial", sum(map(len, whole.splitlines(keepends=True)[:80])))
        time.sleep(0.1)  # until it waits
        process.send_signal(how)
        said = process.stderr.read().decode().splitlines()
    assert process.wait() == (130 if how is signal.SIGINT else -how)
    if how is signal.SIGINT:
        assert said[0].startswith("error: interrupted; 80 rows: ")
        assert said[1] == "hint: the same command with --resume goes on from there"
    assert not target.exists()
    done = subprocess.run([*command, "--resume"], input=source.read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == whole
    if how is signal.SIGINT:
        assert b", 80 of them in an earlier run; " in done.stderr
