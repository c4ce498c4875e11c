"""`palimpsest protect`: protect a model against unauthorised merging."""

from __future__ import annotations

from typing import Annotated

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(protect))


def protect(
    method: Annotated[str, typer.Argument(help="The protection: see `palimpsest methods --kind protections`.")],
    model: opt.Model,
    out: opt.Out,
    base: Annotated[
        str | None, typer.Option(help="The model that it was fine-tuned from, where the method needs it.")
    ] = None,
    data: opt.Data = None,
    preset: opt.Preset = None,
    set_: opt.Set = None,
    check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Load both models and compare them (else weights are only streamed)."),
    ] = True,
    force: opt.Force = False,
    seed: opt.ProtectionSeed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Protect a model against merging: writes OUT/model (to publish) and, where there is one, OUT/secret.safetensors.

    Example: palimpsest protect params --model expert --base base --out protected
    """
    from palimpsest import api
    from palimpsest.cli.show import show_result

    result = api.protect(
        method,
        model,
        out,
        base=base,
        data=data or (),
        preset=preset,
        settings=opt.settings(set_),
        check=check,
        force=force,
        run=opt.run_options(seed, device, threads, quiet, json, verbose),
    )
    show_result(result, json)
