"""A run of a study: every step once, wherever it runs; resumes by itself.

A finished step is never run again. A step that fails is recorded with its error line; what needs it is left out and
everything else goes on. `work` does a step, `scheduler` says which, `executors` where, `disk` what is kept.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.checkpoint.load import pick_device
from palimpsest.errors import BadInput, nearest
from palimpsest.machine import in_words
from palimpsest.method import Context
from palimpsest.preflight import check_disk
from palimpsest.records import Record, versions
from palimpsest.study.assemble import assemble
from palimpsest.study.disk import Room
from palimpsest.study.entries import default_id
from palimpsest.study.executors import Where
from palimpsest.study.executors.serial import SerialExecutor
from palimpsest.study.graph import plan
from palimpsest.study.index import Index
from palimpsest.study.live import Tally, view_of
from palimpsest.study.needs import check_needs
from palimpsest.study.scheduler import Ended, Scheduler, tasks_of, weight
from palimpsest.study.spec import RECIPES, StudySpec
from palimpsest.study.steps import Plan
from palimpsest.study.store import Store
from palimpsest.study.work import Assignment, Workshop

KEEPS = ("all", "results")
KEEP_UP_SECONDS = 60.0  # between two writings of the records while the study runs
KEEP_UP_PAUSES = 50.0  # and at least so many times what the last writing took


@dataclass(frozen=True)
class Failure:
    """A step that failed: its id, its name, and its error in one line."""

    id: str
    name: str
    error: str


@dataclass
class StudyResult:
    """What a run left: the folder, all records in their places, what failed, what was left out for it.

    ran: steps done now; found: done before; again: dropped checkpoints that were made once more; dropped: checkpoints
    that went because nothing needed them any more.
    """

    folder: Path
    records: list[Record]
    failed: list[Failure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    ran: int = 0
    found: int = 0
    again: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Options:
    """How a study is run. keep: `all` checkpoints or `results` only. max_disk: bytes of the study's folder, or None."""

    retry_failed: bool = False
    keep: str = "all"
    max_disk: int | None = None
    where: Where = field(default_factory=Where)


def run_study(
    spec: StudySpec, out: Path, ctx: Context, retry_failed: bool = False, options: Options | None = None
) -> StudyResult:
    """Run every step of the study that is not done yet, in folder `out`, and write its records.

    Raises BadInput before anything runs where the study, the folder or the workers will not do. A failed step does
    not raise: see `StudyResult.failed`.
    """
    options = options or Options(retry_failed)
    options.where.check()
    if options.keep not in KEEPS:
        raise BadInput(f"keep: there is no {options.keep!r}{nearest(options.keep, KEEPS)}")
    ctx = dataclasses.replace(ctx, device=pick_device(ctx.device))
    made = plan(spec)
    check_needs(made, Path(out), ctx, dropping=options.keep == "results")
    store = Store.create(Path(out))
    with store.alone():
        return _Run(made, store, ctx, options).all()


class _Run:
    """One run that holds the folder."""

    def __init__(self, made: Plan, store: Store, ctx: Context, options: Options) -> None:
        self.plan, self.store, self.ctx, self.options = made, store, ctx, options
        self.started = time.time()
        self.due = time.monotonic() + KEEP_UP_SECONDS
        self.listed = [dataclasses.asdict(s) for s in made.listed()]
        self.requested = made.requested

    def all(self) -> StudyResult:
        index = Index.of(self.store, self.ctx.progress.say)
        try:
            return self._with(index)
        finally:
            index.close()

    def _with(self, index: Index) -> StudyResult:
        known = index.states()
        states = {id: known.get(id[:16], "open") for id in self.plan.steps}
        tasks = tasks_of(self.plan, self.store, states, self.options.retry_failed)
        drop = self.options.keep == "results"
        room = Room(self.plan, self.store, tasks, drop, self.options.max_disk)
        if drop:
            check_disk([(self.store.folder, room.branch - room.now, f"--out {self.store.folder}")], self.ctx)
        self.store.write_study(self._described())
        result = StudyResult(self.store.folder, [], found=sum(s == "done" for s in states.values()))
        workers = self.options.where.workers or 1
        tally = Tally(self.plan, result.found, {id: weight(self.plan.steps[id]) for id in tasks}, workers)
        self._say_first(tally, room)
        view = view_of(self.ctx.progress, tally)
        workshop = Workshop(self.plan, self.store, self.ctx)
        ended = Ended()
        try:
            if tasks or "failed" in states.values():
                assignment = Assignment.of(self.plan, self.store, self.ctx)
                where = self.options.where if tasks else Where()
                executor = where.executor(workshop, assignment)
                if isinstance(executor, SerialExecutor):
                    executor.progress = view.progress
                depth_first = self.options.where.here or drop or room.bound is not None
                scheduler = Scheduler(workshop, index, states, tasks, executor, room, view, depth_first)
                ended = scheduler.ended
                with view.shown():
                    scheduler.run(lambda: self._keep_up(index))
        finally:
            names = {id: step.name for id, step in self.plan.steps.items()}
            result.ran, result.again, result.dropped = ended.ran, ended.again, ended.dropped
            result.failed = [Failure(id, names[id], ended.failed[id]) for id in names if id in ended.failed]
            result.left_out = [
                f"skipped: {names[id]}: because {ended.skipped[id]}" for id in names if id in ended.skipped
            ]
            result.records = assemble(self.plan, index)
            self.store.write_records(result.records)
            self.store.write_study(
                {
                    **self._described(),
                    "seconds": time.time() - self.started,
                    "failed": [dataclasses.asdict(f) for f in result.failed],
                    "left_out": result.left_out,
                }
            )
        return result

    def _say_first(self, tally: Tally, room: Room) -> None:
        self.ctx.progress.say(
            f"study: {tally.total} steps, {tally.saved} more saved by sharing; {tally.found} done before"
        )
        if room.bound is not None:
            self.ctx.progress.say(f"disk: at most {in_words(room.bound)}, about {in_words(room.branch)} are needed")

    def _keep_up(self, index: Index) -> None:
        """Write the records now and then, so that a report can be made of a study that still runs."""
        started = time.monotonic()
        if started >= self.due:
            self.store.write_records(assemble(self.plan, index))
            now = time.monotonic()
            self.due = now + max(KEEP_UP_SECONDS, KEEP_UP_PAUSES * (now - started))

    def _described(self) -> dict[str, Any]:
        spec = self.plan.spec
        source = Path(spec.source)
        name = source.stem if source.parent == RECIPES else source.name
        previous = self.store.study() if (self.store.folder / "study.json").is_file() else {}
        created = previous.get("created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
        return {
            "title": spec.title,
            "notes": spec.notes,
            "shape_only": spec.is_toy,
            "spec": spec.model_dump(),
            "implants": {i.id: default_id(i.name) for i in spec.marks},
            "command": " ".join([*spec.words, f"palimpsest study run {name} --out {self.store.folder.name}"]),
            "created": created,
            "steps": self.listed,
            "requested": self.requested,
            "remarks": self.plan.notes,
            "versions": versions(),
            "device": self.ctx.device,
            "threads": self.ctx.threads,
        }
