"""`palimpsest demo`: the main job on the toy world, from one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli import options as opt
from palimpsest.cli.study import show_study


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(demo))


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study; an unfinished one goes on.")] = Path(
        "palimpsest-demo"
    ),
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Three fingerprints, embedded, erased by MEraser, recovered and verified on the toy world, with a report.

    Example: palimpsest demo --out palimpsest-demo
    """
    from palimpsest import api

    result = api.demo(out, run=opt.run_options(seed, device, threads, quiet, json, verbose))
    show_study(result, out, json)
