"""Which checkpoints of a run may be dropped, and what it may start under a bound on disk.

Kept depth-first (the order of the plan), a study needs room for one branch at a time. The step that stands first in
that order may always start when it fits; another one only where the whole first branch would still fit beside it, so
that two half-finished branches never wait for each other's room.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from palimpsest.errors import BadInput
from palimpsest.machine import in_words
from palimpsest.preflight.jobs import adapter_bytes, resume_bytes, written_bytes
from palimpsest.study.steps import Plan, Step
from palimpsest.study.store import Store, folder_bytes

UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def size_of(text: str, what: str) -> int:
    """Bytes of an option `what`: `20GB`, `1.5 TB`, `512MiB` (powers of 1000, with an i of 1024). Raises BadInput."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    try:
        number = float(found[1]) if found else -1.0
    except ValueError:
        number = -1.0
    if found is None or number <= 0:
        raise BadInput(f"{what} {text}: is no size; write it as 20GB or 512MiB")
    unit: int = (1024 if found[3] else 1000) ** UNITS[found[2]]
    return round(number * unit)


def models_of(step: Step) -> list[str]:
    """Ids of the steps whose checkpoints a step reads (of others it reads keys or answers, which are kept)."""
    wrapped = [ref for wrapper in step.through for _, ref in wrapper.inputs]
    named = [step.model, *(ref for _, ref in step.inputs), *wrapped]
    return list(dict.fromkeys(r for r in named if not r.startswith("model:")))


def estimated(plan: Plan, step: Step) -> int:
    """Bytes of the checkpoint that a step will leave, and of the state it goes on from when it is killed."""
    if step.kind not in ("transform", "adapter"):
        return 0
    reference = step.model
    while not reference.startswith("model:"):
        reference = plan.steps[reference].model
    model = plan.models[reference.removeprefix("model:")]
    kept = written_bytes(step.method, model) if step.kind == "transform" else adapter_bytes(step.method, model)
    return kept + resume_bytes(step.method, model)


class Room:
    """Checkpoints of a run: who still needs them, what they take, what may start. bound: bytes, or None.

    drop: whether a checkpoint goes when the last step that reads it has ended. now: bytes of the steps' folders at the
    beginning; branch: the most that they come to, one step after the other (0 where everything is kept unbounded).
    """

    def __init__(self, plan: Plan, store: Store, todo: Iterable[str], drop: bool, bound: int | None) -> None:
        self.plan, self.store, self.drop, self.bound = plan, store, drop, bound
        self.rank = {id: number for number, id in enumerate(plan.steps)}
        todo = set(todo)
        self.readers: dict[str, set[str]] = {id: set() for id in plan.steps}
        for id in todo:
            for parent in models_of(plan.steps[id]):
                self.readers[parent].add(id)
        sizes = {id: folder_bytes(store.path(id) / "model") for id in plan.steps}
        self.held = {id: size for id, size in sizes.items() if size}
        self.other = folder_bytes(store.folder / "steps") - sum(self.held.values())
        self.waiting = sorted(
            (i for i in todo if plan.steps[i].kind in ("transform", "adapter")), key=self.rank.__getitem__
        )
        counted = drop or bound is not None
        self.estimates = {id: estimated(plan, plan.steps[id]) for id in self.waiting} if counted else {}
        self.now = self.other + sum(self.held.values())
        self.branch = self._branch(todo) if counted else 0
        if bound is not None and self.branch > bound:
            more = "" if drop else "; --keep results drops each checkpoint when nothing needs it any more"
            raise BadInput(
                f"--max-disk {in_words(bound)}: the steps that are left need about {in_words(self.branch)}{more}"
            )

    def _branch(self, todo: set[str]) -> int:
        """The most that lies on the disk at one time when the steps are done one by one in the plan's order."""
        held, readers = dict(self.held), {id: set(some) for id, some in self.readers.items()}
        if self.drop:
            held = {id: size for id, size in held.items() if readers[id]}
        most = now = sum(held.values()) + self.other
        for id in sorted(todo, key=self.rank.__getitem__):
            held[id] = self.estimates.get(id, 0)
            now += held[id]
            most = max(most, now)
            for gone in self._ended(id, readers) if self.drop else []:
                now -= held.pop(gone, 0)
        return most

    def _ended(self, id: str, readers: dict[str, set[str]]) -> list[str]:
        """Checkpoints that nothing reads any more after a step, its own among them; crosses the step off."""
        for parent in models_of(self.plan.steps[id]):
            readers[parent].discard(id)
        return [other for other in (*models_of(self.plan.steps[id]), id) if not readers[other]]

    def may_start(self, id: str) -> bool:
        """Whether there is room for what a step writes."""
        if self.bound is None or id not in self.estimates:
            return True
        total = self.other + sum(self.held.values()) + self.estimates[id]
        if total > self.bound:
            return False
        if not self.waiting or id == self.waiting[0]:
            return True
        first = self.rank[self.waiting[0]]
        ahead = sum(size for other, size in self.held.items() if self.rank[other] > first)
        return ahead + self.estimates[id] + self.branch <= self.bound

    def starts(self, id: str) -> None:
        """Set room aside for a step that begins."""
        if id in self.estimates:
            self.held[id] = self.estimates[id]

    def ends(self, id: str, size: int) -> list[str]:
        """Take note of a step that has ended with a checkpoint of `size` bytes; drops and returns what may go."""
        if size:
            self.held[id] = size
        else:
            self.held.pop(id, None)
        if id in self.waiting:
            self.waiting.remove(id)
        return self._drop(self._ended(id, self.readers))

    def begin(self) -> list[str]:
        """Drop what nothing that is left needs, before the first step."""
        return self._drop([id for id, readers in self.readers.items() if not readers and id in self.held])

    def _drop(self, idle: Iterable[str]) -> list[str]:
        gone = [id for id in idle if self.drop and id in self.held and self.store.state(id) == "done"]
        for id in gone:
            self.store.drop_model(id)
            self.held.pop(id)
        return gone
