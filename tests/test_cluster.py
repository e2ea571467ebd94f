"""The cluster engine with one worker in this process: what it writes, what it refuses, how it goes on."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra ray")

from guardrail.batch import Options
from guardrail.batch_run import Tally
from guardrail.cluster import engine, failures
from guardrail.cluster import worker as worker_module
from guardrail.cluster.engine import ClusterOptions, Progress
from guardrail.cluster.model import ModelSpec
from guardrail.cluster.pool import Pool, Size
from guardrail.cluster.records import Record
from guardrail.cluster.shards import Shard
from guardrail.cluster.storage import find
from guardrail.cluster.worker import Job, Worker
from guardrail.errors import GuardrailError, InputError, MissingExtraError, ResumeError, RowError, UsageError
from tests.cluster_inputs import LONG, as_json, lines, parquet_rows, scored_locally

SPEC = ModelSpec.read("scripted:bomb")


class OneWorker(Pool):
    """No cluster: the worker is called here."""

    def answers(self, shards: Sequence[Shard], job: Job) -> Generator[str]:
        worker = Worker(job)
        # From the last one: a cluster keeps no order either.
        for shard in reversed(shards):
            yield from worker({"shard": [shard.to_json()]})["record"]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(address: str | None, size: Size) -> Iterator[Pool]:
        yield OneWorker(size)

    monkeypatch.setattr(engine, "opened", opened)


def score(
    source: Path | str,
    target: Path | str,
    *,
    report: engine.Report | None = None,
    part_bytes: int = 300,
    **options: Any,
) -> Progress:
    options.setdefault("max_line_bytes", LONG)
    return engine.score(
        str(source),
        str(target),
        SPEC,
        Options(engine="ray", **options),
        ClusterOptions(part_bytes=part_bytes),
        report=report,
    )


def stop_after(parts: int) -> engine.Report:
    """A report that ends the run as Ctrl-C does."""

    def report(progress: Progress) -> None:
        if progress.record is not None and progress.parts >= parts:
            raise KeyboardInterrupt

    return report


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("part_bytes", [1, 64, 300, 1 << 20])
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_the_output_is_that_of_the_local_engine(tmp_path: Path, rows: int, part_bytes: int) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(rows) if rows else b"")
    expected, run = scored_locally(tmp_path / "in.jsonl", tmp_path / "local.jsonl")
    seen: list[Progress] = []
    done = score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", part_bytes=part_bytes, report=seen.append)
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert done.tally == run.tally
    assert [progress.parts for progress in seen] == list(range(done.planned + 1))
    assert names(tmp_path) == ["in.jsonl", "local.jsonl", "local.jsonl.run.json", "out.jsonl", "out.jsonl.run.json"]
    record = json.loads((tmp_path / "out.jsonl.run.json").read_bytes())
    assert record["done"]
    assert Tally(**record["tally"]) == run.tally


def several(folder: Path) -> bytes:
    """Files of all kinds in a folder, and what becomes of their rows."""
    from pyarrow import Table, parquet

    folder.mkdir()
    expected = b""
    for number, name in enumerate(("a.jsonl", "b.jsonl.gz", "c.jsonl")):
        data = lines(30, start=100 * number)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        expected += scored_locally(folder / name, folder.parent / "local.jsonl")[0]
    rows = parquet_rows()
    parquet.write_table(Table.from_pylist(rows), folder / "d.parquet", row_group_size=70)
    (folder.parent / "d.jsonl").write_bytes(as_json(rows))
    return expected + scored_locally(folder.parent / "d.jsonl", folder.parent / "local.jsonl")[0]


@pytest.mark.parametrize("source", ["in", "in/*", "file"])
def test_many_files_are_one_output_in_the_order_of_their_names(tmp_path: Path, source: str) -> None:
    expected = several(tmp_path / "in")
    score(f"file://{tmp_path}/in/*" if source == "file" else f"{tmp_path}/{source}", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == expected


def test_a_folder_keeps_its_parts_and_their_names_sort_as_the_input_does(tmp_path: Path) -> None:
    expected = several(tmp_path / "in")
    done = score(tmp_path / "in", f"{tmp_path}/out/")
    parts = sorted((tmp_path / "out").glob("part-*.jsonl"))
    assert len(parts) == done.planned > 10
    assert b"".join(part.read_bytes() for part in parts) == expected
    again = score(tmp_path / "in", f"{tmp_path}/out/", resume=True)
    assert (again.tally, again.planned) == (done.tally, 0)
    with pytest.raises(UsageError, match="is there already"):
        score(tmp_path / "in", f"{tmp_path}/out/")
    (tmp_path / "in" / "d.parquet").unlink()
    with pytest.raises(ResumeError, match=r"d.parquet, an input of the earlier run, is missing"):
        score(tmp_path / "in", f"{tmp_path}/out/", resume=True)
    fewer = score(tmp_path / "in", f"{tmp_path}/out/", overwrite=True)
    assert len(list((tmp_path / "out").glob("part-*.jsonl"))) == fewer.planned < done.planned


def test_a_compressed_output_is_gzip_and_holds_the_same(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(60))
    expected, _ = scored_locally(tmp_path / "in.jsonl", tmp_path / "local.jsonl")
    score(tmp_path / "in.jsonl", tmp_path / "out.jsonl.gz")
    assert gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()) == expected
    (tmp_path / "none.jsonl").write_bytes(b"\n")
    score(tmp_path / "none.jsonl", tmp_path / "none.jsonl.gz")
    assert (tmp_path / "none.jsonl.gz").stat().st_size > 0
    assert gzip.decompress((tmp_path / "none.jsonl.gz").read_bytes()) == b""


@pytest.mark.parametrize("parts", [1, 3, 7])
@pytest.mark.parametrize("target", ["out.jsonl", "out/"])
def test_an_interrupted_run_goes_on(tmp_path: Path, target: str, parts: int) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines(100))
    expected, run = scored_locally(source, tmp_path / "local.jsonl")
    with pytest.raises(KeyboardInterrupt):
        score(source, f"{tmp_path}/{target}", report=stop_after(parts))
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(UsageError, match="an earlier run did not come to its end"):
        score(source, f"{tmp_path}/{target}")
    seen: list[Progress] = []
    done = score(source, f"{tmp_path}/{target}", resume=True, report=seen.append)
    assert (seen[0].parts, done.tally) == (parts, run.tally)
    assert len(seen) == done.planned - parts + 1
    written = sorted((tmp_path / "out").glob("part-*")) if target == "out/" else [tmp_path / "out.jsonl"]
    assert b"".join(path.read_bytes() for path in written) == expected


def test_a_part_without_its_record_or_of_another_size_is_scored_again(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines(100))
    expected, _ = scored_locally(source, tmp_path / "local.jsonl")
    with pytest.raises(KeyboardInterrupt):
        score(source, tmp_path / "out.jsonl", report=stop_after(6))
    run = tmp_path / "out.jsonl.parts" / "_run"
    first, second, third, *_ = sorted(run.glob("part-*.json"))
    first.unlink()
    second.write_bytes(b'{"half')
    part = run.parent / f"{third.stem}.jsonl"
    part.write_bytes(part.read_bytes()[:-1])
    seen: list[Progress] = []
    score(source, tmp_path / "out.jsonl", resume=True, report=seen.append)
    assert seen[0].parts == 3
    assert (tmp_path / "out.jsonl").read_bytes() == expected


def test_a_part_with_other_content_is_found_when_it_is_joined(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines(100))
    expected, _ = scored_locally(source, tmp_path / "local.jsonl")
    with pytest.raises(KeyboardInterrupt):
        score(source, tmp_path / "out.jsonl", report=stop_after(6))
    part = sorted((tmp_path / "out.jsonl.parts").glob("part-*"))[0]
    part.write_bytes(part.read_bytes().replace(b"safe", b"SAFE"))
    with pytest.raises(ResumeError, match=f"{part.name}: not what its record says"):
        score(source, tmp_path / "out.jsonl", resume=True)
    assert not (tmp_path / "out.jsonl").exists()
    score(source, tmp_path / "out.jsonl", resume=True)
    assert (tmp_path / "out.jsonl").read_bytes() == expected


def test_another_input_or_other_options_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines(100))
    with pytest.raises(KeyboardInterrupt):
        score("in.jsonl", "out.jsonl", report=stop_after(2))
    before = names(tmp_path)
    with pytest.raises(ResumeError, match=r"out.jsonl: --part-bytes: the earlier run had 300, this one has 301"):
        score("in.jsonl", "out.jsonl", resume=True, part_bytes=301)
    with pytest.raises(ResumeError, match="--max-line-bytes: the earlier run had 400, this one has 401"):
        score("in.jsonl", "out.jsonl", resume=True, max_line_bytes=401)
    monkeypatch.setattr(sys.modules[__name__], "SPEC", ModelSpec.read("scripted:bomb", threshold=0.25))
    with pytest.raises(ResumeError, match=r"threshold: the earlier run had None, this one has 0.25"):
        score("in.jsonl", "out.jsonl", resume=True)
    os.utime(source, ns=(1, 1))
    with pytest.raises(ResumeError, match=r"out.jsonl: in.jsonl has changed since the earlier run"):
        score("in.jsonl", "out.jsonl", resume=True)
    (tmp_path / "in2.jsonl").write_bytes(b"")
    with pytest.raises(ResumeError, match=r"in2.jsonl was not among the inputs"):
        score("in2.jsonl", "out.jsonl", resume=True)
    assert names(tmp_path) == sorted([*before, "in2.jsonl"])


def test_an_input_that_changes_while_it_is_scored_ends_the_run(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines(100))

    def change(progress: Progress) -> None:
        if progress.parts == 2:
            source.write_bytes(b"{}\n" * 2000)

    with pytest.raises(InputError, match=r"in.jsonl: has changed since the run began"):
        score(source, tmp_path / "out.jsonl", report=change)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_bad_row_stops_the_run_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(b'{"text": "a"}\n' * 30 + b'\n{"text": 5}\n' + b'{"text": "b"}\n' * 30)
    with pytest.raises(RowError) as caught:
        score("in.jsonl", "out.jsonl", on_error="stop", part_bytes=100)
    assert str(caught.value) == "in.jsonl:32: text: expected a string, got int"
    assert "--on-error record" in (caught.value.hint or "")
    done = score("in.jsonl", "out.jsonl", resume=True, part_bytes=100)
    assert (done.tally.safe, done.tally.errors, done.tally.blank) == (60, 1, 1)
    rows = [json.loads(line) for line in Path("out.jsonl").read_bytes().splitlines()]
    assert [row["id"] for row in rows if row["verdict"] == "error"] == [32]


def job(folder: Path, **changes: Any) -> Job:
    options: dict[str, Any] = {
        "run": "one",
        "model": SPEC,
        "folder": str(folder),
        "suffix": ".jsonl",
        "batch_size": 8,
        "max_line_bytes": LONG,
        "stop": False,
        "retries": 2,
        "cpus": 1,
        "gpu": False,
        "guard": None,
    }
    return Job(**(options | changes))


def answer(job: Job, source: Path | str) -> tuple[Record | None, GuardrailError | None]:
    found = find(str(source))
    (text,) = Worker(job)({"shard": [Shard(0, "lines", found, 0, found.size, 0).to_json()]})["record"]
    return Record.from_json(text), failures.decode(text)


def test_a_part_that_kills_every_worker_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(10))
    tries = tmp_path / "out" / "_run" / "part-00000.tries"
    tries.parent.mkdir(parents=True)
    tries.write_text("one 2")
    record, error = answer(job(tmp_path / "out"), tmp_path / "in.jsonl")
    assert record is not None
    assert (record.tries, error) == (3, None)
    (tmp_path / "out" / "_run" / "part-00000.json").unlink()
    _, error = answer(job(tmp_path / "out"), tmp_path / "in.jsonl")
    assert str(error) == f"{tmp_path}/in.jsonl after line 0: 3 workers died while they scored this part"
    record, _ = answer(job(tmp_path / "out", run="two"), tmp_path / "in.jsonl")
    assert record is not None
    assert record.tries == 1


def test_a_worker_does_not_score_a_part_again_that_is_whole(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(10))
    first, _ = answer(job(tmp_path / "out"), tmp_path / "in.jsonl")
    part = tmp_path / "out" / "part-00000.jsonl"
    before = part.stat().st_mtime_ns
    assert answer(job(tmp_path / "out"), tmp_path / "in.jsonl") == (first, None)
    assert part.stat().st_mtime_ns == before


@pytest.mark.parametrize("far", [True, False])
def test_a_storage_that_is_far_away_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far: bool) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(10))
    failing = iter([InputError("cannot be read: gone"), GuardrailError("cannot be written: gone")])
    written = Worker._written

    def sometimes(self: Worker, *arguments: Any) -> Record:
        for error in failing:
            raise error
        return written(self, *arguments)

    monkeypatch.setattr(Worker, "_written", sometimes)
    monkeypatch.setattr(worker_module, "_PAUSES", (0.0, 0.0))
    source = f"file://{tmp_path}/in.jsonl" if far else f"{tmp_path}/in.jsonl"
    record, error = answer(job(tmp_path / "out"), source)
    assert (record is None) == (error is not None) == (not far)
    assert [str(left) for left in failing] == ([] if far else ["cannot be written: gone"])


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"guard": "another"}, ResumeError, "guard: the earlier run had another, this one has scripted:bomb@script"),
        ({"package": "9.9"}, GuardrailError, "the worker has guardrail .*, the command has 9.9"),
        ({"model": ModelSpec.read("encoder:/nowhere")}, GuardrailError, "nowhere"),
        ({"gpu": True}, UsageError, "takes no option 'device'"),
    ],
)
def test_a_worker_that_cannot_work_says_why(
    tmp_path: Path, changes: dict[str, Any], kind: type[GuardrailError], message: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(10))
    record, error = answer(job(tmp_path / "out", **changes), tmp_path / "in.jsonl")
    assert record is None
    assert isinstance(error, kind)
    with pytest.raises(kind, match=message):
        raise error


def test_workers_with_different_guards_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(100))
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", report=stop_after(2))
    record = next((tmp_path / "out.jsonl.parts" / "_run").glob("part-*.json"))
    record.write_text(record.read_text().replace("scripted:bomb@script", "scripted:bomb@other"))
    with pytest.raises(ResumeError, match="other workers had"):
        score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", resume=True)


def test_what_cannot_be_asked_for_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(b'{"text": "a"}\n')
    Path("folder").mkdir()
    Path("folder/notes.txt").write_bytes(b"mine")
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("-", "out.jsonl", {}, "the ray engine reads files"),
        ("in.jsonl", "-", {}, "the ray engine writes files"),
        ("in.jsonl", "in.jsonl", {"overwrite": True}, "is an input"),
        ("in.jsonl", "folder", {}, "is a folder"),
        ("in.jsonl", "folder/", {}, "is there already"),
        ("in.jsonl", "folder/", {"overwrite": True}, r"holds notes.txt, which no run wrote"),
        ("in.jsonl", "in.jsonl/", {}, "is a file"),
        ("in.jsonl", "no/out.jsonl", {}, "there is no folder"),
        ("in.jsonl", "no/out/", {}, "there is no folder"),
        ("in.jsonl", "s3://bucket/out.jsonl", {}, "would be a folder of parts"),
        ("in.jsonl", "out.jsonl", {"resume": True, "overwrite": True}, "exclude each other"),
    ]
    for source, target, options, message in cases:
        with pytest.raises(UsageError, match=message):
            score(source, target, **options)
    assert names(tmp_path) == ["folder/notes.txt", "in.jsonl"]
    with pytest.raises(InputError, match="No such file"):
        score("none.jsonl", "out.jsonl")


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: ClusterOptions(part_bytes=0), "--part-bytes is 0"),
        (lambda: ClusterOptions(retries=-1), "--retries is -1"),
        (lambda: Size(workers=0), "--workers is 0"),
        (lambda: Size(cpus=0), "--cpus-per-worker is 0"),
        (lambda: Size(gpus=-1.0), "--gpus-per-worker is -1.0"),
    ],
)
def test_sizes_are_checked(make: Callable[[], object], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        make()


def test_outputs_of_the_two_engines_are_not_mixed_up(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(20))
    scored_locally(tmp_path / "in.jsonl", tmp_path / "local.jsonl")
    with pytest.raises(ResumeError, match="there is no record"):
        score(tmp_path / "in.jsonl", tmp_path / "local.jsonl", resume=True)
    score(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(ResumeError, match="this is not the record of a run"):
        scored_locally_again(tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def scored_locally_again(source: Path, target: Path) -> None:
    import guardrail
    from guardrail.batch import score_file

    score_file(guardrail.load("scripted:bomb"), source, target, Options(resume=True))


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(100))

    def second(progress: Progress) -> None:
        if progress.parts == 2:
            score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", resume=True)

    with pytest.raises(ResumeError, match="another process is writing it"):
        score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", report=second)


def test_a_part_on_the_disk_of_another_machine_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(100))

    def elsewhere(self: OneWorker, shards: Sequence[Shard], job: Job) -> Generator[str]:
        yield from Worker(replace(job, folder=str(tmp_path / "elsewhere")))({"shard": [shards[0].to_json()]})["record"]

    monkeypatch.setattr(OneWorker, "answers", elsewhere)
    with pytest.raises(GuardrailError, match=r"part-00000.jsonl: .* has written it, but it is not here"):
        score(tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def test_a_taxonomy_and_a_calibration_travel_to_the_workers(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "in.jsonl").write_bytes(lines(30))
    (tmp_path / "calibration.json").write_text('{"format": 2, "user": {"threshold": 0.995}}')
    spec = ModelSpec.read("scripted:bomb", taxonomy="llama-guard-3", calibration=tmp_path / "calibration.json")
    (tmp_path / "calibration.json").unlink()
    guard = pickle.loads(pickle.dumps(spec)).load(cpus=1, gpu=False)
    assert guard.taxonomy.id == "llama-guard-3"
    assert guard.check("bomb").verdict == "safe"
    assert spec.describe()["taxonomy"] == guard.taxonomy.ref


def test_a_model_in_a_folder_is_known_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    models = [ModelSpec.read(name).model for name in ("mine", "encoder:mine", "embedded", "scripted:bomb")]
    assert models == [f"{tmp_path}/mine", f"encoder:{tmp_path}/mine", "embedded", "scripted:bomb"]


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    with pytest.raises(MissingExtraError, match="ray is not installed") as caught:
        score(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert "guardrail-moderation[ray]" in (caught.value.hint or "")


def test_flags_of_the_cluster_need_its_engine(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(3))
    command = [sys.executable, "-m", "guardrail", "score", str(tmp_path / "in.jsonl"), "-m", "scripted:"]
    done = subprocess.run([*command, "--gpus-per-worker", "1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: --gpus-per-worker is for --engine ray",
        "hint: leave it out, or add --engine ray",
    ]
