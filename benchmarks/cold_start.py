"""Cold starts of the command line, beside the least that each could cost; interleaved, medians, ratios.

`guardrail --help` is measured against `python -c "import typer"`, and `guardrail check TEXT` against a bare script
that imports onnxruntime and tokenizers and opens the embedded model's files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from guardrail.resources import folder

BARE = """
import onnxruntime, tokenizers
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
onnxruntime.InferenceSession({model!r}, options, providers=["CPUExecutionProvider"])
tokenizers.Tokenizer.from_file({tokenizer!r})
"""


def seconds(command: list[str]) -> float:
    """Wall time of one process, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Run the rounds and print one line per pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    model = folder("model")
    bare = BARE.format(model=str(model / "model.onnx"), tokenizer=str(model / "tokenizer.json"))
    command = str(Path(sys.executable).with_name("guardrail"))
    pairs = {
        "guardrail --help / import typer": ([command, "--help"], [sys.executable, "-c", "import typer"]),
        "guardrail check / bare script": ([command, "check", "Hello there"], [sys.executable, "-c", bare]),
    }
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    for round_ in range(arguments.rounds + 1):
        for name, (ours, theirs) in pairs.items():
            measured = seconds(ours), seconds(theirs)
            if round_:  # the first round fills the file cache
                times[name][0].append(measured[0])
                times[name][1].append(measured[1])
    result = {name: statistics.median(ours) / statistics.median(theirs) for name, (ours, theirs) in times.items()}
    for name, ratio in result.items():
        medians = [statistics.median(values) * 1000 for values in times[name]]
        print(f"{name:34}  {ratio:5.2f}x   ({medians[0]:.0f} ms / {medians[1]:.0f} ms in this run)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": arguments.rounds, "ratios": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
