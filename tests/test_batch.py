"""Bulk scoring: which rows there are, what they become, and what the command says."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import guardrail
from guardrail.backends.scripted import ScriptedBackend
from guardrail.batch import Options, score_file
from guardrail.errors import BackendError, InputError, RowError, UsageError
from guardrail.guard import Guard
from guardrail.prompting import Prompt
from guardrail.scoring import Logits

SCORE = [sys.executable, "-m", "guardrail", "score"]
SCRIPTED = ["--model", "scripted:bomb"]

Score = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def guard() -> Guard:
    return guardrail.load("scripted:bomb")


@pytest.fixture
def score(guard: Guard, tmp_path: Path) -> Score:
    """Scores the bytes of an input and returns the output's rows."""

    def run(data: bytes, **options: Any) -> list[dict[str, Any]]:
        (tmp_path / "in.jsonl").write_bytes(data)
        options.setdefault("overwrite", True)
        score_file(guard, tmp_path / "in.jsonl", tmp_path / "out.jsonl", Options(**options))
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]

    return run


def test_the_three_shapes_are_judged_for_who_spoke_last(score: Score) -> None:
    rows = score(
        b'{"id": "a", "text": "hello"}\n'
        b'{"id": "b", "prompt": "hello", "response": "a bomb"}\n'
        b'{"id": "c", "messages": [{"role": "user", "content": "bomb"}, {"role": "assistant", "content": "no"},'
        b' {"role": "user", "content": "why?"}]}\n'
    )
    assert [(row["id"], row["verdict"], row["role"]) for row in rows] == [
        ("a", "safe", "user"),
        ("b", "unsafe", "assistant"),
        ("c", "unsafe", "user"),
    ]
    assert list(rows[0]) == ["id", *guardrail.load("scripted:").check("x").to_dict()]


def test_the_arguments_of_a_call_are_judged(score: Score) -> None:
    (row,) = score(
        b'{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"type": "function",'
        b' "function": {"name": "search", "arguments": "{\\"for\\": \\"a bomb\\"}"}}]}]}\n'
    )
    assert (row["verdict"], row["role"]) == ("unsafe", "assistant")


def test_a_row_without_id_gets_its_line_number_and_blank_lines_count(score: Score, tmp_path: Path) -> None:
    rows = score(b'\n{"text": "a"}\n  \r\n{"text": "b"}\n')
    assert [row["id"] for row in rows] == [2, 4]


def test_other_keys_are_carried_through_and_none_replaces_the_decision(score: Score) -> None:
    row = {
        "id": None,
        "text": "a",
        "lang": "de",
        "score": 7,
        "error": "x",
        "line": 1,
        "input": [2],
        "tags": [{"a": 1.5}],
    }
    (scored,) = score(json.dumps(row).encode())
    assert scored["id"] is None
    assert scored["verdict"] == "safe"
    assert scored["score"] == pytest.approx(0.01)
    assert scored["error"] is None
    assert "line" not in scored
    assert (scored["lang"], scored["tags"]) == ("de", [{"a": 1.5}])
    assert scored["input"] == {"score": 7, "error": "x", "line": 1, "input": [2]}
    assert list(scored)[-3:] == ["lang", "tags", "input"]


BAD_ROWS = [
    (b'{"text": "a"', "not JSON: Expecting ',' delimiter at column 13"),
    (b"[]", "expected an object, got list"),
    (b'{"text": 5}', "text: expected a string, got int"),
    (b'{"text": null}', "text: expected a string, got NoneType"),
    (b'{"text": ["a"]}', "text: expected a string, got list"),
    (b'{"text": ""}', "text: is empty"),
    (b'{"text": " \\n"}', "text: is empty"),
    (b'{"text": "\xff"}', "not UTF-8: byte 0xff at position 11"),
    (b'{"text": "ab\\ud800"}', "text: half a surrogate pair, \\ud800, at character 3"),
    (b'{"text": "a", "text": "b"}', "the key 'text' occurs twice"),
    (b'{"text": "a", "weight": NaN}', "NaN is not a JSON number"),
    (b'{"text": "a", "messages": []}', "text and messages are in one row: which is meant?"),
    (b'{"text": "a", "response": "b"}', "text and response are in one row: which is meant?"),
    (b'{"prompt": "a"}', "response: missing"),
    (b'{"response": "a"}', "prompt: missing"),
    (b'{"prompt": "a", "response": 1}', "response: expected a string, got int"),
    (b'{"prompt": "a", "response": null}', "response: expected a string, got NoneType"),
    (b'{"prompt": "a", "response": ""}', "response: is empty"),
    (b'{"prompt": "\\udfff", "response": "b"}', "prompt: half a surrogate pair, \\udfff, at character 1"),
    (b'{"messages": []}', "messages: there is no message to judge"),
    (b'{"messages": "a"}', "messages: expected a list of messages, got str"),
    (
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        "messages: half a surrogate pair, \\ud800, at character 1",
    ),
    (b'{"messages": [{"role": "owner", "content": "a"}]}', "messages[0].role: unknown role 'owner'"),
    (
        b'{"messages": [{"role": "user", "content": 3}]}',
        "messages[0].content: expected text or a list of parts, got int",
    ),
    (b'{"messages": [{"role": "user", "text": "a"}]}', "messages[0].content: missing"),
    (b'{"texts": "a"}', "there is nothing to judge"),
    (b"{}", "there is nothing to judge"),
    (b'{"text": "' + b"a" * 600 + b'"}', "the line is longer than --max-line-bytes"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_is_recorded_in_its_place(score: Score, row: bytes, reason: str) -> None:
    rows = score(b'{"text": "a"}\n' + row + b'\n{"text": "b"}\n', max_line_bytes=500)
    assert [r["verdict"] for r in rows] == ["safe", "error", "safe"]
    bad = rows[1]
    assert (bad["id"], bad["line"], bad["flagged"], bad["score"], bad["categories"]) == (2, 2, True, None, [])
    assert bad["error"] == f"line 2: {reason}"
    assert (bad["model"], bad["taxonomy"], bad["template"]) == tuple(
        rows[0][k] for k in ("model", "taxonomy", "template")
    )


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_stops_the_run_when_asked(score: Score, tmp_path: Path, row: bytes, reason: str) -> None:
    data = b'{"text": "a"}\n' + row + b'\n{"text": "b"}\n'
    with pytest.raises(RowError) as caught:
        score(data, max_line_bytes=500, on_error="stop", batch_size=1)
    assert str(caught.value) == f"{tmp_path}/in.jsonl:2: {reason}"
    assert "correct the row and go on with --resume" in (caught.value.hint or "")
    rows = score(data, max_line_bytes=500, batch_size=1, resume=True, overwrite=False)
    assert [r["verdict"] for r in rows] == ["safe", "error", "safe"]


def test_a_stopped_run_goes_on_after_the_row_was_corrected(score: Score) -> None:
    good = b'{"text": "a"}\n' * 10
    with pytest.raises(RowError, match=r"in.jsonl:11: text: expected a string, got int"):
        score(good + b'{"text": 1}\n' + good, on_error="stop", batch_size=4)
    rows = score(good + b'{"text": "now a bomb"}\n' + good, on_error="stop", batch_size=4, resume=True, overwrite=False)
    assert [row["verdict"] for row in rows] == ["safe"] * 10 + ["unsafe"] + ["safe"] * 10


def test_an_error_row_keeps_its_id_and_its_other_keys(score: Score) -> None:
    (row,) = score(b'{"id": "x", "text": 1, "lang": "de", "model": "m"}')
    assert (row["id"], row["lang"], row["input"]) == ("x", "de", {"model": "m"})


def test_half_a_pair_in_a_carried_key_is_kept_as_an_escape(score: Score, tmp_path: Path) -> None:
    (row,) = score(b'{"text": "a", "note": "\\ud83d \\u2028"}')
    assert row["note"] == "\ud83d \u2028"
    assert b"\\ud83d \\u2028" in (tmp_path / "out.jsonl").read_bytes()


def failing(prompt: Prompt) -> Logits:
    if "fail" in prompt.text:
        raise BackendError("the device is gone")
    return Logits(0.0, -4.0, tuple(-4.0 for _ in prompt.taxonomy))


def test_a_row_on_which_the_classifier_fails_is_an_error_row(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "a"}\n{"id": 7, "text": "fail"}\n{"text": "b"}\n')
    guard = Guard(ScriptedBackend(failing))
    run = score_file(guard, source, target)
    assert (run.tally.rows, run.tally.safe, run.tally.errors) == (3, 2, 1)
    row = json.loads(target.read_bytes().splitlines()[1])
    assert (row["id"], row["line"], row["verdict"], row["flagged"]) == (7, 2, "error", True)
    assert row["error"] == "line 2: the device is gone"
    with pytest.raises(RowError, match=r"in.jsonl:2: the device is gone"):
        score_file(guard, source, target, Options(overwrite=True, on_error="stop"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([row for row, _ in BAD_ROWS] + [b"", b" ", b'{"text": "bomb"}']) | st.binary(max_size=40))
)
def test_there_is_one_output_row_per_line_that_is_not_blank(
    guard: Guard, tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    data = b"\n".join(lines)
    (folder / "in").write_bytes(b"\n" + data)  # no magic number at the start
    run = score_file(guard, folder / "in", folder / "out", Options(batch_size=3))
    expected = sum(1 for line in data.split(b"\n") if line.strip())
    rows = [json.loads(line) for line in (folder / "out").read_bytes().splitlines()]
    tally = run.tally
    assert len(rows) == tally.rows == tally.safe + tally.unsafe + tally.errors == expected
    assert all(row["flagged"] == (row["verdict"] != "safe") for row in rows)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_batch_size_changes_nothing(score: Score, size: int) -> None:
    data = b"".join(b'{"text": "%s"}\n' % (b"bomb" if n % 3 else b"x") for n in range(50))
    assert [row["id"] for row in score(data, batch_size=size)] == list(range(1, 51))


def test_long_rows_make_small_batches(guard: Guard, tmp_path: Path) -> None:
    with (tmp_path / "in").open("w") as file:
        for _ in range(5):
            file.write(json.dumps({"text": "a", "pad": "x" * 600_000}) + "\n")
    calls: list[int] = []
    score_file(guard, tmp_path / "in", "/dev/null", report=lambda run, lines: calls.append(run.tally.rows))
    assert calls == [0, 2, 4, 5]


def test_the_examples_are_all_judged(tmp_path: Path) -> None:
    examples = Path(guardrail.__file__).parent.parent / "examples" / "prompts.jsonl"
    run = score_file(guardrail.load(), examples, tmp_path / "out")
    assert (run.tally.rows, run.tally.errors) == (12, 0)
    rows = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert [row["id"] for row in rows] == [json.loads(line)["id"] for line in examples.read_bytes().splitlines()]
    assert all(0.0 < row["score"] < 1.0 and row["topic"] for row in rows)


def test_gzip_in_and_out(guard: Guard, score: Score, tmp_path: Path) -> None:
    data = b'{"text": "a"}\n' * 100
    plain = score(data, batch_size=30)
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(data))
    packed = tmp_path / "packed.jsonl.gz"
    for _ in range(2):
        score_file(guard, tmp_path / "in.jsonl.gz", packed, Options(batch_size=30, overwrite=True))
        first = packed.read_bytes()
    assert [json.loads(line) for line in gzip.decompress(first).splitlines()] == plain
    assert subprocess.run(["gzip", "-t", packed], check=False).returncode == 0
    assert packed.read_bytes() == first


def test_an_empty_input_gives_an_empty_output(guard: Guard, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\n\n")
    for name in ("out.jsonl", "out.jsonl.gz"):
        assert score_file(guard, tmp_path / "in", tmp_path / name).tally.blank == 2
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()) == b""
    assert (tmp_path / "out.jsonl.gz").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "--engine is 'spark'"),
        ({"on_error": "skip"}, "--on-error is 'skip'"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"max_line_bytes": -1}, "--max-line-bytes is -1"),
    ],
)
def test_options_are_checked_when_they_are_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(**options)


def test_the_files_are_checked_before_anything_is_written(guard: Guard, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    with pytest.raises(InputError, match="No such file"):
        score_file(guard, source, tmp_path / "out")
    source = tmp_path / "x.partial"
    source.write_text('{"text": "a"}\n')
    (tmp_path / "link").symlink_to(source)
    cases: list[tuple[Path | str, Options, str]] = [
        (tmp_path / "link", Options(overwrite=True), "is the input"),
        (tmp_path / "x", Options(overwrite=True), "x.partial is the input"),
        (tmp_path, Options(), "is a folder"),
        (".", Options(), "-o: . is a folder"),
        ("./", Options(), "-o: ./ is a folder"),
        ("/", Options(overwrite=True), "-o: / is a folder"),
        ("", Options(), "-o: the name is empty"),
        (tmp_path / "no" / "out", Options(), "there is no folder"),
        ("-", Options(resume=True), "cannot be continued"),
        (tmp_path / "out", Options(resume=True, overwrite=True), "exclude each other"),
    ]
    for target, options, message in cases:
        with pytest.raises(UsageError, match=message):
            score_file(guard, source, target, options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "x.partial"]


@pytest.mark.parametrize("suffix", [".partial", ".run.json", ".run.json.new"])
def test_no_file_of_the_run_is_the_input(guard: Guard, tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"out{suffix}"
    source.write_text('{"text": "a"}\n')
    for options in (Options(), Options(overwrite=True), Options(resume=True)):
        with pytest.raises(UsageError, match=f"out{suffix} is the input"):
            score_file(guard, source, tmp_path / "out", options)
    assert source.read_text() == '{"text": "a"}\n'


def test_a_file_that_is_called_like_the_record_is_not_overwritten(guard: Guard, tmp_path: Path) -> None:
    source, record = tmp_path / "in.jsonl", tmp_path / "out.run.json"
    source.write_text('{"text": "a"}\n')
    record.write_text('{"mine": 1}')
    with pytest.raises(UsageError, match=r"out.run.json is there and is not the record of a run") as caught:
        score_file(guard, source, tmp_path / "out")
    assert "--overwrite" in (caught.value.hint or "")
    assert record.read_text() == '{"mine": 1}'
    assert score_file(guard, source, tmp_path / "out", Options(overwrite=True)).done
    (tmp_path / "out").unlink()
    assert score_file(guard, source, tmp_path / "out").done


def test_a_link_is_written_through(guard: Guard, tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"text": "a"}\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "folder" / "real")
    score_file(guard, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert len((tmp_path / "folder" / "real").read_bytes().splitlines()) == 1


def command(*arguments: str | Path, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*SCORE, *arguments, *SCRIPTED], input=stdin, capture_output=True, check=False, **options)


def test_stdin_to_stdout_has_data_there_and_one_line_on_stderr() -> None:
    done = command("-", stdin=b'{"text": "a"}\n\n{"text": "bomb"}\n{"text": 1}\n')
    assert done.returncode == 0
    assert [json.loads(line)["verdict"] for line in done.stdout.splitlines()] == ["safe", "unsafe", "error"]
    (summary,) = done.stderr.decode().splitlines()
    assert summary.startswith("stdout: 3 rows: 1 safe, 1 unsafe, 1 error, 1 blank line skipped; ")
    assert summary.endswith(" rows/s")


def test_the_output_is_not_appended_to_the_input(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"text": "a"}\n')
    for source in (str(file), "-"):
        with file.open("rb") as stdin, file.open("ab") as stdout:
            done = subprocess.run(
                [*SCORE, source, *SCRIPTED], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=60
            )
        assert (done.returncode, done.stderr.splitlines()[0]) == (2, b"error: -o: stdout is the input")
    with file.open("rb") as stdin:
        done = subprocess.run(
            [*SCORE, "-", "-o", file, "--overwrite", *SCRIPTED], stdin=stdin, capture_output=True, check=False
        )
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"error: -o: {file} is the input".encode())
    assert file.read_bytes() == b'{"text": "a"}\n'


def test_a_terminal_gets_a_progress_bar_and_then_the_summary(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a"}\n' * 3000)
    master, slave = os.openpty()
    arguments = [*SCORE, str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), *SCRIPTED]
    process = subprocess.Popen(arguments, stderr=slave, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"})
    os.close(slave)
    said = b""
    with suppress(OSError):  # how Linux says that the other end was closed
        while piece := os.read(master, 4096):
            said += piece
    os.close(master)
    assert process.wait() == 0
    assert re.search(rb"[1-9]\d+ rows .*%.* rows/s", said)
    assert b"3000 rows: 3000 safe, 0 unsafe, 0 errors; " in said.splitlines()[-1]


def test_stopping_at_a_row_is_one_line_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    done = command("in.jsonl", "-o", "out.jsonl", "--on-error", "stop", cwd=tmp_path, env=paths())
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [
        "error: in.jsonl:2: text: expected a string, got int",
        "hint: correct the row and go on with --resume, or give --on-error record",
    ]


def test_an_engine_that_is_not_there_is_wrong_usage() -> None:
    done = command("-", "--engine", "spark")
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "error: --engine is 'spark', which does not exist",
        "hint: engines: local, ray",
    ]


def test_a_reader_that_goes_away_ends_the_run_quietly(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a"}\n' * 5000)
    process = subprocess.Popen(
        [*SCORE, tmp_path / "in.jsonl", *SCRIPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.wait() == 1
    (line,) = said.splitlines()
    assert line.startswith("stopped: the reader of stdout has gone; ")


def test_a_full_disk_is_one_line_and_the_run_can_go_on(guard: Guard, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a"}\n' * 500)
    score_file(guard, tmp_path / "in.jsonl", tmp_path / "whole.jsonl")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = command(tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", preexec_fn=small)
    assert done.returncode == 1
    error, hint = done.stderr.decode().splitlines()
    assert error == f"error: {tmp_path}/out.jsonl.partial: cannot be written: File too large"
    assert "--resume" in hint
    assert command(tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "--resume").returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_that_takes_nothing_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*SCORE, "-", *SCRIPTED], input=b'{"text": "a"}\n', stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"error: stdout: cannot be written: No space left on device\n"


def paths() -> dict[str, str]:
    """The environment for a command that runs in another folder."""
    return os.environ | {"PYTHONPATH": str(Path(guardrail.__file__).parent.parent)}


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    code = f"""
import json, resource
import guardrail
from guardrail.batch import Options, score_file
def peak(rows):
    with open({str(tmp_path / "in")!r}, "w") as file:
        for row in range(rows):
            file.write(json.dumps({{"id": row, "text": f"What is {{row}} times two?", "lang": "en"}}) + "\\n")
    run = score_file(guard, {str(tmp_path / "in")!r}, {str(tmp_path / "out")!r}, Options(overwrite=True))
    assert run.tally.safe == rows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
guard = guardrail.load("scripted:bomb")
few = peak(5_000)
print(peak(100_000) - few)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16_000  # KiB
