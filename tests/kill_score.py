"""Scores a file over and over with `--resume`, killing the process each time; for test_batch_resume.py.

Each attempt is a process of its own (a fork, so that the imports are paid once) that runs the code of the command and
gets SIGKILL: after a random time, or just before its n-th file operation. Prints how many attempts were killed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import guardrail
from guardrail.batch import Options, score_file
from guardrail.guard import Guard

OPERATIONS = {"open", "os.rename", "os.truncate", "os.remove"}


def attempt(guard: Guard, source: Path, target: Path, kill_before: int) -> int:
    """Start a process that goes on with the scoring; returns its id."""
    child = os.fork()
    if child:
        return child
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in OPERATIONS:
            done += 1
            if done == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_before:
        sys.addaudithook(count)
    status = 1
    try:
        score_file(guard, source, target, Options(batch_size=8, resume=True, sync_seconds=0.0))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(child: int) -> bool:
    """Wait for an attempt; whether it was killed. An attempt that failed ends everything."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in {0, -signal.SIGKILL}:
        sys.exit(status)
    return status != 0


def at_random(guard: Guard, source: Path, target: Path, within: float, chance: random.Random) -> int:
    """Kill after a random time, up to `within` seconds, until an attempt is faster; returns how many were killed."""
    killed = 0
    while True:
        child = attempt(guard, source, target, 0)
        time.sleep(chance.uniform(0.0, within))
        os.kill(child, signal.SIGKILL)
        if not finish(child):
            return killed
        killed += 1


def before_each(guard: Guard, source: Path, folder: Path, suffix: str) -> int:
    """Kill before the n-th file operation, for n from 1, and resume; a new output for each n."""
    for operation in itertools.count(1):
        target = folder / f"{operation}{suffix}"
        if not finish(attempt(guard, source, target, operation)):
            return operation - 1
        finish(attempt(guard, source, target, 0))
    raise AssertionError


def main() -> None:
    """Print how many attempts were killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path, help="for the outputs")
    parser.add_argument("suffix", help="of the outputs")
    parser.add_argument("--kills", type=int, default=0, help="at random, at least so many; otherwise one per operation")
    arguments = parser.parse_args()
    guard = guardrail.load("scripted:bomb", delay=0.002 if arguments.kills else 0.0)
    guard.check("warm")
    if not arguments.kills:
        print(before_each(guard, arguments.source, arguments.folder, arguments.suffix))
        return
    chance = random.Random(1)
    killed = 0
    for number in itertools.count(1):
        target = arguments.folder / f"{number}{arguments.suffix}"
        killed += at_random(guard, arguments.source, target, 0.08, chance)
        if killed >= arguments.kills:
            break
    print(killed)


if __name__ == "__main__":
    main()
