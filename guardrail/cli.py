"""The command line: which commands there are, and how an error is shown.

Data goes to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage. Each command's module
imports what it runs inside the command's body, so that `--help` loads nothing heavy.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from guardrail import __version__
from guardrail.cli_calibrate import calibrate
from guardrail.cli_cascade import cascade
from guardrail.cli_check import check
from guardrail.cli_eval import app as evaluate
from guardrail.cli_prompt import prompt
from guardrail.cli_score import score
from guardrail.cli_serve import serve
from guardrail.cli_taxonomy import app as taxonomy
from guardrail.cli_train import export, train
from guardrail.errors import GuardrailError

__all__ = ["app", "run"]

# Plain help: readable without colour, the same in a pipe, and rich is not loaded for it.
app = typer.Typer(
    name="guardrail",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(check)
app.command()(score)
app.add_typer(evaluate, name="eval")
app.command()(calibrate)
app.command()(cascade)
app.command()(train)
app.command()(export)
app.command()(serve)
app.add_typer(taxonomy, name="taxonomy")
app.command()(prompt)

# typer re-exports only this leaf of click's errors, and newer versions carry click inside: go up from it.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]

_INTERRUPTED = 130


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"guardrail {__version__}")
        raise typer.Exit


@app.callback()
def guardrail(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Judge text and conversations for safety, under your taxonomy, with calibrated scores."""


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter shows its number
    try:
        status = typer.main.get_command(app).main(list(arguments), prog_name="guardrail", standalone_mode=False)
    except GuardrailError as error:
        return _report(str(error), error.hint, error.exit_status)
    except typer.Abort:
        return _report("interrupted", None, _INTERRUPTED)
    except BrokenPipeError:
        return 1
    except OSError as error:
        return _report(f"cannot write or read: {error.strerror or error}", None, 1)
    except _ClickError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error, file=sys.stderr)
            return 2
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "guardrail"
        message = getattr(error, "format_message", error.__str__)()
        return _report(" ".join(message.split()).rstrip("."), f"see '{command} --help'", 2)
    if status == _INTERRUPTED:  # how newer versions of typer report Ctrl-C
        return _report("interrupted", None, _INTERRUPTED)
    return status if isinstance(status, int) else 0


def _report(message: str, hint: str | None, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return status
