"""The cluster engine on a real Ray cluster of this machine, with two workers."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

import guardrail
from guardrail.batch import Options, score_file
from guardrail.cluster import engine
from guardrail.cluster.engine import ClusterOptions, Progress
from guardrail.cluster.model import ModelSpec
from guardrail.cluster.pool import Pool, Size, opened
from guardrail.cluster.records import Record
from guardrail.cluster.shards import count, ranges
from guardrail.cluster.storage import find
from guardrail.errors import ModelError, RowError, UsageError
from tests import fake_s3
from tests.cluster_inputs import LONG, lines, scored_locally

TWO = Size(workers=2)
# Seconds after which a process is taken to hang: Ray needs minutes to start on a machine with other work.
LIMIT = 400
SLOW = ModelSpec.read("scripted:bomb", delay=0.05)

# Ray leaves sockets, log files and the pipes of processes that it ended to the garbage collector, and Ray Data warns of
# settings of its own that nobody here sets.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]


@pytest.fixture(scope="module")
def s3() -> Iterator[fake_s3.Server]:
    with fake_s3.serving() as server:
        yield server


@pytest.fixture(scope="module")
def address(s3: fake_s3.Server) -> Iterator[str]:
    """A cluster for all tests here, which this process has joined; its workers know the object storage."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        with opened(None, TWO):
            yield str(ray.get_runtime_context().gcs_address)


def score(
    source: Path | str,
    target: Path | str,
    *,
    model: ModelSpec = SLOW,
    part_bytes: int = 600,
    report: engine.Report | None = None,
    **options: bool,
) -> Progress:
    made = Options(engine="ray", batch_size=4, max_line_bytes=LONG, **options)  # type: ignore[arg-type]
    return engine.score(
        str(source), str(target), model, made, ClusterOptions(TWO, part_bytes=part_bytes), report=report
    )


def test_two_workers_write_what_the_local_engine_writes(address: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(150))
    expected, run = scored_locally(tmp_path / "in.jsonl", tmp_path / "local.jsonl")
    workers: list[str] = []

    def note(progress: Progress) -> None:
        if progress.record:
            workers.append(progress.record.worker)

    done = score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", report=note)
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert done.tally == run.tally
    assert len(workers) == done.planned > 5
    assert len(set(workers)) == 2
    assert f"{os.getpid()}" not in {worker.rpartition(":")[2] for worker in workers}


def test_a_worker_killed_in_mid_run_loses_and_doubles_nothing(address: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(250))
    expected, run = scored_locally(tmp_path / "in.jsonl", tmp_path / "local.jsonl")
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        while progress.record and not killed:
            # A part that is being written has the process in its name.
            for unfinished in (tmp_path / "out.jsonl.parts").glob("part-*.tmp-*"):
                killed.append(int(unfinished.name.rpartition("-")[2]))
                os.kill(killed[0], signal.SIGKILL)
                break

    slower = ModelSpec.read("scripted:bomb", delay=0.1)
    done = score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", model=slower, report=kill)
    assert killed
    assert (done.again, done.parts, done.tally) == (1, done.planned, run.tally)
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "local.jsonl",
        "local.jsonl.run.json",
        "out.jsonl",
        "out.jsonl.run.json",
    ]


def test_parts_are_read_from_and_written_to_an_object_storage(address: str, s3: fake_s3.Server, tmp_path: Path) -> None:
    expected = b""
    for name, data in (("a.jsonl", lines(40)), ("b.jsonl.gz", lines(20, start=500)), ("c.jsonl", b"")):
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        s3.put(f"remote/in/{name}", (tmp_path / name).read_bytes())
        expected += scored_locally(tmp_path / name, tmp_path / "local.jsonl")[0]
    done = score("s3://remote/in/*", "s3://remote/out/")
    parts = {name: found.data for name, found in s3.objects.items() if name.startswith("remote/out/part-")}
    assert len(parts) == done.planned > 3
    assert b"".join(parts[name] for name in sorted(parts)) == expected
    assert score("s3://remote/in/*", "s3://remote/out/", resume=True).tally == done.tally
    del s3.objects["remote/out/_run/done.json"], s3.objects["remote/out/part-00001.jsonl"]
    score("s3://remote/in/*", "s3://remote/out/", resume=True)
    again = {name: found.data for name, found in s3.objects.items() if name.startswith("remote/out/part-")}
    assert again == parts


def test_failures_of_workers_are_errors_of_the_run(address: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a"}\n' * 9 + b'{"prompt": 1, "response": "b"}\n')
    with pytest.raises(ModelError, match="nowhere"):
        score(tmp_path / "in.jsonl", tmp_path / "none.jsonl", model=ModelSpec.read("encoder:/nowhere"))
    with pytest.raises(RowError, match=r"in.jsonl:10: prompt: expected a string, got int"):
        engine.score(
            str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), SLOW, Options(engine="ray", on_error="stop")
        )
    with opened(None, Size(gpus=1)) as pool, pytest.raises(UsageError, match="a worker needs 1 CPUs and 1 GPUs"):
        pool.workers(9)


def test_lines_are_counted_by_the_cluster_as_they_are_here(address: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(300))
    pieces = list(ranges(find(str(tmp_path / "in.jsonl")), 1000))
    assert Pool(TWO).counts(pieces) == [count(piece) for piece in pieces]


DRIVER = """
import sys
from guardrail.batch import Options
from guardrail.cluster.engine import ClusterOptions, score
from guardrail.cluster.model import ModelSpec
from guardrail.cluster.pool import Size
address, source, target, long = sys.argv[1:]
options = Options(engine="ray", batch_size=4, max_line_bytes=int(long))
cluster = ClusterOptions(Size(workers=2), address, part_bytes=600)
score(source, target, ModelSpec.read("scripted:bomb", delay=0.05), options, cluster)
"""


def wait_for_parts(folder: Path, wanted: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + LIMIT
    while len(list(folder.glob("_run/part-*.json"))) < wanted:
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < end, "nothing was scored"
        time.sleep(0.02)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(guardrail.__file__).parent.parent)}


def test_a_killed_driver_is_resumed(address: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(lines(250))
    expected, run = scored_locally(source, tmp_path / "local.jsonl")
    command = [sys.executable, "-c", DRIVER, address, str(source), str(target), str(LONG)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_parts(tmp_path / "out.jsonl.parts", 3, process)
    process.kill()
    process.wait()
    assert not target.exists()
    seen: list[Progress] = []
    done = score(source, target, resume=True, report=seen.append)
    assert 3 <= seen[0].parts < done.planned
    assert done.tally == run.tally
    assert target.read_bytes() == expected


def test_the_command_is_interrupted_and_goes_on_with_the_same_bytes(address: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = (f"Row {n}: {'How do I stop a process that does not answer? ' * (n * 7 % 23)}" for n in range(300))
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [sys.executable, "-m", "guardrail", "score", str(source), "-o", str(target), "--engine", "ray"]
    command += ["--ray-address", address, "--workers", "2", "--part-bytes", "8000"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_parts(tmp_path / "out.jsonl.parts", 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out) == (130, b"")
    first, hint = err.decode().splitlines()
    assert first.startswith("error: interrupted; ")
    assert hint == "hint: the same command with --resume goes on from there"
    resumed = subprocess.run([*command, "--resume"], env=environment(), capture_output=True, check=False, timeout=LIMIT)
    assert (resumed.returncode, resumed.stdout) == (0, b""), resumed.stderr
    (summary,) = resumed.stderr.decode().splitlines()
    assert summary.startswith(f"{target}: 300 rows: ")
    assert " of them in an earlier run; " in summary
    score_file(guardrail.load(threads=1), source, tmp_path / "local.jsonl")
    assert target.read_bytes() == (tmp_path / "local.jsonl").read_bytes()


def test_the_command_starts_a_cluster_of_its_own_and_is_quiet(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(lines(100))
    expected, run = scored_locally(source, tmp_path / "local.jsonl")
    command = [sys.executable, "-m", "guardrail", "score", str(source), "-o", str(target), "--engine", "ray"]
    command += ["--workers", "2", "--part-bytes", "1000", "-m", "scripted:bomb", "--max-line-bytes", str(LONG)]
    own = {name: value for name, value in environment().items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=own, capture_output=True, check=False, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    (summary,) = done.stderr.decode().splitlines()
    assert summary.startswith(f"{target}: {run.tally.rows} rows: {run.tally.safe} safe, ")
    assert target.read_bytes() == expected
    assert json.loads((tmp_path / "out.jsonl.run.json").read_bytes())["parts"] > 3


def test_a_record_says_who_made_the_part(address: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(30))
    score(tmp_path / "in.jsonl", f"{tmp_path}/out/", part_bytes=1 << 20)
    record = Record.from_json((tmp_path / "out" / "_run" / "part-00000.json").read_bytes())
    assert record is not None
    assert record.guard == guardrail.load("scripted:bomb").fingerprint
    assert (record.size, record.tries) == ((tmp_path / "out" / "part-00000.jsonl").stat().st_size, 1)
