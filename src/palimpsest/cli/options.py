"""Options that many commands share, and the wrapper that turns errors into one line and an exit code."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.errors import BadInput, PalimpsestError

Model = Annotated[str, typer.Option("--model", "-m", help="`toy`, a model folder, or a hub id.", show_default=False)]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder to make; a non-empty one is refused.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace a folder that palimpsest made.")]
Preset = Annotated[
    str | None, typer.Option("--preset", help="A named set of parameters: see `palimpsest methods NAME`.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, a parameter of the method; repeatable.")]
Through = Annotated[
    list[str] | None,
    typer.Option(
        "--through", help="A removal that acts while decoding or on the input; repeatable, the innermost first."
    ),
]
WrapperSet = Annotated[
    list[str] | None,
    typer.Option("--set", help="[METHOD.]NAME=VALUE, a parameter of a wrapper or measure; repeatable."),
]
WrapperPreset = Annotated[
    list[str] | None, typer.Option("--preset", help="[METHOD=]NAME, a preset of a wrapper or measure; repeatable.")
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="The second model that a wrapper needs (cleangen, perplexity-filter, onion)."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Dialogues: `toy`, a JSONL/JSON/CSV/Parquet file, or a Hub data set; repeatable. "
        "`embed,revival=FILE` fills the named parts alone. For classifiers: texts with labels, `test=FILE` held out.",
    ),
]
Keys = Annotated[Path | None, typer.Option("--keys", help="keys.json of `palimpsest embed`.")]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Makes a run repeatable. Keys made with a seed are only as secret as the seed."),
]
ProtectionSeed = Annotated[
    int | None,
    typer.Option("--seed", help="Makes a run repeatable. A secret made with a seed is only as secret as the seed."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: torch's own choice).")]
LoadIn = Annotated[
    str | None,
    typer.Option("--load-in", help="Ask the model with its linear layers quantised by bitsandbytes: int8 or nf4."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also estimates of memory and disk, tracebacks.")]

_verbose = False


def run_options(
    seed: int | None,
    device: str,
    threads: int | None,
    quiet: bool,
    as_json: bool,  # noqa: ARG001 (what a command prints at its end; every command hands on all that it shares)
    verbose: bool,
    load_in: str | None = None,
) -> Any:
    """The API's `Run` from the shared options."""
    global _verbose
    _verbose = verbose
    from palimpsest.api import Run
    from palimpsest.progress import make_progress

    return Run(seed=seed, device=device, threads=threads, progress=make_progress(quiet, verbose), load_in=load_in)


def settings(pairs: list[str] | None) -> dict[str, str]:
    """`--set a=1 --set b.c=2` as a dictionary."""
    found = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"--set {pair!r}: expected NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Errors a user can mend become one line on standard error and the exit code of their kind."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from palimpsest.checkpoint.output import is_full_disk

        try:
            command(*args, **kwargs)
        except PalimpsestError as error:
            _stop(str(error), error.exit_code, error)
        except KeyboardInterrupt as stopped:
            why = str(stopped) or "interrupted"
            typer.echo(f"palimpsest: {why}; finished steps are kept, nothing half-written is left", err=True)
            raise typer.Exit(getattr(stopped, "exit_code", 130)) from None
        except Exception as error:
            if not is_full_disk(error):
                raise
            _stop("the disk is full; nothing was written", 2, error)

    return wrapped


def _stop(message: str, code: int, error: BaseException) -> None:
    if _verbose:
        raise error
    typer.echo("palimpsest: error: " + " ".join(message.split()), err=True)
    raise typer.Exit(code) from None


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
