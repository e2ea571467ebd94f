"""`python -m guardrail` and the command `guardrail`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; every failure is one line, a hint, and an exit status."""
    _check_streams()
    from guardrail.cli import run

    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"error: stdout cannot be written: {error.strerror}", file=sys.stderr)
        status = status or 1
        # What Python would still write at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _check_streams() -> None:
    """End with one line when stdin or stdout is closed; a closed stderr says nothing.

    The next file to be opened would get the number of a closed stream, and what is meant for the stream with it.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for name in ("stdin", "stdout"):
        if getattr(sys, name) is None:
            print(f"error: {name} is closed\nhint: lead it to a file, a pipe or /dev/null", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
