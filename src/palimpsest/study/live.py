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
ONE_LINE = 110  # columns from which the bar and the counts stand in one line
SURE, LIKELY = 0.5, 0.1  # of the work that is left, how much is like finished steps: to say "about", and "perhaps"


class Tally:
    """How far a run is, and how long it will take. weights: rough shares of the time of what is to do."""

    def __init__(self, plan: Plan, found: int, weights: Mapping[str, float], workers: int) -> None:
        self.plan, self.found, self.left, self.workers = plan, found, dict(weights), max(1, workers)
        self.total = len(plan.steps)
        self.lines_of = plan.shared()
        self.saved = self.lines_of.total() - len(plan.steps)
        self.counts: Counter[str] = Counter()
        self.spent: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.running: dict[str, float] = {}  # step: since when
        self.begun = time.monotonic()
        self.shares = [0.0, 0.0]  # of the time: those done, and the seconds that they took

    def started(self, step: Step) -> None:
        """A step has begun."""
        self.running[step.id] = time.monotonic()

    def stopped(self, step: Step) -> None:
        """A step runs no more; it may begin again."""
        self.running.pop(step.id, None)

    def ended(self, step: Step, outcome: Outcome) -> None:
        """A step is done or has failed."""
        self.stopped(step)
        self.counts[outcome.status] += 1
        share = self.left.pop(step.id, 0.0)
        if outcome.status == "done":
            self.spent[step.kind, step.method_name].append(outcome.seconds)
            self.shares = [self.shares[0] + share, self.shares[1] + outcome.seconds]

    def skipped(self, step: Step) -> None:
        """A step was left out."""
        self.counts["skipped"] += 1
        self.left.pop(step.id, None)

    def _like(self, id: str) -> list[float]:
        """Seconds of the finished steps of the same method."""
        return self.spent.get((self.plan.steps[id].kind, self.plan.steps[id].method_name), [])

    @property
    def seconds_left(self) -> float | None:
        """From the mean time of like steps, and for others from their rough shares; None before the first step."""
        if not self.shares[0]:
            return None
        each, now, total = self.shares[1] / self.shares[0], time.monotonic(), 0.0
        for id, share in self.left.items():
            like = self._like(id)
            whole = sum(like) / len(like) if like else share * each
            total += max(0.0, whole - (now - self.running[id] if id in self.running else 0.0))
        return total / self.workers

    @property
    def known(self) -> float:
        """How much of the work that is left, by rough shares, is like steps that have ended, in [0, 1]."""
        every = sum(self.left.values())
        return sum(share for id, share in self.left.items() if self._like(id)) / every if every else 1.0

    def time_left(self) -> str:
        """`about 2 min 10 s`, or less sure words where little of what is left is like what was done."""
        seconds, known = self.seconds_left, self.known
        if seconds is None or known < LIKELY or (seconds < 1 and known < SURE):
            return "time left not known yet"
        if seconds < 1 and all(id in self.running for id in self.left):
            return "longer at work than such steps took so far" if seconds == 0 else "nearly done"
        return f"{'about' if known >= SURE else 'perhaps'} {duration(max(1.0, seconds))}"

    def line(self) -> str:
        """`12 of 60 steps done, 1 failed, 3 skipped, 44 left, about 2 min 10 s`."""
        parts = [f"{self.found + self.counts['done']} of {self.total} steps done"]
        parts += [f"{self.counts[word]} {word}" for word in ("failed", "skipped") if self.counts[word]]
        parts.append(f"{len(self.left)} left")
        if self.left:
            parts.append(self.time_left())
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
        """A worker begins; of several steps with the first."""
        self.tally.started(steps[0])

    def ended(self, worker: str, step: Step, outcome: Outcome) -> None:
        """A step is done or has failed."""
        self.tally.ended(step, outcome)
        self._news(worker, step, outcome)

    def skipped(self, step: Step, because: str) -> None:
        """A step is left out."""
        self.tally.skipped(step)

    def lost(self, worker: str, step: Step, why: str, last: bool) -> None:
        """A worker was lost with its step."""
        self.tally.stopped(step)
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
        self.at_work: dict[str, tuple[str, str, float]] = {}  # worker: step, what shares it, since when
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
        """Put the step in its worker's line, and for how many lines of the tables it is done."""
        super().started(worker, steps)
        more = f" and {len(steps) - 1} more measures" if len(steps) > 1 else ""
        lines = self.tally.lines_of[steps[0].id]
        shared = f"shared by {lines} lines" if lines > 1 else ""
        self.at_work[worker] = (steps[0].name + more, shared, time.monotonic())
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

        tally, width = self.tally, self.console.width
        gone = tally.total - len(tally.left)
        bar = ProgressBar(total=max(1, tally.total), completed=gone, width=max(4, min(30, width - 15)))
        head = Table.grid(padding=(0, 1))
        parts: list[Any] = [head]
        if width >= ONE_LINE:
            head.add_row("study", bar, Text(tally.line(), no_wrap=True, overflow="ellipsis"))
        else:
            head.add_row("study", bar, Text(f"{100 * gone // max(1, tally.total)} %", no_wrap=True))
            parts.append(Text(tally.line()))
        shown = list(self.at_work.items())[:SHOWN_WORKERS]
        names = max((len(worker) for worker, _ in shown), default=0)
        times = [duration(time.monotonic() - since) for _, (_, _, since) in shown]
        for (worker, (name, shared, _)), since in zip(shown, times, strict=True):
            row = Text(f"  {worker:<{names}} ", style="dim", no_wrap=True, overflow="ellipsis")
            row.append(f"{since:>{max(map(len, times))}} ", style="not dim")
            room = width - len(row)
            row.append(shortened(name, room), style="not dim")
            for note in filter(None, (self.notes.get(worker, ""), shared)):
                if len(row) + len(note) + 2 <= width:
                    row.append(f"  {note}")
            parts.append(row)
        if len(self.at_work) > SHOWN_WORKERS:
            parts.append(Text(f"  and {len(self.at_work) - SHOWN_WORKERS} more workers", style="dim"))
        facts = [f"{tally.saved} steps saved by sharing"] if tally.saved > 0 else []
        facts += [f"{tally.found} done before"] if tally.found else []
        facts.append(f"running for {duration(time.monotonic() - tally.begun)}")
        parts.append(Text("  " + ", ".join(facts), style="dim"))
        return Group(*parts)


def shortened(name: str, room: int) -> str:
    """A name in `room` columns; what is left out is in its middle: its end says most."""
    if len(name) <= room:
        return name
    kept = max(0, room - 1)
    return name[: kept // 3] + "…" + name[len(name) - (kept - kept // 3) :] if kept else "…"[:room]


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
