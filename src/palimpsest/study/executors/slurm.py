"""Under Slurm, through submitit: a job a transform, a job for all measures of one model that are ready.

`--slurm PARTITION` submits to a cluster; `local:` runs submitit's jobs as processes of this machine and `debug:` in
this process, both for trying things out. A job that Slurm takes its node from is put back into the queue and goes on
from the step's own state. Jobs that outlive their run are cancelled by the next one. Tried with submitit's local
executor only.
"""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.checkpoint.output import write_text
from palimpsest.errors import BadInput
from palimpsest.study.executors import WorkerDied
from palimpsest.study.work import Assignment, Outcome, Task

if TYPE_CHECKING:
    from palimpsest.study.executors import Where

MOST = 64  # jobs at a time, where --workers does not say
MINUTES = 24 * 60
POLL_SECONDS = 2.0
LOCAL_POLL_SECONDS = 0.1


class Piece:
    """What a job does; submitit calls `checkpoint` where Slurm takes the node away."""

    def __init__(self, assignment: Assignment, piece: tuple[Task, ...]) -> None:
        self.assignment, self.piece = assignment, piece

    def __call__(self) -> list[Outcome]:
        workshop = self.assignment.workshop()
        done = [t for t in self.piece if not t.again and workshop.store.state(t.id) == "done"]  # before it was requeued
        return [Outcome(t.id, "done") if t in done else workshop.do(t) for t in self.piece]

    def checkpoint(self) -> Any:
        """The same piece again; finished steps are found, a killed one goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmExecutor:
    """Jobs of one partition."""

    together = True

    def __init__(self, assignment: Assignment, where: Where) -> None:
        import submitit

        kind, local, partition = (where.slurm or "").rpartition(":")
        cluster = kind if local else "slurm"
        if cluster not in ("slurm", "local", "debug"):
            raise BadInput(f"--slurm {where.slurm}: name a partition, or local: or debug: for submitit's own executors")
        self.assignment, self.most = assignment, where.workers or (MOST if cluster == "slurm" else 1)
        self.logs = assignment.folder / "steps" / ".slurm"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.poll = POLL_SECONDS if cluster == "slurm" else LOCAL_POLL_SECONDS
        self.cluster = cluster
        try:
            self.executor = submitit.AutoExecutor(folder=self.logs, cluster=cluster)
        except RuntimeError as error:
            raise BadInput(f"--slurm {where.slurm}: {error}") from None
        gpus = where.gpus if where.gpus is not None else int(assignment.ctx.device.startswith("cuda"))
        options: dict[str, Any] = {
            "name": "palimpsest",
            "timeout_min": where.minutes or MINUTES,
            "cpus_per_task": assignment.ctx.threads or max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))),
        }
        if cluster == "slurm":
            options |= {"slurm_partition": partition, "tasks_per_node": 1}
            options |= {"slurm_gres": f"gpu:{gpus}"} if gpus else {}
            options |= {"slurm_mem": f"{-(-where.memory // 2**20)}M"} if where.memory is not None else {}
        self.executor.update_parameters(**options)
        self._cancel_left()
        self.jobs: dict[str, tuple[Any, Future[list[Outcome]]]] = {}
        self.stop = threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True, name="palimpsest-slurm")
        self.watch.start()

    def free(self) -> list[str]:
        """Names of jobs that may be submitted now."""
        return [name for name in (f"job {number}" for number in range(1, self.most + 1)) if name not in self.jobs]

    def submit(self, worker: str, piece: tuple[Task, ...]) -> Future[list[Outcome]]:
        """Submit a job."""
        future: Future[list[Outcome]] = Future()
        job = self.executor.submit(Piece(self.assignment, piece))
        self.jobs[worker] = (job, future)
        self._note_jobs()
        return future

    def _watch(self) -> None:
        while not self.stop.wait(self.poll):
            for name, (job, future) in list(self.jobs.items()):
                try:
                    if job.done():
                        self._collect(name, job, future)
                except Exception as error:  # whatever it is, the run must hear of it
                    self.jobs.pop(name, None)
                    future.set_exception(error)

    def _collect(self, name: str, job: Any, future: Future[list[Outcome]]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

        found: list[Outcome] | Exception
        try:
            found = job.result()
        except FailedSubmissionError as error:
            found = BadInput(f"--slurm: the job could not be submitted ({_first(error)})")
        except (FailedJobError, UncompletedJobError) as error:
            started = "BadInput" in str(error)
            lost = WorkerDied(f"Slurm job {job.job_id} ended without a result ({job.state})")
            found = BadInput(_last(error)) if started else lost
        self.jobs.pop(name, None)
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)

    # -- jobs that outlive their run -----------------------------------------------------------------

    def _note_jobs(self) -> None:
        ids = [str(job.job_id) for job, _ in list(self.jobs.values())]
        write_text(self.logs / "jobs.json", json.dumps({"cluster": self.cluster, "jobs": ids}))

    def _cancel_left(self) -> None:
        """Cancel what a killed run had submitted."""
        path: Path = self.logs / "jobs.json"
        try:
            left = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if left.get("cluster") == "slurm" and left.get("jobs"):
            import subprocess

            subprocess.run(["scancel", *left["jobs"]], check=False, capture_output=True)
        path.unlink(missing_ok=True)

    def cancel(self) -> None:
        """Cancel the jobs."""
        for job, _ in list(self.jobs.values()):
            job.cancel(check=False)
        self.shutdown()

    def shutdown(self) -> None:
        """Stop looking after jobs."""
        self.stop.set()
        self.watch.join()
        (self.logs / "jobs.json").unlink(missing_ok=True)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].partition("BadInput: ")[2] or _first(error)
