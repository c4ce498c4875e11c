"""`palimpsest info`: what a folder or file is, and what can be done with it here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(info))


def info(
    paths: Annotated[
        list[str],
        typer.Argument(help="Models (`toy`, folders, hub ids), adapters, key files, studies.", metavar="PATH..."),
    ],
    digest: Annotated[
        bool, typer.Option("--digest", help="Compute digests that are not known yet: reads all weights.")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Say what each path is, what is wrong with it, and what can be done with it here. Loads no model.

    Key files: what kind of keys, never a trigger or a response.

    Example: palimpsest info marked marked/keys.json toy
    """
    from palimpsest import api

    found = [api.info(path, digest=digest) for path in paths]
    if json:
        opt.print_json({"records": [], "findings": [f.to_json() for f in found]})
        return
    from rich.console import Console

    console = Console(highlight=False)
    for number, finding in enumerate(found):
        if number:
            console.print()
        show_finding(finding, console)


def show_finding(finding: Any, console: Any, indent: str = "") -> None:
    """Print a finding: title, facts, problems, what can be done."""
    from rich.markup import escape

    line = _liner(console)
    line(f"{indent}[bold]{escape(finding.path)}[/bold]: {escape(finding.title)}")
    width = max((len(name) for name in finding.facts), default=0)
    for name, value in finding.facts.items():
        for number, text in enumerate(_lines(name, value)):
            line(f"{indent}  {(name if number == 0 else ''):<{width}}  {escape(text)}")
    for problem in finding.problems:
        line(f"{indent}  [red]wrong:[/red] {escape(problem)}")
    for note in finding.notes:
        line(f"{indent}  note: {escape(note)}")
    for ability in finding.abilities:
        word = "[green]can[/green]   " if ability.possible else "[yellow]cannot[/yellow]"
        line(f"{indent}  {word} {escape(ability.command)}{escape(_reason(ability))}")
    for part in finding.parts:
        show_finding(part, console, indent + "  ")


def _liner(console: Any) -> Any:
    """Print without breaking lines where nobody sits before a terminal."""
    return lambda text: console.print(text, soft_wrap=not console.is_terminal, highlight=False)


def _lines(name: str, value: Any) -> list[str]:
    from palimpsest.machine import in_words

    if name == "size":
        return [in_words(value)]
    if name == "lineage":
        return [_entry(entry) for entry in value]
    return [f"{value:,}" if isinstance(value, int) else str(value)]


def _entry(entry: dict[str, Any]) -> str:
    parents = ", ".join(f"{role} {str(digest)[:12]}" for role, digest in entry["parents"].items())
    committed = f", commitment {entry['commitment'][:12]}" if entry.get("commitment") else ""
    return f"{entry['method']}{' of ' + parents if parents else ''}{committed}"


def _reason(ability: Any) -> str:
    from palimpsest.machine import in_words

    if ability.why:
        return f": {ability.why}"
    return f": up to about {in_words(ability.needs)} of memory" if ability.needs else ""
