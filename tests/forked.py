"""`guardrail` in processes that have its heavy libraries already: forked by a server that has imported them once.

Importing them takes most of the time of a tiny run. The processes are as real as those that a command starts: each has
an environment, an output and an end of its own, and those of one run speak by gloo.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from unittest import mock

__all__ = ["Finished", "launched_environments", "run_forked"]

_HEAVY = ["guardrail.cli", "guardrail.training.run", "guardrail.training.llama_run", "tests.train_sharded"]
# What `guardrail train` imports only when it comes to it.
_HEAVY += ["guardrail.training.encoder_run", "guardrail.backends.llama", "peft", "torch.distributed.fsdp"]
_HEAVY += ["transformers.models.llama.modeling_llama", "sklearn.linear_model", "torch.distributed.checkpoint"]

_OF_ONE_PROCESS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Finished:
    """How a run's processes ended."""

    statuses: tuple[int | None, ...]
    """Exit statuses; negative for a signal, also for those that were ended because another one had failed."""
    stdout: str
    stderr: str


def run_forked(
    arguments: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path, *, shards: bool, timeout: float
) -> Finished:
    """`guardrail ARGUMENTS` by one process for each environment; when one fails or time is up, all are ended."""
    context = _context(environments[0])
    files = [(folder / f"process-{rank}.out", folder / f"process-{rank}.err") for rank in range(len(environments))]
    processes = [
        context.Process(target=_guardrail, args=([*arguments], {**environment}, *file, shards), daemon=True)
        for environment, file in zip(environments, files, strict=True)
    ]
    for process, each in zip(processes, files, strict=True):
        for file in each:
            file.write_text("", encoding="utf-8")  # there also when the process ends before it opens them
        process.start()
    late = _wait(processes, timeout)
    statuses = tuple(process.exitcode for process in processes)
    for process in processes:
        process.close()
    outputs, errors = ("".join(file.read_text(encoding="utf-8") for file in each) for each in zip(*files, strict=True))
    return Finished(statuses, outputs, f"{errors}\nended after {timeout} s" if late else errors)


def launched_environments(command: Sequence[str], environment: Mapping[str, str], port: int) -> list[dict[str, str]]:
    """What `accelerate launch`, with these arguments, would set for each process on this machine.

    The processes meet at a store that somebody else holds at the port, as they do under torch's launcher.
    """
    from accelerate.commands import launch  # type: ignore[import-untyped,unused-ignore]

    with mock.patch.dict(os.environ, environment, clear=True):
        given, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args([*command]))
        # These would be started otherwise.
        assert (given.use_fsdp, given.cpu, given.num_machines) == (True, False, 1)
        shared = launch.prepare_multi_gpu_env(given)
    count = str(given.num_processes)
    shared |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(given.num_processes)]


def _context(environment: Mapping[str, str]) -> ForkServerContext:
    """With a running server; its libraries read the environment as they are imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    alone = {name: value for name, value in environment.items() if name not in _OF_ONE_PROCESS}
    with mock.patch.dict(os.environ, alone, clear=True):
        ensure_running()
    return context


def _wait(processes: Sequence[ForkServerProcess], timeout: float) -> bool:
    """Until all have ended well, or one has failed, or time is up, which is what is returned; none runs on."""
    deadline = time.monotonic() + timeout
    running = list(processes)
    late = False
    while running and not late and not any(process.exitcode for process in processes):
        late = not connection.wait([process.sentinel for process in running], max(0.0, deadline - time.monotonic()))
        running = [process for process in running if process.exitcode is None]
    for process in running:
        process.kill()
        process.join()
    return late


def _guardrail(arguments: list[str], environment: dict[str, str], stdout: Path, stderr: Path, shards: bool) -> None:
    """In the process: become what the command would have started."""
    with ExitStack() as files:
        for number, file in ((1, stdout), (2, stderr)):
            os.dup2(files.enter_context(file.open("w", encoding="utf-8")).fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["guardrail", *arguments]
    if shards:
        from tests.train_sharded import shard_on_cpus

        shard_on_cpus()
    from guardrail.__main__ import main

    main()
