"""`palimpsest plan`: how many prompts, keys, items or seeds a claim takes, before any model is asked."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(plan))


def plan(
    claim: Annotated[
        str,
        typer.Option(
            "--claim",
            help='What you want to be able to say: "FSR<5%", "ASR<1%", "hit-rate>90%", removed, owned, '
            '"accuracy>chance", "A>B" (same items), "accuracy loss<2 points", "ASR-floor<5 points", '
            '"A beats B" (over seeds).',
            show_default=False,
        ),
    ],
    confidence: Annotated[float, typer.Option(help="Confidence of the bound, in percent (or below 1).")] = 95,
    power: Annotated[float, typer.Option(help="Wanted chance to succeed, in percent (or below 1).")] = 80,
    rate: Annotated[
        str | None, typer.Option(help="The true rate (or accuracy) that you expect: 0.2% or 0.002.")
    ] = None,
    keys: Annotated[str | None, typer.Option(help="owned: number of keys, or the keys.json that holds them.")] = None,
    choices: Annotated[float | None, typer.Option(help="owned: length of the committed list of responses.")] = None,
    implant: Annotated[str | None, typer.Option(help="owned: a fingerprint by name, with its own keys.")] = None,
    preset: opt.Preset = None,
    attempts: Annotated[float, typer.Option(min=1, help="owned: suspects scanned, times key sets possible.")] = 1,
    alpha: Annotated[
        float | None, typer.Option(help="False-claim rate: of owned (1e-6), of a comparison (5 %).")
    ] = None,
    difference: Annotated[str | None, typer.Option(help="A>B, A beats B, losses: the true difference.")] = None,
    discordance: Annotated[
        str | None, typer.Option(help="A>B, losses: share of items that only one of the two has right.")
    ] = None,
    chance: Annotated[str | None, typer.Option(help="accuracy>chance: level of guessing (50%).")] = None,
    spread: Annotated[str | None, typer.Option(help="A beats B: standard deviation over seeds.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the table the claim stands in (Bonferroni).")] = 1,
    paired: Annotated[bool, typer.Option("--paired", help="A beats B: the seeds are shared pair by pair.")] = False,
    json: opt.Json = False,
) -> None:
    """Say how many prompts, keys, items or seeds a claim takes, and the chance to succeed.

    Example: palimpsest plan --claim "ASR<1%" --confidence 95
    A claim of ownership: ... --claim owned --keys 10 --choices 256 (or --keys marked/keys.json, or --implant hashchain)
    """
    from palimpsest import api

    made = api.plan(
        claim,
        confidence=confidence,
        power=power,
        rate=rate,
        keys=keys,
        choices=choices,
        implant=implant,
        preset=preset,
        attempts=attempts,
        alpha=alpha,
        difference=difference,
        discordance=discordance,
        chance=chance,
        spread=spread,
        rows=rows,
        paired=paired,
    )
    if json:
        opt.print_json({"plan": {"claim": made.claim, "answer": made.answer, **made.numbers}})
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    console.print(made.answer, markup=False)
    for shown in made.tables:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, column in enumerate(shown.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in shown.rows:
            table.add_row(*row)
        console.print(f"\n{shown.title}:", markup=False)
        console.print(table)
    console.print()
    for note in made.notes:
        console.print(f"note: {note}", markup=False)
