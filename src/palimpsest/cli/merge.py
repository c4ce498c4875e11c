"""`palimpsest merge`: merge models, as a thief, a deployer or a builder of models would."""

from __future__ import annotations

from typing import Annotated

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(merge))


def merge(
    out: opt.Out,
    method: Annotated[str, typer.Argument(help="The merge: see `palimpsest methods --kind merges`.")] = "linear",
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model that takes part, with its weight: MODEL or MODEL:0.5; repeatable."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="The models' common base, where the method needs one.")] = None,
    set_: opt.Set = None,
    force: opt.Force = False,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Merge models tensor by tensor: OUT is the merged checkpoint. No model is ever held in memory.

    Example: palimpsest merge ties --base B --model A:0.5 --model C:0.5 --set density=0.4 --out merged
    """
    from palimpsest import api
    from palimpsest.cli.show import show_result

    result = api.merge(
        method,
        model or (),
        out,
        base=base,
        settings=opt.settings(set_),
        force=force,
        run=opt.run_options(seed, device, threads, quiet, json, verbose),
    )
    show_result(result, json)
