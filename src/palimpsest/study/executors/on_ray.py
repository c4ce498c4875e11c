"""On a Ray cluster: one actor a worker, which keeps its model loaded from step to step (untested on GPUs).

Ray says where an actor stands; which steps it is given is the scheduler's, so the measures of one model go to the actor
that has it loaded. An actor that is lost (its process, its node) is replaced, and its step is tried again. All nodes
must see the study's folder under the same path.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from palimpsest.errors import BadInput
from palimpsest.study.executors import WorkerDied
from palimpsest.study.work import Assignment, Outcome, Task, Workshop

if TYPE_CHECKING:
    from palimpsest.study.executors import Where

START_SECONDS = 300.0  # to wait for the first worker


class Actor:
    """What lives on a node: a workshop that begins with its first piece of work."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.workshop: Workshop | None = None

    def ready(self) -> int:
        """The process, once it is there."""
        return os.getpid()

    def do(self, piece: tuple[Task, ...]) -> list[Outcome]:
        """Do a piece of work."""
        if self.workshop is None:
            self.workshop = self.assignment.workshop()
        return [self.workshop.do(task) for task in piece]


class RayExecutor:
    """Actors on the nodes of a cluster. Raises BadInput where none can be reached."""

    together = False

    def __init__(self, assignment: Assignment, where: Where) -> None:
        import ray

        self.ray: Any = ray
        self.ours = not ray.is_initialized()
        if self.ours:
            try:  # "local" is Ray's own word too; no address at all would look for a cluster that may be long gone
                ray.init(address=where.ray, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError, TypeError) as error:
                line = (str(error).strip().splitlines() or [""])[0]
                raise BadInput(f"--ray {where.ray}: no cluster could be reached ({line})") from None
        self.threads = assignment.ctx.threads or 1
        self.gpus = where.gpus if where.gpus is not None else int(assignment.ctx.device.startswith("cuda"))
        self.assignment = replace(assignment, ctx=replace(assignment.ctx, threads=self.threads))
        self.most = where.workers or self._fitting()
        self.actors: dict[str, Any] = {}
        self.starting: dict[str, Any] = {}
        self.busy: set[str] = set()
        self.number = 0
        self.since = time.monotonic()

    def _fitting(self) -> int:
        """How many workers the cluster has room for."""
        found = self.ray.cluster_resources()
        by_cpu = int(found.get("CPU", 0) // self.threads)
        return max(1, min(by_cpu, int(found.get("GPU", 0) // self.gpus)) if self.gpus else by_cpu)

    def free(self) -> list[str]:
        """Workers that are there and have no work; more are asked for where some are missing."""
        while len(self.actors) + len(self.starting) < self.most:
            self._ask_for_one()
        for name, (actor, there) in list(self.starting.items()):
            if self.ray.wait([there], timeout=0)[0]:
                del self.starting[name]
                try:
                    self.ray.get(there)
                except self.ray.exceptions.RayError:
                    continue  # lost before it began; the next call asks for another one
                self.actors[name] = actor
        if not self.actors and time.monotonic() - self.since > START_SECONDS:
            raise BadInput(
                f"no Ray worker began within {START_SECONDS:.0f} s; each needs {self.threads} CPUs and {self.gpus} GPUs"
            )
        return [name for name in self.actors if name not in self.busy]

    def _ask_for_one(self) -> None:
        self.number += 1
        options = {
            "num_cpus": self.threads,
            "num_gpus": self.gpus,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.threads)}},
        }
        actor = self.ray.remote(Actor).options(**options).remote(self.assignment)
        self.starting[f"ray {self.number}"] = (actor, actor.ready.remote())

    def submit(self, worker: str, piece: tuple[Task, ...]) -> Future[list[Outcome]]:
        """Hand a piece of work to an actor."""
        self.busy.add(worker)
        given: Future[list[Outcome]] = Future()
        theirs = self.actors[worker].do.remote(piece).future()
        theirs.add_done_callback(self._ending(worker, given))
        return given

    def _ending(self, worker: str, given: Future[list[Outcome]]) -> Callable[[Future[Any]], None]:
        def ended(theirs: Future[Any]) -> None:
            error = theirs.exception()
            lost = isinstance(error, self.ray.exceptions.RayError) and not isinstance(
                error, self.ray.exceptions.RayTaskError
            )
            if lost:
                self.actors.pop(worker, None)
                self.since = time.monotonic()
            self.busy.discard(worker)
            if error is None:
                given.set_result(theirs.result())
            elif lost:
                given.set_exception(WorkerDied(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"))
            else:
                cause = getattr(error, "cause", None)
                given.set_exception(cause if isinstance(cause, Exception) else error)

        return ended

    def cancel(self) -> None:
        """Kill the actors."""
        for actor in [*self.actors.values(), *(actor for actor, _ in self.starting.values())]:
            self.ray.kill(actor)
        self.actors, self.starting = {}, {}
        self.shutdown()

    def shutdown(self) -> None:
        """Let the actors go, and leave the cluster where this run had joined it."""
        self.actors, self.starting = {}, {}
        if self.ours:
            self.ray.shutdown()
