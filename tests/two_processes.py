"""`guardrail train` by one process and by two, as `accelerate launch` starts them with the shipped configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
LAUNCH += ["--config_file", str(ROOT / "configs" / "accelerate-fsdp.yaml")]
COMMANDS = {
    "one": [sys.executable, "-m", "guardrail"],
    "copies": [*LAUNCH, "-m", "guardrail"],
    "shards": [*LAUNCH, str(ROOT / "tests" / "train_sharded.py")],
}


@dataclass(frozen=True)
class Place:
    """Configurations of the same run, by how many processes make it."""

    folder: Path
    one: Path
    two: Path

    def run(self, way: str, *options: str) -> dict[str, Any]:
        """The summary of `guardrail train`."""
        config = self.one if way == "one" else self.two
        command = [*COMMANDS[way], "train", str(config), "-o", str(self.folder / way), "--json", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def metrics(self, way: str) -> list[dict[str, float]]:
        """What the run logged."""
        text = (self.folder / way / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]
