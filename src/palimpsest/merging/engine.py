"""Runs merges over many tensors: workers that read, compute and write chunks, with bounded memory.

Every worker takes the next chunk of a tensor in work, reads its stretch of all models, computes, and writes; so
reading, arithmetic and writing overlap, and one huge tensor keeps all workers busy. What a run holds is a few chunks
per worker, whatever the size of a tensor or a model.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from palimpsest.checkpoint.files import TensorInfo
from palimpsest.merging.passes import CHUNK, Chunk, Passes, Sample, Sum, TensorFacts, at_once, chunk_bounds, combined
from palimpsest.merging.reading import Buffers, Files, Source
from palimpsest.merging.writing import Shards

CUDA_CHUNK = 1 << 23


@dataclass(frozen=True)
class Job:
    """One tensor to make, stored as `name`: the method with this tensor's parameters, and what it is made of.

    dtype: of the stored tensor. copied: where set, the tensor is this one as it is, and there is no method.
    """

    name: str
    facts: TensorFacts
    method: Any = None
    models: Sequence[Source] = ()
    base: Source | None = None
    dtype: torch.dtype = torch.float32
    copied: TensorInfo | None = None

    @property
    def bytes_in(self) -> int:
        """Bytes of one pass over all its sources."""
        if self.copied is not None:
            return self.bytes_out
        sources = [*self.models, *([self.base] if self.base is not None else [])]
        return sum(s.dtype.itemsize for s in sources) * self.facts.count

    @property
    def bytes_out(self) -> int:
        """Bytes of the stored tensor."""
        return self.facts.count * self.dtype.itemsize if self.copied is None else self.copied.end - self.copied.start


@dataclass
class _Running:
    """A job in work: its program, the pass it is in, and that pass's results."""

    job: Job
    bounds: list[tuple[int, int]]
    program: Passes
    wanted: Any = None  # a pass, or None while the merged tensor is written
    apply: Any = None
    results: list[Any] = field(default_factory=list)
    open: int = 0
    checked: bool = False  # whether all numbers were read once
    added: int = 0  # results of a `Sum` that are in the first one already

    def add_up(self) -> None:
        """Add results to the first as far as they have come without a gap: a few are held, and their order is kept."""
        while self.added + 1 < len(self.results) and self.results[0] is not None:
            following = self.results[self.added + 1]
            if following is None:
                break
            self.results[0] = combined(self.wanted, [self.results[0], following])
            self.added += 1
            self.results[self.added] = None


def run_jobs(
    jobs: Sequence[Job],
    shards: Shards,
    *,
    device: str = "cpu",
    workers: int | None = None,
    chunk: int | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> None:
    """Make all jobs' tensors and write them into `shards`.

    workers: threads, by default one for each core this process may use. done: told of bytes written, by one
    thread at a time. Raises what a worker raised; nothing goes on after that.
    """
    count = workers or len(os.sched_getaffinity(0))
    size = chunk or (CHUNK if device == "cpu" else CUDA_CHUNK)
    files = Files()
    work = _Work(list(jobs), shards, files, device, size, count + 1, done)
    threads = [threading.Thread(target=work.serve, name=f"merge-{i}", daemon=True) for i in range(count)]
    with _one_thread_each():
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)  # so that Ctrl-C is heard
        finally:
            work.stop()
            for thread in threads:
                thread.join()
            files.close()
    if work.error is not None:
        raise work.error


class _Work:
    """Chunks to do, taken by workers: those of the tensor begun first come first."""

    def __init__(
        self,
        jobs: list[Job],
        shards: Shards,
        files: Files,
        device: str,
        size: int,
        most: int,
        done: Callable[[int], None],
    ) -> None:
        self.waiting = deque(jobs)
        self.shards, self.files, self.device, self.size, self.most, self.done = shards, files, device, size, most, done
        self.tasks: deque[tuple[_Running, int]] = deque()
        self.running = 0
        self.stopped = False
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def serve(self) -> None:
        """A worker's life: take a chunk, do it, until all is done or something failed."""
        buffers = Buffers()
        try:
            with torch.no_grad():
                while (task := self._next()) is not None:
                    self._do(*task, buffers)
        except BaseException as error:
            with self.changed:
                self.error = self.error or error
            self.stop()

    def _next(self) -> tuple[_Running, int] | None:
        with self.changed:
            while not self.stopped:
                if self.tasks:
                    return self.tasks.popleft()
                if self.waiting and self.running < self.most:
                    self._begin(self.waiting.popleft())
                elif not self.waiting and not self.running:
                    return None
                else:
                    self.changed.wait()
            return None

    def _begin(self, job: Job) -> None:
        if job.copied is None:
            bounds = chunk_bounds(job.facts, job.method.by_rows, self.size)
            running = _Running(
                job, bounds, job.method.passes(job.facts) if bounds else at_once(lambda chunk: chunk.models[0])
            )
        else:
            stretch = 4 * self.size
            ends = [(at, min(at + stretch, job.bytes_out)) for at in range(0, job.bytes_out, stretch)]
            running = _Running(job, ends, at_once(lambda chunk: chunk.models[0]))
        self.running += 1
        self._advance(running, None)

    def _advance(self, running: _Running, answer: Any) -> None:
        """Send a pass's result to the program and queue what it asks for next; the lock is held."""
        try:
            running.wanted = running.program.send(answer)
            parts = 1 if isinstance(running.wanted, Sample) else len(running.bounds)
        except StopIteration as stopped:
            running.wanted, running.apply = None, stopped.value
            parts = len(running.bounds)
        running.results, running.open, running.added = [None] * parts, parts, 0
        self.tasks.extendleft((running, i) for i in reversed(range(parts)))
        self.changed.notify_all()
        if parts == 0:
            self._finished(running)

    def _do(self, running: _Running, number: int, buffers: Buffers) -> None:
        job, wanted = running.job, running.wanted
        written = 0
        result = None
        buffers.checking = not running.checked
        if isinstance(wanted, Sample):
            result = wanted.of(self._sample(job, wanted, buffers))
        elif job.copied is not None:
            written = self._copy(job, job.copied, *running.bounds[number], buffers)
        else:
            first, end = running.bounds[number]
            chunk = self._chunk(job, first, end, number, buffers)
            if wanted is not None:
                result = wanted.of(chunk).cpu() if isinstance(wanted, Sum) else wanted.of(chunk)
            else:
                written = self._write(job, running.apply(chunk), first, buffers)
        with self.changed:
            if written:
                self.done(written)
            running.results[number] = result
            if isinstance(wanted, Sum):
                running.add_up()
            running.open -= 1
            if running.open == 0:
                self._finished(running)

    def _finished(self, running: _Running) -> None:
        wanted, results = running.wanted, running.results
        running.checked = running.checked or not isinstance(wanted, Sample)
        if wanted is None:
            self.running -= 1
            self.changed.notify_all()
        else:
            self._advance(running, results[0] if isinstance(wanted, Sample | Sum) else results)

    def _chunk(self, job: Job, first: int, end: int, number: int, buffers: Buffers) -> Chunk:
        def read(source: Source, place: int) -> Tensor:
            found = source.read(first, end, self.files, buffers, place)
            return found if self.device == "cpu" else found.to(self.device)

        models = [read(source, i) for i, source in enumerate(job.models)]
        base = None if job.base is None else read(job.base, len(models))
        buffers.next_chunk()
        scratch = buffers.scratch if self.device == "cpu" else self._on_device
        return Chunk(job.facts, models, base, first, number, scratch)

    def _on_device(self, count: int) -> Tensor:
        return torch.empty(count, device=self.device)

    def _sample(self, job: Job, wanted: Sample, buffers: Buffers) -> Chunk:
        """The runs of a sample, the same ones in every model."""
        starts, run = wanted.starts(job.facts.count), wanted.run
        if not starts:
            return self._chunk(job, 0, job.facts.count, 0, buffers)
        sources = [*job.models, *([job.base] if job.base is not None else [])]
        found = [torch.empty(len(starts) * run, device=self.device) for _ in sources]
        for number, at in enumerate(starts):
            part = self._chunk(job, at, at + run, 0, buffers)
            read = [*part.models, *([part.base] if part.base is not None else [])]
            for all_runs, numbers in zip(found, read, strict=True):
                all_runs[number * run : (number + 1) * run] = numbers
        base = found.pop() if job.base is not None else None
        return Chunk(job.facts, found, base, scratch=self._on_device)

    def _write(self, job: Job, merged: Tensor, first: int, buffers: Buffers) -> int:
        stored = buffers.stored(merged.numel(), job.dtype).copy_(merged)
        data = memoryview(stored.view(torch.uint8).numpy())  # type: ignore[arg-type]
        self.shards.write(job.name, first * job.dtype.itemsize, data)
        return len(data)

    def _copy(self, job: Job, tensor: TensorInfo, first: int, end: int, buffers: Buffers) -> int:
        raw = buffers.bytes(end - first)
        self.files.read(tensor.file, tensor.start + first, raw, tensor.name)
        self.shards.write(job.name, first, raw)
        return len(raw)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Torch computes each operation on the thread that asks for it: the workers are the parallelism."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
