"""Progress: bars with time left on a terminal, plain lines elsewhere, silence on request.

All of it goes to standard error, so that `--json` output stays alone on standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Task(Protocol):
    """A running piece of work."""

    def advance(self, amount: float = 1, note: str = "") -> None: ...


class Progress(Protocol):
    """Where work reports how far it is."""

    def task(self, what: str, total: float | None = None) -> Any:
        """Context manager that yields a Task; `total` in the unit of `advance`."""
        ...

    def say(self, line: str) -> None:
        """One line of news."""
        ...

    def detail(self, line: str) -> None:
        """One line for who asked for more (`-v`)."""
        ...


class _NoTask:
    def advance(self, amount: float = 1, note: str = "") -> None:
        """Do nothing."""


class Silent:
    """No progress at all (`-q`, the API's default)."""

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Task]:
        yield _NoTask()

    def say(self, line: str) -> None:
        """Do nothing."""

    def detail(self, line: str) -> None:
        """Do nothing."""


class _PlainTask:
    def __init__(self, what: str, total: float | None, every: float) -> None:
        self.what, self.total, self.every = what, total, every
        self.done, self.started, self.shown = 0.0, time.monotonic(), time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount`, and print a line when the last one is `every` seconds old."""
        self.done += amount
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        share = ""
        if self.total:
            left = (now - self.started) / max(self.done, 1e-9) * (self.total - self.done)
            share = f" {100 * self.done / self.total:3.0f} %, {left:.0f} s left"
        print(f"  {self.what}:{share}{' ' + note if note else ''}", file=sys.stderr, flush=True)


class Plain:
    """Lines for logs: one every few seconds of a task, one when it ends."""

    def __init__(self, every: float = 10.0, verbose: bool = False) -> None:
        self.every, self.verbose = every, verbose

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Task]:
        started = time.monotonic()
        task = _PlainTask(what, total, self.every)
        yield task
        print(f"  {what}: done in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, file=sys.stderr, flush=True)

    def detail(self, line: str) -> None:
        """Print the line where `verbose`."""
        if self.verbose:
            self.say(line)


class _BarTask:
    def __init__(self, bars: Any, number: Any) -> None:
        self.bars, self.number = bars, number

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Move the bar; `note` stands behind it."""
        self.bars.update(self.number, advance=amount, note=note)


class Bars:
    """Rich progress bars with time left; used on a terminal."""

    def __init__(self, verbose: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.verbose = verbose
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self.depth = 0

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Task]:
        if self.depth == 0:
            self.bars.start()
        self.depth += 1
        number = self.bars.add_task(what, total=total, note="")
        try:
            yield _BarTask(self.bars, number)
        finally:
            self.bars.remove_task(number)
            self.depth -= 1
            if self.depth == 0:
                self.bars.stop()

    def say(self, line: str) -> None:
        """Print the line above the bars."""
        self.console.print(line, highlight=False, markup=False)

    def detail(self, line: str) -> None:
        """Print the line above the bars where `verbose`."""
        if self.verbose:
            self.say(line)


def make_progress(quiet: bool = False, verbose: bool = False) -> Progress:
    """Bars on a terminal, plain lines elsewhere, nothing when `quiet`, details too when `verbose`."""
    if quiet:
        return Silent()
    return Bars(verbose) if sys.stderr.isatty() else Plain(verbose=verbose)
