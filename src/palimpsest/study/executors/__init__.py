"""Where the steps of a study run: in this process, in a local pool, on Ray, under Slurm.

All are used alike, in the manner of `concurrent.futures`: `submit` gives a Future of the outcomes. Nothing here
decides what runs when; that is `palimpsest.study.scheduler`.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from palimpsest.errors import BadInput

if TYPE_CHECKING:
    from palimpsest.study.work import Assignment, Outcome, Task, Workshop


class WorkerDied(Exception):  # noqa: N818
    """A worker ended while it was at work (killed, out of memory, its machine gone); the step can be tried again."""


class Executor(Protocol):
    """Workers that do pieces of work. together: a piece may be several measures of one model, else it is one step."""

    together: bool

    def free(self) -> list[str]:
        """Names of the workers that would begin a piece of work now."""
        ...

    def submit(self, worker: str, piece: tuple[Task, ...]) -> Future[list[Outcome]]:
        """Begin; the Future raises WorkerDied where the worker was lost, BadInput where it could not begin."""
        ...

    def cancel(self) -> None:
        """Stop what runs, at once."""
        ...

    def shutdown(self) -> None:
        """Let the workers go, after the last piece of work."""
        ...


@dataclass(frozen=True)
class Where:
    """Where a study is to run. workers: of the pool, or the most that Ray and Slurm may have at work.

    ray: an address, `auto` or `local`. slurm: a partition; `local:` and `debug:` are submitit's own executors on this
    machine. memory: bytes; minutes and gpus: of one job or worker.
    """

    workers: int | None = None
    ray: str | None = None
    slurm: str | None = None
    memory: int | None = None
    minutes: int | None = None
    gpus: int | None = None

    @property
    def here(self) -> bool:
        """Whether the steps run in this very process."""
        return self.ray is None and self.slurm is None and (self.workers or 1) == 1

    def check(self) -> None:
        """BadInput for what does not go together, and for what is not installed."""
        import importlib.util
        import os

        if self.ray is not None and self.slurm is not None:
            raise BadInput("--ray and --slurm: a study runs on one of them")
        if not self.here and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BadInput("under accelerate or torchrun the steps run one after the other, each on all processes")
        if self.slurm is None and (self.memory is not None or self.minutes is not None):
            raise BadInput("--memory and --time are those of a Slurm job; give --slurm PARTITION")
        if self.gpus is not None and self.slurm is None and self.ray is None:
            raise BadInput("--gpus is that of a Slurm job or a Ray worker; --workers takes one GPU a worker by itself")
        for wanted, module, extra in ((self.ray, "ray", "ray"), (self.slurm, "submitit", "slurm")):
            if wanted is not None and importlib.util.find_spec(module) is None:
                raise BadInput(f"--{extra} needs {module}: pip install 'palimpsest-lm[{extra}]'")

    def executor(self, workshop: Workshop, assignment: Assignment) -> Executor:
        """Begin. Raises BadInput where a cluster cannot be reached."""
        if self.ray is not None:
            from palimpsest.study.executors.on_ray import RayExecutor

            return RayExecutor(assignment, self)
        if self.slurm is not None:
            from palimpsest.study.executors.slurm import SlurmExecutor

            return SlurmExecutor(assignment, self)
        if self.here:
            from palimpsest.study.executors.serial import SerialExecutor

            return SerialExecutor(workshop)
        from palimpsest.study.executors.pool import PoolExecutor

        return PoolExecutor(assignment, self.workers or 1)
