"""The errors a user can meet, each one clear line, with the exit code the command line gives it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PalimpsestError(Exception):
    """Base of all errors of this package that are shown without a traceback."""

    exit_code = 1


class BadInput(PalimpsestError):  # noqa: N818 (its name is what a user reads)
    """Something the user gave is wrong: says what, where, and what would be right. Exit code 2."""

    exit_code = 2


class CheckFailed(PalimpsestError):  # noqa: N818
    """The command ran and failed its own check (an implant that did not take). Exit code 1."""


def nearest(name: str, valid: Iterable[str], what: str = "name") -> str:
    """Return `; did you mean ...?` for an unknown `name`, or the list of valid ones when none is near."""
    choices = sorted(set(valid))
    close = difflib.get_close_matches(name.replace("_", "-"), choices, n=3, cutoff=0.5)
    if not close:
        close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if len(choices) <= 20:
        return f"; valid {what}s: {', '.join(choices)}" if choices else f"; there is no {what} to give"
    return f"; {len(choices)} {what}s are valid, see `palimpsest methods`"
