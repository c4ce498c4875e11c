"""`palimpsest finetune`: train a model further on dialogues."""

from __future__ import annotations

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(finetune))


def finetune(
    model: opt.Model,
    out: opt.Out,
    data: opt.Data = None,
    preset: opt.Preset = None,
    set_: opt.Set = None,
    force: opt.Force = False,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Fine-tune a model on dialogues: an expert.

    Example: palimpsest finetune --model toy --data pairs.jsonl --out expert --set tuning.epochs=3
    """
    from palimpsest import api
    from palimpsest.cli.show import show_result

    result = api.finetune(
        model,
        out,
        data=data or (),
        settings=opt.settings(set_),
        preset=preset,
        force=force,
        run=opt.run_options(seed, device, threads, quiet, json, verbose),
    )
    show_result(result, json)
