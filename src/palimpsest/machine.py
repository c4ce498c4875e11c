"""What this machine has: memory (also that of its control group), processor cores, disk, graphics memory.

Nothing here imports torch but `gpus` and `gpu_memory`, which ask the driver through it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # control groups without a limit say `max` or a number beyond any machine


@dataclass(frozen=True)
class Memory:
    """Bytes in all and bytes free now; `of` says whose they are. swap: bytes beyond `total`, in all."""

    total: int
    available: int
    of: str = "this machine"
    swap: int = 0


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, bytes in all, bytes free now, and whether it computes in bfloat16."""

    number: int
    name: str
    total: int
    available: int
    bf16: bool


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory:
    """Memory for this process: the machine's, or its control group's where that allows less."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
        total, free = kib["MemTotal"] * 1024, kib.get("MemAvailable", kib["MemFree"]) * 1024
        swap = kib.get("SwapTotal", 0) * 1024
    except (OSError, ValueError, KeyError):  # no Linux
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free, swap = total, 0
    limit, left = _cgroup(proc, cgroups)
    if limit is not None and limit < total:
        return Memory(limit, max(0, min(free, left)), "this container", swap)
    return Memory(total, min(free, left), swap=swap)


def _cgroup(proc: Path, cgroups: Path) -> tuple[int | None, int]:
    """(the least limit on the way up from this process's control group, the least that is left below one)."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None, UNLIMITED
    limit, left = None, UNLIMITED
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [p for p in path.split("/") if p not in ("", "..")]
        for depth in range(len(parts), -1, -1):  # a container may see its own group at the root
            allowed, used = _limit_of(root.joinpath(*parts[:depth]), names)
            if allowed is not None:
                limit = allowed if limit is None else min(limit, allowed)
                left = min(left, max(0, allowed - used))
    return limit, left


def _limit_of(group: Path, names: tuple[str, str, str]) -> tuple[int | None, int]:
    """(limit, bytes used but for file pages that can be dropped) of one control group."""
    try:
        word = (group / names[0]).read_text().strip()
        limit = UNLIMITED if word == "max" else int(word)
        used = int((group / names[1]).read_text())
    except (OSError, ValueError):
        return None, 0
    if limit >= UNLIMITED:
        return None, 0
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(stat.get(names[2], 0))
    except (OSError, ValueError):
        pass
    return limit, max(0, used)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def disk(path: Path) -> tuple[int, int]:
    """(number of the file system that `path` is or will be on, bytes free there for this user)."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    found = os.statvfs(existing)
    return existing.stat().st_dev, found.f_bavail * found.f_frsize


def has_gpu_driver() -> bool:
    """Whether a GPU driver is at work here, without asking torch."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()


def gpus() -> list[Gpu]:
    """The GPUs that torch sees; empty where it sees none."""
    import torch

    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        bf16 = torch.cuda.get_device_capability(number) >= (8, 0)
        found.append(Gpu(number, torch.cuda.get_device_name(number), total, free, bf16))
    return found


def shards() -> int:
    """Over how many processes `accelerate launch` shards what is trained (FSDP); 1 where it does not."""
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return max(1, int(os.environ.get("WORLD_SIZE", "1"))) if sharded else 1


def memory_of(device: str) -> Memory:
    """Memory of a device as torch names it: `cpu`, `cuda`, `cuda:1`."""
    if not device.startswith("cuda"):
        return memory()
    number = int(device.partition(":")[2] or 0)
    gpu = next((g for g in gpus() if g.number == number), None)
    return Memory(gpu.total, gpu.available, f"the GPU ({gpu.name})") if gpu else memory()


def in_words(count: float) -> str:
    """Bytes as a person reads them: 512 B, 3.4 MiB, 12.6 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
