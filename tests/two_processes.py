"""`guardrail train` by one process and by two, as `accelerate launch` starts them with the shipped configuration.

Either started so, or forked with the same environment by a process that has imported the libraries: see tests.forked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import TCPStore

from tests.forked import launched_environments, run_forked

ROOT = Path(__file__).parents[1]
PROCESSES = ["--num_processes", "2", "--main_process_port", "0"]
PROCESSES += ["--config_file", str(ROOT / "configs" / "accelerate-fsdp.yaml")]
SCRIPTS = {"copies": ["-m", "guardrail"], "shards": [str(ROOT / "tests" / "train_sharded.py")]}
TIMEOUT = 600.0


@dataclass(frozen=True)
class Place:
    """Configurations of the same run, by how many processes make it."""

    folder: Path
    one: Path
    two: Path

    def run(self, way: str, *options: str) -> dict[str, Any]:
        """The summary of `guardrail train`, by forked processes."""
        if way == "one":
            return self._forked(way, [_environment()], *options)
        command = [*PROCESSES, *SCRIPTS[way]]
        # As torch's launcher does, which the processes think they were started by: no port is free one moment and taken
        # the next.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return self._forked(way, launched_environments(command, _environment(), store.port), *options)

    def launch(self, way: str) -> dict[str, Any]:
        """The summary of `guardrail train` by two processes that `accelerate launch` itself starts."""
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *PROCESSES, *SCRIPTS[way]]
        command = [*launcher, *self._arguments(way)]
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=TIMEOUT)
        assert done.returncode == 0, done.stderr
        return _summary(done.stdout)

    def _forked(self, way: str, environments: list[dict[str, str]], *options: str) -> dict[str, Any]:
        arguments = self._arguments(way, *options)
        done = run_forked(arguments, environments, self.folder, shards=way == "shards", timeout=TIMEOUT)
        assert done.statuses == (0,) * len(environments), done.stderr
        return _summary(done.stdout)

    def _arguments(self, way: str, *options: str) -> list[str]:
        config = self.one if way == "one" else self.two
        return ["train", str(config), "-o", str(self.folder / way), "--json", *options]

    def metrics(self, way: str) -> list[dict[str, float]]:
        """What the run logged."""
        text = (self.folder / way / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def _summary(stdout: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stdout)
    return found
