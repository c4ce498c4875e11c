"""`palimpsest evaluate`: measure a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli import options as opt

GROUPS = (
    "superglue, meraser-figure2, meraser-appendix-e, if-harmlessness, anli, arc, ai2_arc, lambada"  # no import here
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(evaluate))


def evaluate(
    model: opt.Model,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks, comma-separated, by lm-evaluation-harness's names or our groups': "
            f"{GROUPS} (`palimpsest tasks` says what is in them). The toy has its own superglue."
        ),
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option("--task-data", help="Folder that holds the tasks' files; without it they come from the Hub."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most the first so many items of each task.")] = None,
    fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question (default: the task's own number, mostly 0).")
    ] = None,
    perplexity: Annotated[
        str | None,
        typer.Option(
            help="Text to read: a file (.txt, .jsonl with `text`, .parquet), FOLDER[:SPLIT] of Parquet files, or a Hub "
            "corpus: wikitext, or NAME[:CONFIG[:SPLIT]]."
        ),
    ] = None,
    perplexity_as: Annotated[
        str | None, typer.Option("--perplexity-as", help="documents, or stream: the whole text as one.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Perplexity: tokens of one window (default 512).")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Perplexity: tokens that each further window predicts (default: half of it).")
    ] = None,
    bos: Annotated[
        str | None, typer.Option(help="Perplexity: BOS before windows: auto (the tokenizer's), always, first, never.")
    ] = None,
    documents: Annotated[int | None, typer.Option(help="Perplexity: at most this many documents (100).")] = None,
    data: opt.Data = None,
    keys: opt.Keys = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="A measure by name: see `palimpsest methods --kind measures`.")
    ] = None,
    through: opt.Through = None,
    set_: opt.WrapperSet = None,
    preset: opt.WrapperPreset = None,
    reference: opt.Reference = None,
    original: Annotated[
        str | None, typer.Option(help="The model before a removal, for measures that compare (divergence, latency).")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="An unmarked model, for measures that take one (token-forcing).")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The checkpoint at the other end of the line (measure barrier).")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--out-picture", help="Draw the measure key-probabilities: FILE.svg or FILE.html.")
    ] = None,
    load_in: opt.LoadIn = None,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Measure a model: task accuracy, perplexity, and any other measure by name.

    Example: palimpsest evaluate --model toy --tasks superglue --perplexity corpus.txt
    One stream, as the field reads WikiText: ... --perplexity wikitext --perplexity-as stream --window 1024 --stride 512
    Real tasks, offline: palimpsest evaluate --model M --tasks boolq,copa --task-data FOLDER --limit 200
    What a removal that acts while decoding costs: ... --through suppress-top-k --preset detection
    """
    from palimpsest import api
    from palimpsest.cli.show import show_result

    names = [t.strip() for t in tasks.split(",") if t.strip()] if tasks else []
    result = api.evaluate(
        model,
        tasks=names,
        task_data=task_data,
        limit=limit,
        fewshot=fewshot,
        perplexity=perplexity,
        data=data or (),
        keys=keys,
        measures=measure or (),
        through=through or (),
        settings=opt.settings(set_),
        preset=preset or (),
        reference=reference,
        original=original,
        base=base,
        against=against,
        reading={
            name: value
            for name, value in (
                ("as", perplexity_as),
                ("window", window),
                ("stride", stride),
                ("bos", bos),
                ("documents", documents),
            )
            if value is not None
        },
        run=opt.run_options(seed, device, threads, quiet, json, verbose, load_in),
    )
    if picture is not None:
        api.key_picture(result, picture)
    show_result(result, json)
