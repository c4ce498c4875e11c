"""`palimpsest pretrain`: train a small base from text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(pretrain))


def pretrain(
    spec: Annotated[
        str, typer.Argument(help="YAML file (model, vocabulary, text, tokens), or a shipped recipe's name.")
    ],
    out: opt.Out,
    data: Annotated[
        Path | None, typer.Option(help="Folder that paths in the file are relative to; default: the file's own.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of a base pretrained here: take its tokenizer instead of fitting one.")
    ] = None,
    force: opt.Force = False,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Train a base from text, its tokenizer included; the loss curve goes to OUT/training.json.

    Example: palimpsest pretrain english.yaml --out base
    Example: palimpsest pretrain real-text --data corpora --out base
    """
    from palimpsest import api
    from palimpsest.cli.show import show_result

    run = opt.run_options(seed, device, threads, quiet, json, verbose)
    result = api.pretrain(spec, out, data=data, tokenizer=tokenizer, force=force, run=run)
    show_result(result, json)
