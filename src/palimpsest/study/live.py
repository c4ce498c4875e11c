"""What a person sees while a study runs: one live view on a terminal, lines elsewhere, nothing where it is quiet.

All of it goes to standard error.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from palimpsest.progress import Bars, Progress, Silent, Task
from palimpsest.study.steps import Plan, Step
from palimpsest.study.work import Outcome

LINES_A_SECOND = 1.0  # of finished steps, where it is no terminal; what failed is always said
SHOWN_WORKERS = 12


class Tally:
    """How far a run is, and how long it will take. weights: rough shares of the time of what is to do."""

    def __init__(self, plan: Plan, found: int, weights: Mapping[str, float], workers: int) -> None:
        self.plan, self.found, self.left, self.workers = plan, found, dict(weights), max(1, workers)
        self.total = len(plan.steps)
        self.saved = plan.requested - len(plan.steps)
        self.counts: Counter[str] = Counter()
        self.spent: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.begun = time.monotonic()
        self.shares = [0.0, 0.0]  # of the time: those done, and the seconds that they took

    def ended(self, step: Step, outcome: Outcome) -> None:
        """A step is done or has failed."""
        self.counts[outcome.status] += 1
        share = self.left.pop(step.id, 0.0)
        if outcome.status == "done":
            self.spent[step.kind, step.method_name].append(outcome.seconds)
            self.shares = [self.shares[0] + share, self.shares[1] + outcome.seconds]

    def skipped(self, step: Step) -> None:
        """A step was left out."""
        self.counts["skipped"] += 1
        self.left.pop(step.id, None)

    @property
    def seconds_left(self) -> float | None:
        """From the mean time of like steps, and for others from their rough shares; None before the first step."""
        if not self.shares[0]:
            return None
        each = self.shares[1] / self.shares[0]
        total = 0.0
        for id, share in self.left.items():
            like = self.spent.get((self.plan.steps[id].kind, self.plan.steps[id].method_name))
            total += sum(like) / len(like) if like else share * each
        return total / self.workers

    def line(self) -> str:
        """`12 of 60 steps, 1 failed, 3 skipped, 44 left, about 2 min 10 s`."""
        parts = [f"{self.found + self.counts['done']} of {self.total} steps done"]
        parts += [f"{self.counts[word]} {word}" for word in ("failed", "skipped") if self.counts[word]]
        parts.append(f"{len(self.left)} left")
        if self.left and self.seconds_left is not None:
            parts.append(f"about {duration(self.seconds_left)}")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """`4 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class StudyView:
    """Says nothing; what the others are made from."""

    progress: Progress | None = None  # for methods that run in this process; None: the context's own

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Around the run."""
        yield

    def started(self, worker: str, steps: Sequence[Step]) -> None:
        """A worker begins."""

    def ended(self, worker: str, step: Step, outcome: Outcome) -> None:
        """A step is done or has failed."""
        self.tally.ended(step, outcome)
        self._news(worker, step, outcome)

    def skipped(self, step: Step, because: str) -> None:
        """A step is left out."""
        self.tally.skipped(step)

    def lost(self, worker: str, step: Step, why: str, last: bool) -> None:
        """A worker was lost with its step."""
        self.say(f"{worker} was lost at {step.name}: {why}{'' if last else '; the step is tried again'}")

    def tick(self) -> None:
        """Time has passed."""

    def say(self, line: str) -> None:
        """One line of news."""

    def _news(self, worker: str, step: Step, outcome: Outcome) -> None:
        pass


class Lines(StudyView):
    """Lines for logs."""

    def __init__(self, tally: Tally, progress: Progress) -> None:
        super().__init__(tally)
        self.out, self.shown_at = progress, 0.0

    def say(self, line: str) -> None:
        """Print the line."""
        self.out.say(line)

    def _news(self, worker: str, step: Step, outcome: Outcome) -> None:
        if outcome.status != "done":
            self.out.say(f"failed: {step.name}: {outcome.error}")
            return
        now = time.monotonic()
        if now - self.shown_at >= 1 / LINES_A_SECOND or not self.tally.left:
            self.shown_at = now
            where = "" if worker == "here" else f" ({worker})"
            self.out.say(f"  {self.tally.line()}: {step.name}{where}, {outcome.seconds:.1f} s")


class Screen(StudyView):
    """One picture that is drawn again and again: a bar, what runs where, what failed last."""

    def __init__(self, tally: Tally, bars: Bars) -> None:
        from rich.live import Live

        super().__init__(tally)
        self.console = bars.console
        self.at_work: dict[str, tuple[str, float]] = {}
        self.notes: dict[str, str] = {}
        self.live = Live(get_renderable=self._picture, console=self.console, refresh_per_second=4, transient=True)
        self.progress = _Within(self, bars)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw while the run lasts; its last line stays."""
        with self.live:
            yield
        self.console.print(f"study: {self.tally.line()}", highlight=False, markup=False)

    def started(self, worker: str, steps: Sequence[Step]) -> None:
        """Put the step in its worker's line."""
        more = f" and {len(steps) - 1} more measures" if len(steps) > 1 else ""
        self.at_work[worker] = (steps[0].name + more, time.monotonic())
        self.notes.pop(worker, None)

    def say(self, line: str) -> None:
        """Print the line above the picture."""
        self.console.print(line, highlight=False, markup=False)

    def lost(self, worker: str, step: Step, why: str, last: bool) -> None:
        """Clear the worker's line."""
        self.at_work.pop(worker, None)
        super().lost(worker, step, why, last)

    def _news(self, worker: str, step: Step, outcome: Outcome) -> None:
        self.at_work.pop(worker, None)
        if outcome.status != "done":
            self.say(f"failed: {step.name}: {outcome.error}")

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        tally = self.tally
        total = tally.total
        gone = total - len(tally.left)
        head = Table.grid(padding=(0, 1))
        head.add_row("study", ProgressBar(total=max(1, total), completed=gone, width=30), Text(tally.line()))
        rows = Table.grid(padding=(0, 1))
        rows.add_column(no_wrap=True)
        rows.add_column(justify="right", no_wrap=True)
        rows.add_column(overflow="ellipsis", no_wrap=True)
        for worker, (name, since) in list(self.at_work.items())[:SHOWN_WORKERS]:
            shown = Text(name)
            if note := self.notes.get(worker):
                shown.append(f"  {note}", style="dim")
            rows.add_row(Text(f"  {worker}", style="dim"), duration(time.monotonic() - since), shown)
        if len(self.at_work) > SHOWN_WORKERS:
            rows.add_row("", "", Text(f"and {len(self.at_work) - SHOWN_WORKERS} more workers", style="dim"))
        parts: list[Any] = [head, rows]
        facts = [f"{tally.saved} steps saved by sharing"] if tally.saved > 0 else []
        facts += [f"{tally.found} done before"] if tally.found else []
        facts.append(f"running for {duration(time.monotonic() - tally.begun)}")
        parts.append(Text("  " + ", ".join(facts), style="dim"))
        return Group(*parts)


class _Within:
    """Progress of a method that runs in this process: a note in its worker's line."""

    def __init__(self, screen: Screen, bars: Bars) -> None:
        self.screen, self.bars = screen, bars

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Task]:
        """A piece of work within a step."""
        yield _Note(self.screen, what, total)
        self.screen.notes.clear()

    def say(self, line: str) -> None:
        """Print the line above the picture."""
        self.screen.say(line)

    def detail(self, line: str) -> None:
        """Print the line where more was asked for."""
        if self.bars.verbose:
            self.screen.say(line)


class _Note:
    def __init__(self, screen: Screen, what: str, total: float | None) -> None:
        self.screen, self.what, self.total, self.done = screen, what, total, 0.0

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount`; say the share of the whole."""
        self.done += amount
        share = f" {100 * self.done / self.total:.0f} %" if self.total else ""
        for worker in self.screen.at_work:
            self.screen.notes[worker] = f"{self.what}{share}{' ' + note if note else ''}"


def view_of(progress: Progress, tally: Tally) -> StudyView:
    """The view that goes with what a call was given to report to."""
    if isinstance(progress, Bars):
        return Screen(tally, progress)
    return StudyView(tally) if isinstance(progress, Silent) else Lines(tally, progress)
