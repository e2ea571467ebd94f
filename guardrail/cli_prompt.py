"""`guardrail prompt`: show what a classifier is shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from guardrail.tokens import TextTokenizer

__all__ = ["prompt"]


def prompt(
    text: Annotated[str, typer.Argument(help="The user's text; '-' or nothing reads it from stdin.")] = "-",
    template: Annotated[str, typer.Option(help="A shipped prompt format, or a .jinja file.")] = "encoder",
    taxonomy: Annotated[
        str | None,
        typer.Option("--taxonomy", "-t", help="A shipped taxonomy or a YAML file; default: the format's own."),
    ] = None,
    response: Annotated[str | None, typer.Option(help="The assistant's answer; then the answer is judged.")] = None,
    no_policy: Annotated[bool, typer.Option("--no-policy", help="Show the categories' names only.")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print the token ids instead of the text.")] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json, or a folder that holds one; for --tokens.")
    ] = None,
) -> None:
    """Show the prompt that a classifier gets for a text, control tokens visible."""
    from guardrail.errors import UsageError
    from guardrail.prompting import PromptBuilder, Template
    from guardrail.taxonomy import Taxonomy
    from guardrail.types import Conversation, Message, Role

    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
    messages = [Message(Role.USER, text)]
    if response is not None:
        messages.append(Message(Role.ASSISTANT, response))
    chosen = Template.load(template)
    if no_policy and chosen.encoder:
        raise UsageError("--no-policy: an encoder always reads the policy text", hint="name another --template")
    categories = Taxonomy.load(taxonomy or chosen.header.taxonomy or "default")
    builder = PromptBuilder(chosen, categories, policy=False if no_policy else None)
    built = builder.build(Conversation(tuple(messages)).spelled_out())
    if tokens:
        print(*_tokenizer(tokenizer, chosen.encoder).encode(built))
    else:
        sys.stdout.buffer.write(built.text.encode() + b"\n")
    if built.codes != categories.codes:
        renamed = ", ".join(f"{old} as {new}" for old, new in zip(categories.codes, built.codes, strict=True))
        print(f"note: the format cannot answer with these codes; it shows {renamed}", file=sys.stderr)
    if built.markers:
        print(f"note: the text contains prompt markers: {', '.join(built.markers)}", file=sys.stderr)


def _tokenizer(path: Path | None, encoder: bool) -> TextTokenizer:
    from guardrail.errors import UsageError
    from guardrail.resources import folder
    from guardrail.tokens import TextTokenizer

    if path is None and not encoder:
        raise UsageError("--tokens needs a tokenizer", hint="give --tokenizer, the folder of the checkpoint")
    file = path if path is not None else folder("model")
    if file.is_dir():
        file = file / "tokenizer.json"
    try:
        return TextTokenizer.read(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--tokenizer: cannot read {file}: {error}", hint="a checkpoint's folder holds a tokenizer.json"
        ) from None
