"""What the benchmarks share: interleaved rounds with their medians, the machine's facts, one result file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palimpsest.records import versions


def machine() -> dict[str, Any]:
    """Processor, cores, torch threads, versions, and how busy the machine was."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "versions": versions(),
    }


def interleaved(
    contestants: dict[str, Callable[[], Any]], rounds: int, once: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run all contestants `rounds` times in turn, beginning with another one in each round.

    once: the name of one that is run in the first round only.
    Returns (by name: `wall` and `cpu` seconds of every round and their medians; by name: what the last run
    returned). With one thread, CPU seconds are what an idle machine would take; neighbours stretch only `wall`.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    given: dict[str, Any] = {}
    names = list(contestants)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if name == once and number:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            given[name] = contestants[name]()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    times = {
        name: {
            kind: {"median": statistics.median(values), "rounds": [round(v, 4) for v in values]}
            for kind, values in zip(("wall", "cpu"), zip(*pairs, strict=True), strict=True)
        }
        for name, pairs in taken.items()
    }
    return times, given


def ratio(times: dict[str, Any], slow: str, fast: str) -> dict[str, float]:
    """How many times as fast `fast` is: the median over common rounds of slow over fast, by CPU and wall seconds."""
    found = {}
    for kind in ("cpu", "wall"):
        pairs = zip(times[slow][kind]["rounds"], times[fast][kind]["rounds"], strict=False)
        found[kind] = round(statistics.median(a / b for a, b in pairs), 2)
    return found


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result file."""
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
