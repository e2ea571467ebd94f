"""`python -m guardrail` and the command `guardrail`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; every failure is one line, a hint, and an exit status."""
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


if __name__ == "__main__":
    main()
