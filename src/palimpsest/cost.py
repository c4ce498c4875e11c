"""What a step costs: wall time, tokens that models read and wrote in it, and peak memory.

One mechanism fills these fields of every record: `method.method` puts a meter around `take` and `apply` of each
registered class, the study runner one around each of its steps. Whoever runs a model says how much with `count_tokens`.

Meters may stand inside one another. Each sees all that happens inside it; what an inner step already wrote into its
records is taken off when the outer one writes into its own, so that phases are not counted twice.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.records import Record, peak_bytes, versions

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Cost:
    """Seconds; tokens read and written by models; peak_bytes: the most that was resident (on a GPU: allocated) while
    the step ran; grown_bytes: how far that lay above what was there when it began."""

    seconds: float
    tokens: int
    peak_bytes: int
    grown_bytes: int


class Meter:
    """A running step; made by `metered`."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.tokens = 0
        self.dtype: str | None = None
        self.begun = self.highest = _resident()
        self.gpu_begun = self.gpu_highest = _gpu_memory()[0]
        self.inner: list[tuple[Sequence[Record], Cost]] = []

    @property
    def cost(self) -> Cost:
        """What it cost until now. Memory is that of the GPU where the step used one."""
        _see_peaks()
        began, most = self.begun, self.highest
        if self.gpu_highest > self.gpu_begun:
            began, most = self.gpu_begun, self.gpu_highest
        return Cost(time.monotonic() - self.started, self.tokens, most, max(0, most - began))

    def charge(
        self, records: Sequence[Record], *, shared: bool, device: str, threads: int | None, dtype: str | None
    ) -> None:
        """Fill what the step's records leave open. Records that inner steps filled stay as they are.

        shared: each record says what the whole step cost (a measure's numbers come of one pass); else the first does,
        less what inner steps and other records say, and the rest say 0. A method that knows better (tokens trained on,
        seconds of a search that went on after a break) has said so in the record, and keeps the word.
        """
        cost = self.cost
        told = [(mine, spent) for mine, spent in self.inner if any(r is m for r in records for m in mine)]
        theirs = {id(m) for mine, _ in told for m in mine}
        own = [r for r in records if id(r) not in theirs]
        seconds = max(0.0, cost.seconds - sum(spent.seconds for _, spent in told))
        tokens = max(0, cost.tokens - sum(spent.tokens for _, spent in told))
        if not shared:
            seconds = max(0.0, seconds - sum(r.seconds or 0.0 for r in own))
            tokens = tokens if all(r.tokens is None for r in own) else 0
        for record in own:
            if record.seconds is None:
                record.seconds, seconds = seconds, seconds if shared else 0.0
            if record.tokens is None:
                record.tokens, tokens = tokens, tokens if shared else 0
            record.peak_bytes = cost.peak_bytes if record.peak_bytes is None else record.peak_bytes
            record.grown_bytes = cost.grown_bytes if record.grown_bytes is None else record.grown_bytes
            record.device = record.device or device
            record.dtype = record.dtype or self.dtype or dtype
            record.threads = record.threads or threads or threads_in_use()
            record.versions = record.versions or versions()
        self.inner = [(list(records), cost)]


@contextmanager
def metered() -> Iterator[Meter]:
    """Meter what is done inside."""
    _see_peaks()
    _forget_peaks()
    meter = Meter()
    running = _running()
    running.append(meter)
    try:
        yield meter
    finally:
        _see_peaks()
        running.remove(meter)
        if running:
            running[-1].inner += meter.inner


def count_tokens(count: int) -> None:
    """Tell all running meters of tokens that a model read or wrote."""
    for meter in _running():
        meter.tokens += count


def note_dtype(dtype: str) -> None:
    """Tell all running meters in what a model was loaded."""
    for meter in _running():
        meter.dtype = dtype


def threads_in_use() -> int | None:
    """Threads that torch computes with, or None where nothing has imported it."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else None


_local = threading.local()


def _running() -> list[Meter]:
    """The meters of this thread, the outermost first."""
    if not hasattr(_local, "meters"):
        _local.meters = []
    found: list[Meter] = _local.meters
    return found


def _see_peaks() -> None:
    """Every running meter learns the highest memory since it was last forgotten."""
    running = _running()
    if not running:
        return
    highest, gpu = _status("VmHWM") or peak_bytes(), _gpu_memory()[1]
    for meter in running:
        meter.highest, meter.gpu_highest = max(meter.highest, highest), max(meter.gpu_highest, gpu)


def _forget_peaks() -> None:
    """Let the system's peaks begin anew; without that (no Linux, or no right to) they are of the process's life."""
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        pass
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()


def _resident() -> int:
    return _status("VmRSS") or peak_bytes()


def _status(field: str) -> int | None:
    """A size of this process in bytes, as Linux tells it."""
    try:
        lines = (PROC / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _gpu_memory() -> tuple[int, int]:
    """(bytes allocated now, at most since the last reset) on the current GPU; noughts where none is in use."""
    cuda = _cuda()
    return (0, 0) if cuda is None else (int(cuda.memory_allocated()), int(cuda.max_memory_allocated()))


def _cuda() -> Any:
    """torch.cuda where something has begun to use it, else None; torch is not imported for this."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None
