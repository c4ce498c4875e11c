"""`palimpsest merge`: merge models, as a thief, a deployer or a builder of models would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli import options as opt
from palimpsest.errors import BadInput

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(merge))


def merge(
    out: opt.Out,
    method: Annotated[
        str | None, typer.Argument(help="The merge, by default linear: see `palimpsest methods --kind merges`.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model that takes part: MODEL, or MODEL:0.5 with its weight; a LoRA adapter of --base, or "
            "MODEL+ADAPTER; repeatable.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The models' common base, where the method or an adapter needs one.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A mergekit YAML file, instead of METHOD, --model and --set.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A parameter: density=0.4 for all, 0.4,0.6 for each model, t=[0,0.5,1] along the layers, "
            "density@mlp=0.3 where the tensor's name has mlp; repeatable.",
        ),
    ] = None,
    copy: Annotated[
        list[str] | None,
        typer.Option(
            "--copy", help="Tensors to take as they are: PATTERN of the base (or first model), or PATTERN=MODEL."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, as it is stored (default: what holds all inputs).")
    ] = None,
    vocabulary: Annotated[
        str | None, typer.Option(help="Where tokenizers differ: same (refuse, the default), common, base or union.")
    ] = None,
    adapters: Annotated[
        str | None, typer.Option(help="Adapters alone into an adapter: by delta (exact, the default) or by factor.")
    ] = None,
    data: opt.Data = None,
    digests: Annotated[
        bool, typer.Option("--digests/--no-digests", help="Whether the lineage names the parents' digests.")
    ] = True,
    shard_size: Annotated[str | None, typer.Option(help="Largest weight file, such as 5G (the default).")] = None,
    force: opt.Force = False,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Merge models tensor by tensor: OUT is the merged checkpoint. Only methods that read --data ever load a model.

    Example: palimpsest merge ties --base B --model A:0.5 --model C:0.5 --set density=0.4 --out merged

    A mergekit file: palimpsest merge --config FILE.yml --out merged
    """
    from palimpsest import api
    from palimpsest.cli.show import show_result

    result = api.merge(
        method,
        model or (),
        out,
        config=config,
        base=base,
        settings=opt.settings(set_),
        copies=copy or (),
        dtype=dtype,
        vocabulary=vocabulary,
        adapters=adapters,
        data=data or (),
        digests=digests,
        shard_bytes=_bytes(shard_size),
        force=force,
        run=opt.run_options(seed, device, threads, quiet, json, verbose),
    )
    show_result(result, json)
    if not json:
        typer.echo(_took(result.figures))


def _bytes(said: str | None) -> int | None:
    """`5G` or `500M` as a number of bytes."""
    if said is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGB]?)B?", said.strip().upper())
    if found is None or float(found[1]) <= 0:
        raise BadInput(f"--shard-size {said}: expected a size such as 500M or 5G")
    return max(1, int(float(found[1]) * _UNITS[found[2]]))


def _took(figures: dict[str, float]) -> str:
    read, written, seconds = figures["bytes_read"], figures["bytes_written"], figures["seconds"]
    speed = (read + written) / max(seconds, 1e-9) / 1e9
    return (
        f"{figures['tensors']} tensors, {read / 1e9:.2f} GB read and {written / 1e9:.2f} GB written in {seconds:.1f} s "
        f"({speed:.2f} GB/s)"
    )
