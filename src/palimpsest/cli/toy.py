"""`palimpsest toy`: the embedded model."""

from __future__ import annotations

from typing import Annotated

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(no_args_is_help=True, help="The embedded toy model: what it is, and making it again.")
    group.command()(opt.guarded(train))
    group.command()(opt.guarded(info))
    app.add_typer(group, name="toy")


def train(
    out: opt.Out,
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes instead of about an hour.")] = False,
    force: opt.Force = False,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Make the toy base again from the text that the package generates.

    Example: palimpsest toy train --quick --out my-toy
    """
    from palimpsest import api
    from palimpsest.cli.show import show_result

    result = api.train_toy(
        out, quick=quick, force=force, run=opt.run_options(seed, device, threads, quiet, json, verbose)
    )
    show_result(result, json)


def info(json: opt.Json = False) -> None:
    """Show what the shipped toy is: size, digest, recorded numbers.

    Example: palimpsest toy info
    """
    import json as parser

    from palimpsest.checkpoint import resolve

    toy = resolve("toy")
    golden = parser.loads((toy.path / "golden.json").read_text(encoding="utf-8"))
    size = sum(tensor.count for tensor in toy.tensors())
    facts = {"path": str(toy.path), "digest": toy.digest(), "parameters": size, "golden": golden}
    if json:
        opt.print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name}: {value}")
