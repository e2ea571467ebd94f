"""`guardrail taxonomy`: what taxonomies there are, what they say, what is wrong with them, how they compare."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardrail.errors import UsageError

if TYPE_CHECKING:
    from guardrail.taxonomy import Category, Taxonomy
    from guardrail.taxonomy_map import Mapping

__all__ = ["app"]

app = typer.Typer(help="List, show, check and compare taxonomies.", no_args_is_help=True, rich_markup_mode=None)

_Source = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped taxonomy's name or a YAML file.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_FAILED = 1
_PIPE_WIDTH = 160
_MEANING = {
    "exact": "both cover the same hazards",
    "broader": "the target covers more: the score may be too low",
    "narrower": "the target covers less: the score may be too high",
    "overlap": "each covers something that the other does not",
}


@app.command("list")
def list_(json_: _Json = False) -> None:
    """The shipped taxonomies."""
    from guardrail import resources
    from guardrail.taxonomy import Taxonomy

    found = [Taxonomy.load(name) for name in resources.names("taxonomies", ".yaml")]
    if json_:
        rows = [{"id": t.id, "categories": len(t), "description": t.description, "ref": t.ref} for t in found]
        _print_json(rows)
        return
    width = max(len(taxonomy.id) for taxonomy in found)
    for taxonomy in found:
        typer.echo(f"{taxonomy.id:<{width}}  {len(taxonomy):>3}  {taxonomy.description}")


@app.command()
def show(
    source: _Source,
    json_: _Json = False,
    yaml_: Annotated[
        bool, typer.Option("--yaml", help="Print the file format: the start of a file of your own.")
    ] = False,
) -> None:
    """One taxonomy with its categories."""
    from guardrail.taxonomy import Taxonomy

    if json_ and yaml_:
        raise UsageError("--json and --yaml cannot be given together")
    taxonomy = Taxonomy.load(source)
    if json_:
        _print_json({**taxonomy.to_dict(), "ref": taxonomy.ref})
    elif yaml_:
        typer.echo(taxonomy.to_yaml(), nl=False)
    else:
        typer.echo("\n".join(_described(taxonomy)))


@app.command()
def lint(
    source: _Source,
    template: Annotated[
        str | None, typer.Option(help="A prompt format: also check that it can express the codes.")
    ] = None,
    json_: _Json = False,
) -> None:
    """Check a taxonomy for mistakes. The exit status is 1 when there is an error, 0 with warnings only."""
    from guardrail.taxonomy_lint import lint as problems_of

    if template is None:
        problems = problems_of(source)
    else:
        from guardrail.prompting import Template

        loaded = Template.load(template)
        problems = problems_of(source, code_pattern=loaded.code_pattern or None, template=loaded.id)
    errors = sum(problem.severity == "error" for problem in problems)
    if json_:
        _print_json([problem.to_dict() for problem in problems])
    else:
        for problem in problems:
            place = source if problem.line is None else f"{source}:{problem.line}"
            parts = (place, problem.severity, problem.code, problem.field, problem.message)
            typer.echo(": ".join(part for part in parts if part))
            if problem.hint:
                typer.echo(f"  hint: {problem.hint}")
        typer.echo(
            f"{source}: {_count(errors, 'error', 'errors')}, {_count(len(problems) - errors, 'warning', 'warnings')}"
        )
    if errors:
        raise typer.Exit(_FAILED)


@app.command("map")
def map_(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The taxonomy that the scores are in: name or file.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The taxonomy to convert them to: name or file.")],
    json_: _Json = False,
) -> None:
    """Show how scores convert from one taxonomy to another. They do so through the hazards that categories share."""
    from guardrail.taxonomy import Taxonomy
    from guardrail.taxonomy_map import mapping

    found = mapping(Taxonomy.load(source), Taxonomy.load(target))
    if json_:
        _print_json(found.to_dict())
    else:
        _show_mapping(found)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _described(taxonomy: Taxonomy) -> Iterator[str]:
    yield f"{taxonomy.name} ({taxonomy.ref}), {_count(len(taxonomy), 'category', 'categories')}"
    yield from (text for text in (taxonomy.description, taxonomy.source and f"Source: {taxonomy.source}") if text)
    for category in taxonomy:
        yield ""
        yield from _category(category)


def _category(category: Category) -> Iterator[str]:
    import textwrap

    yield f"{category.code}  {category.name}"
    yield from textwrap.wrap(category.definition, 100, initial_indent="    ", subsequent_indent="    ")
    for mark, lines in (("+", category.include), ("-", category.exclude)):
        yield from (f"    {mark} {line}" for line in lines)
    for example in category.examples:
        said = " / ".join(f"{message.role}: {' '.join(message.text.split())}" for message in example.messages)
        yield f"    {example.label}: {said}"
    if category.hazards:
        yield f"    hazards: {', '.join(category.hazards)}"


def _show_mapping(found: Mapping) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in (f"to {found.target.id}", "which is", f"from {found.source.id}", "shared hazards"):
        table.add_column(title, overflow="fold")
    last = ""
    for pair in found.pairs:
        name = f"{pair.target} {found.target.category(pair.target).name}" if pair.target != last else ""
        table.add_row(name, pair.relation.value, pair.source, ", ".join(pair.hazards))
        last = pair.target
    console.print(table)
    for relation in dict.fromkeys(pair.relation.value for pair in found.pairs):
        console.print(f"{relation}: {_MEANING[relation]}", style="dim")
    for what, codes, taxonomy in (
        ("no counterpart, so no score", found.without_counterpart, found.target),
        ("goes nowhere, so its score is lost", found.going_nowhere, found.source),
    ):
        for code in codes:
            console.print(f"{what}: {taxonomy.id} {code} {taxonomy.category(code).name}")
