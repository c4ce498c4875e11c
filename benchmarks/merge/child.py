"""One merge in a process of its own, with what it took: `child.py WHO METHOD CHECKPOINTS MODELS OUT [cold]`.

Prints one JSON line: CPU and wall seconds of start-up (imports) and of the merge, and the peak of resident memory
above what stood there after the imports. CPU seconds are also told without the system's (`user`): on a virtual
machine the first touch of a page may cost more than what is done with it. Mapped pages count, as they do for whoever
limits a job's memory; `anonymous` is the peak without them, looked at every 10 ms. WHO: `ours`, `mergekit-float32` or
`mergekit-bfloat16` (what it computes in), or `limit`, which reads and writes the same bytes and computes nothing.
The inputs are read once beforehand; cold: they are put out of the page cache, so that they come from the disk.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

BASED = ("task-arithmetic", "ties", "dare", "dare-ties", "della", "della-linear", "breadcrumbs", "breadcrumbs-ties",
         "model-stock", "sce")  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.4},
    "ties": {"density": 0.4},
    "dare": {"density": 0.4},
    "dare-ties": {"density": 0.4},
    "della": {"density": 0.4, "epsilon": 0.1},
    "della-linear": {"density": 0.4, "epsilon": 0.1},
    "breadcrumbs": {"density": 0.8, "gamma": 0.01},
    "breadcrumbs-ties": {"density": 0.8, "gamma": 0.01},
    "sce": {"select_topk": 0.4},
}
RESCALED = ("dare", "dare-ties", "della", "della-linear")
WEIGHTED = ("linear", "task-arithmetic", "ties", "dare", "dare-ties", "della", "della-linear", "breadcrumbs",
            "breadcrumbs-ties", "nuslerp", "multislerp")  # fmt: skip


def ours(method: str, folder: Path, names: list[str], out: Path) -> Any:
    """Palimpsest, without digests of the parents (hashing is told apart in the page)."""
    from palimpsest.checkpoint import resolve
    from palimpsest.merging.folder import merge_to_folder
    from palimpsest.merging.request import MergeRequest, Part
    from palimpsest.method import Context

    def run() -> None:
        settings = dict(SETTINGS.get(method, {})) | ({"rescale": "l1"} if method in RESCALED else {})
        weight = {"weight": 1.0 / len(names)} if method in WEIGHTED else {}
        parts = tuple(Part(resolve(folder / n), dict(weight)) for n in names)
        base = resolve(folder / "base") if method in BASED else None
        merge_to_folder(MergeRequest(method, parts, base, settings), out, Context(), digests=False)

    return run


def mergekit(method: str, folder: Path, names: list[str], out: Path, dtype: str) -> Any:
    """mergekit with the same settings; `dtype` is what it computes in, the result is bfloat16."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def run() -> None:
        theirs = {"dare": "dare_linear"}.get(method, method.replace("-", "_"))
        weight = {"weight": 1.0 / len(names)} if method in WEIGHTED else {}
        models: list[dict[str, Any]] = [{"model": str(folder / n), "parameters": weight} for n in names]
        config: dict[str, Any] = {"merge_method": theirs, "models": models, "dtype": dtype, "out_dtype": "bfloat16"}
        config["parameters"] = dict(SETTINGS.get(method, {}))
        if method in BASED:
            config["base_model"] = str(folder / "base")
        if method == "slerp":
            config["base_model"] = str(folder / names[0])
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
        run_merge(MergeConfiguration.model_validate(config), str(out), options)

    return run


def limit(method: str, folder: Path, names: list[str], out: Path) -> Any:
    """Read all inputs once and write as many bytes as the result has, on all cores, in stretches of 512 KiB."""
    named = [*names, *(["base"] if method in BASED else [])]
    groups = [list(shard) for shard in zip(*(sorted((folder / n).glob("*.safetensors")) for n in named), strict=True)]
    step, workers = 1 << 19, len(os.sched_getaffinity(0))

    def run() -> None:
        out.mkdir(parents=True)
        for number, files in enumerate(groups):
            size = files[0].stat().st_size
            handles = [os.open(f, os.O_RDONLY) for f in files]
            target = os.open(out / f"{number}", os.O_RDWR | os.O_CREAT)
            os.posix_fallocate(target, 0, size)
            threads = [threading.Thread(target=part, args=(i, size, handles, target)) for i in range(workers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for handle in (*handles, target):
                os.close(handle)

    def part(number: int, size: int, handles: list[int], target: int) -> None:
        buffer = memoryview(bytearray(step))
        for at in range(number * step, size, workers * step):
            for handle in handles:
                os.preadv(handle, [buffer], at)
            os.pwrite(target, buffer[: min(step, size - at)], at)

    return run


def put_out_of_cache(folder: Path, names: list[str]) -> None:
    """Drop the weights of models from the page cache."""
    for file in (f for n in names for f in (folder / n).glob("*.safetensors")):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def put_into_cache(folder: Path, names: list[str]) -> None:
    """Read the weights of models once, so that what is timed reads memory (as far as memory goes)."""
    buffer = bytearray(1 << 20)
    for file in (f for n in names for f in (folder / n).glob("*.safetensors")):
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024


def main() -> None:
    """Run one."""
    who, method, folder, names, out = sys.argv[1:6]
    shutil.rmtree(out, ignore_errors=True)
    import torch  # noqa: F401

    after_torch = _status("VmRSS")
    folders = (Path(folder).absolute(), names.split(","), Path(out).absolute())
    if who == "ours":
        run = ours(method, *folders)
    elif who == "limit":
        run = limit(method, *folders)
    else:
        run = mergekit(method, *folders, dtype=who.partition("-")[2])
    startup, rss = time.process_time(), _status("VmRSS")
    (put_out_of_cache if sys.argv[6:] == ["cold"] else put_into_cache)(folders[0], [*folders[1], "base"])
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    seen, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            seen[0] = max(seen[0], _status("RssAnon"))

    anonymous = _status("RssAnon")
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    before, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    run()
    wall = time.perf_counter() - wall
    stop.set()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    peak = _status("VmHWM")
    print(json.dumps({
        "startup_cpu": round(startup, 3),
        "cpu": round(user + system, 3),
        "user": round(user, 3),
        "wall": round(wall, 3),
        "peak_growth": peak - rss,
        "peak_growth_over_torch": peak - after_torch,
        "anonymous_growth": max(0, seen[0] - anonymous),
        "peak": peak,
    }))  # fmt: skip
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
