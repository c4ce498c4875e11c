"""`palimpsest realign`: bring a protected model back beside its relatives, to judge what a protection is worth."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(realign))


def realign(
    model: opt.Model,
    out: opt.Out,
    base: Annotated[
        str | None, typer.Option(help="The anchor: the public base, or any model tuned from it.", show_default=False)
    ] = None,
    method: Annotated[
        str, typer.Argument(help="The realignment: see `palimpsest methods --kind realignments`.")
    ] = "joint",
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
    """Align a model to an anchor of its line: OUT is the checkpoint. No secret is read.

    Example: palimpsest realign --model protected/model --base base --out realigned
    """
    from palimpsest import api
    from palimpsest.cli.show import show_result

    result = api.realign(
        method,
        model,
        base,
        out,
        preset=preset,
        settings=opt.settings(set_),
        force=force,
        run=opt.run_options(seed, device, threads, quiet, json, verbose),
    )
    show_result(result, json)
    if not json:
        for line in _lines(result):
            typer.echo(line)


def _lines(result: Any) -> list[str]:
    """What was found, in words."""
    lines = []
    for r in result.records:
        if r.measure != "realignment":
            continue
        d = r.detail
        lines.append(
            f"distance to {d['anchor']}, relative to its norm: {d['distance_before']:.4f} before, "
            f"{d['distance_after']:.4f} after"
        )
        if "components" in d:
            lines.append("changed: " + (", ".join(d["components"]) or "nothing; it lies as near the anchor as it can"))
        if "function" in d:
            f = d["function"]
            lines.append(
                f"function: logits {f['relative_error']:.1e} apart (float32, relative), same choice at "
                f"{100 * f['argmax_agreement']:.1f} % of {f['n']} places in {f['dtype']}"
            )
    return lines
