"""`palimpsest verify`: ask a model the keys and say what may be claimed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(verify))


def verify(
    model: opt.Model,
    keys: Annotated[Path, typer.Option("--keys", help="keys.json of `palimpsest embed`.", show_default=False)],
    form: Annotated[
        list[str] | None, typer.Option(help="Prompt form: template, bare, prefilled, sampled; repeatable.")
    ] = None,
    alpha: Annotated[float, typer.Option(min=1e-12, max=0.5, help="False-claim rate of the verdict owned.")] = 1e-6,
    against: Annotated[
        list[str] | None, typer.Option(help="An unmarked model to ask too, as a control; repeatable.")
    ] = None,
    rank: Annotated[bool, typer.Option("--rank/--no-rank", help="Rank the true responses among decoys.")] = True,
    through: opt.Through = None,
    set_: opt.WrapperSet = None,
    preset: opt.WrapperPreset = None,
    reference: opt.Reference = None,
    data: opt.Data = None,
    require: Annotated[str | None, typer.Option(help="Exit with 1 unless the verdict is this word (owned).")] = None,
    load_in: opt.LoadIn = None,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Verify a fingerprint: hit rate under every prompt form, rank among decoys, and the verdict.

    Example: palimpsest verify --model suspect --keys marked/keys.json
    Behind a removal that acts while decoding: ... --through cleangen --reference toy --set alpha=10
    """
    from palimpsest import api
    from palimpsest.cli.show import show_result
    from palimpsest.errors import BadInput, nearest
    from palimpsest.verdicts import OWNERSHIP_WORDS

    if require is not None and require not in OWNERSHIP_WORDS:
        raise BadInput(f"--require {require}{nearest(require, OWNERSHIP_WORDS, 'verdict')}")
    result = api.verify(
        model,
        keys,
        forms=form or (),
        alpha=alpha,
        against=against or (),
        rank=rank,
        through=through or (),
        settings=opt.settings(set_),
        preset=preset or (),
        reference=reference,
        data=data or (),
        run=opt.run_options(seed, device, threads, quiet, json, verbose, load_in),
    )
    show_result(result, json)
    if require is not None and not any(r.verdict == require for r in result.records):
        raise typer.Exit(1)
