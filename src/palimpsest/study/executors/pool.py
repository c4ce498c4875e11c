"""A pool on this machine: N processes, threads divided, one GPU each where there are GPUs (untested on GPUs).

Every worker is a `ProcessPoolExecutor` of one process, so that the death of one takes no other with it. A worker
ignores Ctrl-C, which is the run's to answer, and ends with the run: the kernel kills it with its parent (Linux), and a
thread that waits for the parent's end does elsewhere.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from palimpsest import machine
from palimpsest.study.executors import WorkerDied
from palimpsest.study.work import Assignment, Outcome, Task, Workshop

PR_SET_PDEATHSIG = 1

_assignment: Assignment | None = None
_workshop: Workshop | None = None


def _begin(assignment: Assignment, parent: int) -> None:
    """First thing in a worker's process."""
    global _assignment
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _assignment = assignment


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _do(piece: tuple[Task, ...]) -> list[Outcome]:
    global _workshop
    if _workshop is None:
        assert _assignment is not None
        _workshop = _assignment.workshop()
    return [_workshop.do(task) for task in piece]


class PoolExecutor:
    """Processes of this machine."""

    together = False

    def __init__(self, assignment: Assignment, workers: int) -> None:
        threads = assignment.ctx.threads or max(1, machine.cores() // workers)
        self.assignment = replace(assignment, ctx=replace(assignment.ctx, threads=threads))
        self.gpus = visible_gpus() if assignment.ctx.device.startswith("cuda") else []
        self.names = [f"worker {number}" for number in range(1, workers + 1)]
        self.pools: dict[str, ProcessPoolExecutor] = {}
        self.processes: dict[str, Any] = {}
        self.busy: set[str] = set()

    def free(self) -> list[str]:
        """Workers without work."""
        return [name for name in self.names if name not in self.busy]

    def submit(self, worker: str, piece: tuple[Task, ...]) -> Future[list[Outcome]]:
        """Hand a piece of work to a worker; its process is started when it is first needed, or was lost."""
        if worker not in self.pools:
            self._start(worker)
        self.busy.add(worker)
        given: Future[list[Outcome]] = Future()

        def ended(future: Future[list[Outcome]]) -> None:
            error = future.exception() if not future.cancelled() else WorkerDied("stopped")
            self.busy.discard(worker)
            if isinstance(error, BrokenProcessPool):
                error = WorkerDied(self._lost(worker))
            if error is None:
                given.set_result(future.result())
            else:
                given.set_exception(error)

        try:
            self.pools[worker].submit(_do, piece).add_done_callback(ended)
        except BrokenProcessPool:  # it was lost while it had no work
            self.busy.discard(worker)
            given.set_exception(WorkerDied(self._lost(worker)))
        return given

    def cancel(self) -> None:
        """Kill the workers; what they had half-made lies in `.partial`, which nobody reads."""
        for process in list(self.processes.values()):
            process.kill()
        self.shutdown()

    def shutdown(self) -> None:
        """Let the processes end."""
        for pool in list(self.pools.values()):
            pool.shutdown(wait=True, cancel_futures=True)
        self.pools, self.processes = {}, {}

    def _lost(self, worker: str) -> str:
        """Forget a worker whose process ended, and say how it did."""
        self.pools.pop(worker, None)
        process = self.processes.pop(worker, None)
        if process is None:
            return "its process ended"
        process.join(5)
        code = process.exitcode
        if code is not None and code < 0:
            return f"its process was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
        return f"its process ended with code {code}"

    def _start(self, worker: str) -> None:
        number = self.names.index(worker)
        environment = {"OMP_NUM_THREADS": str(self.assignment.ctx.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(self.assignment, os.getpid()))
        with _environment(environment), _no_interruption():  # what the new process begins with
            before = set(multiprocessing.active_children())
            pool.submit(os.getpid)
            started = set(multiprocessing.active_children()) - before
        self.pools[worker], self.processes[worker] = pool, next(iter(started))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(gpu.number) for gpu in machine.gpus()]


@contextmanager
def _no_interruption() -> Iterator[None]:
    """Ctrl-C ignored, by a process that is started in between from its first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
