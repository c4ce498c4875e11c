"""The loop that hands a study's steps to workers: what is ready, in which order, to whom; what a failure takes with it.

Ready is a step whose parents are done. In this process, and where checkpoints are dropped or disk is bounded, steps go
in the order of the plan, which is depth-first; else the one with the longest way still before it goes first. A worker
that has a model loaded is given that model's further measures.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from palimpsest.errors import BadInput
from palimpsest.study.disk import Room, models_of
from palimpsest.study.executors import Executor, WorkerDied
from palimpsest.study.index import Index
from palimpsest.study.live import StudyView
from palimpsest.study.steps import Plan, Step
from palimpsest.study.store import Store
from palimpsest.study.work import Outcome, Task, Workshop

ATTEMPTS = 3  # of a step whose worker dies
WEIGHTS = {"transform": 6.0, "adapter": 6.0, "measure": 1.0, "keys": 0.2}  # rough shares of the time
IMPLANT_WEIGHT = 20.0  # embedding goes on until it took
POLL_SECONDS = 0.5


def weight(step: Step) -> float:
    """A rough share of the time, before anything was measured."""
    return IMPLANT_WEIGHT if step.kind == "transform" and hasattr(step.method, "draw_keys") else WEIGHTS[step.kind]


@dataclass
class Ended:
    """What a run came to: per step that did not end well its error, or the step and error it was left out for."""

    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    ran: int = 0
    again: int = 0
    dropped: int = 0


def tasks_of(plan: Plan, store: Store, states: dict[str, str], retry: bool) -> dict[str, Task]:
    """What is left to do, in the plan's order: open steps (`retry`: failed ones too), and checkpoints to make again."""
    todo = {id for id, state in states.items() if state == "open" or (state == "failed" and retry)}
    blocked = {id for id, state in states.items() if state == "failed" and not retry}
    for id, step in plan.steps.items():  # parents stand before their children
        if id in todo and any(p in blocked for p in step.parents):
            blocked.add(id)
    again: set[str] = set()
    looked_at = [id for id in todo if id not in blocked]
    while looked_at:
        for parent in models_of(plan.steps[looked_at.pop()]):
            if parent not in todo and parent not in again and not store.has_model(parent):
                again.add(parent)
                looked_at.append(parent)
    return {id: Task(id, id in again) for id in plan.steps if id in todo or id in again}


class Scheduler:
    """Runs tasks on an executor. states: of all steps of the plan, kept up to date."""

    def __init__(
        self,
        workshop: Workshop,
        index: Index,
        states: dict[str, str],
        tasks: dict[str, Task],
        executor: Executor,
        room: Room,
        view: StudyView,
        depth_first: bool,
    ) -> None:
        self.workshop, self.plan, self.store = workshop, workshop.plan, workshop.store
        self.index, self.states, self.tasks, self.executor = index, states, tasks, executor
        self.room, self.view, self.ended = room, view, Ended()
        self.children: dict[str, list[str]] = defaultdict(list)
        self.waits: dict[str, set[str]] = {}
        for id in tasks:
            parents = set(self.plan.steps[id].parents)
            self.waits[id] = {p for p in parents if p in tasks}
            for parent in parents:
                self.children[parent].append(id)
        rank = {id: number for number, id in enumerate(self.plan.steps)}
        way = self._ways()
        self.order = {id: (0.0 if depth_first else -way[id], rank[id]) for id in tasks}
        self.ready: list[tuple[tuple[float, int], str]] = []
        self.measures: dict[str, list[tuple[tuple[float, int], str]]] = defaultdict(list)
        self.taken: set[str] = set()
        self.loaded: dict[str, str] = {}  # worker: the model it measured last
        self.attempts: Counter[str] = Counter()
        self.running: dict[Future[list[Outcome]], tuple[str, tuple[Task, ...]]] = {}

    def _ways(self) -> dict[str, float]:
        way: dict[str, float] = {}
        for id in reversed(self.tasks):
            way[id] = weight(self.plan.steps[id]) + max((way[c] for c in self.children[id]), default=0.0)
        return way

    def run(self, between: Callable[[], None] = lambda: None) -> Ended:
        """Do all tasks; `between` is called after every change. Raises what stops the whole run."""
        for id, state in self.states.items():
            if state == "failed" and id not in self.tasks:
                self.ended.failed[id] = self.index.errors().get(id[:16], "")
                self._leave_out_children(id)
        self.ended.dropped += len(self.room.begin())
        for id in self.tasks:
            if not self.waits[id] and id not in self.ended.skipped:
                self._is_ready(id)
        try:
            while self.ready or self.running:
                self._hand_out()
                if not self.running:
                    if not self.executor.free():
                        time.sleep(POLL_SECONDS / 10)
                        self.view.tick()
                        continue
                    self._no_room()
                    break
                done, _ = wait(self.running, POLL_SECONDS, FIRST_COMPLETED)
                self.view.tick()
                for future in done:
                    self._collect(future)
                between()
        except BaseException:
            self.executor.cancel()
            raise
        self.executor.shutdown()
        return self.ended

    # -- handing out ---------------------------------------------------------------------------------

    def _is_ready(self, id: str) -> None:
        self.taken.discard(id)
        heapq.heappush(self.ready, (self.order[id], id))
        step = self.plan.steps[id]
        if step.kind == "measure":
            heapq.heappush(self.measures[step.model], (self.order[id], id))

    def _hand_out(self) -> None:
        for worker in self.executor.free():
            piece = self._next(worker)
            if not piece:
                break
            first = self.plan.steps[piece[0].id]
            if first.kind == "measure":
                self.loaded[worker] = first.model
            else:
                self.loaded.pop(worker, None)
            for task in piece:
                self.room.starts(task.id)
                self.attempts[task.id] += 1
            self.view.started(worker, [self.plan.steps[t.id] for t in piece])
            self.running[self.executor.submit(worker, piece)] = (worker, piece)
        self.view.tally.workers = max(1, len(self.running))

    def _next(self, worker: str) -> tuple[Task, ...]:
        """What a worker does next: a measure of the model it has loaded, else the first that there is room for."""
        mine = self.loaded.get(worker)
        id = next(self._pop(self.measures[mine]), None) if mine is not None else None
        if id is None:
            elsewhere = {model for other, model in self.loaded.items() if other != worker}
            aside: list[str] = []
            for found in self._pop(self.ready):
                step = self.plan.steps[found]
                if not self.room.may_start(found):
                    aside.append(found)
                elif step.kind == "measure" and step.model in elsewhere and id is None:
                    id = found  # better than nothing; another worker has that model loaded
                else:
                    aside += [id] if id is not None else []
                    id = found
                    break
            for found in aside:
                self._is_ready(found)
        if id is None:
            return ()
        piece = [id]
        if self.executor.together and self.plan.steps[id].kind == "measure":
            piece += list(self._pop(self.measures[self.plan.steps[id].model]))
        return tuple(self.tasks[i] for i in piece)

    def _pop(self, heap: list[tuple[tuple[float, int], str]]) -> Iterator[str]:
        while heap:
            _, id = heapq.heappop(heap)
            if id not in self.taken:
                self.taken.add(id)
                yield id

    def _no_room(self) -> None:
        for _, id in sorted(self.ready):
            if id not in self.taken and id not in self.ended.skipped:
                self._leave_out(id, "it would not fit below --max-disk")

    # -- collecting ----------------------------------------------------------------------------------

    def _collect(self, future: Future[list[Outcome]]) -> None:
        worker, piece = self.running.pop(future)
        try:
            outcomes = future.result()
        except WorkerDied as death:
            self.loaded.pop(worker, None)
            for task in piece:
                self._died(worker, task, str(death))
            return
        for outcome in outcomes:
            if outcome.status == "full":
                raise BadInput(outcome.error or "the disk is full; nothing was written")
            if outcome.status == "superseded":
                raise BadInput(f"--out {self.store.folder}: another run has taken this folder over")
            self._finish(worker, outcome)

    def _died(self, worker: str, task: Task, why: str) -> None:
        step = self.plan.steps[task.id]
        if not task.again and self.store.state(step.id) == "done":  # it had just come to its end
            self._finish(worker, Outcome(step.id, "done"))
            return
        last = self.attempts[step.id] >= ATTEMPTS
        self.view.lost(worker, step, why, last)
        if not last:
            self._is_ready(step.id)
            return
        line = f"its worker was lost {ATTEMPTS} times: {why}"
        if not task.again:
            self.store.forget(step.id)
            self.workshop.record_failure(step, line, time.monotonic(), line + "\n")
        self._finish(worker, Outcome(step.id, "failed", line))

    def _finish(self, worker: str, outcome: Outcome) -> None:
        id, step = outcome.id, self.plan.steps[outcome.id]
        task = self.tasks[id]
        if not task.again:
            self.index.note(id)
            self.states[id] = outcome.status
        self.view.ended(worker, step, outcome)
        if outcome.status == "done":
            self.ended.again += task.again
            self.ended.ran += not task.again
            for child in self.children[id]:
                self.waits[child].discard(id)
                if not self.waits[child] and child not in self.ended.skipped:
                    self._is_ready(child)
        else:
            self.ended.failed[id] = outcome.error or ""
        self.ended.dropped += len(self.room.ends(id, outcome.bytes))
        if outcome.status != "done":
            self._leave_out_children(id)

    def _leave_out_children(self, id: str) -> None:
        line = f"{self.plan.steps[id].name} failed: {self.ended.failed.get(id, '')}".rstrip(": ")
        open_ones = list(self.children[id])
        while open_ones:
            child = open_ones.pop()
            if child not in self.ended.skipped:
                self._leave_out(child, line)
                open_ones += self.children[child]

    def _leave_out(self, id: str, because: str) -> None:
        self.ended.skipped[id] = because
        self.view.skipped(self.plan.steps[id], because)
        self.ended.dropped += len(self.room.ends(id, 0))
