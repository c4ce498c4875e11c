"""Merging against mergekit: CPU seconds, wall time and memory of whole processes, one after the other in turn.

    python benchmarks/merge/make.py 0.5b checkpoints/half && python benchmarks/merge/make.py 1.1b checkpoints/one
    python benchmarks/merge/run.py --half checkpoints/half --one checkpoints/one --rounds 3

`--seven FOLDER` (made by `make.py 7b`) adds our merges of 3 models at 7 billion parameters, memory only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from measuring import machine, write  # noqa: E402

METHODS = ("linear", "task-arithmetic", "slerp", "nuslerp", "multislerp", "karcher", "model-stock", "sce", "ties",
           "dare", "dare-ties", "della", "della-linear", "breadcrumbs", "breadcrumbs-ties")  # fmt: skip
GOALS = ("slerp", "ties", "dare", "della", "linear", "task-arithmetic")
QUICK = ("slerp", "linear", "task-arithmetic")  # also against mergekit as most of its files have it, in bfloat16
PAIRS = ("slerp", "nuslerp")  # take two models
FIELDS = ("startup_cpu", "cpu", "user", "wall", "peak_growth", "peak_growth_over_torch", "anonymous_growth", "peak")


def child(who: str, method: str, folder: Path, names: str, out: Path, *more: str) -> dict[str, Any]:
    """What one process measured of itself."""
    words = [sys.executable, str(HERE / "child.py"), who, method, str(folder), names, str(out), *more]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def case(size: str, method: str, folder: Path, names: str, out: Path, who: list[str], rounds: int) -> dict[str, Any]:
    """All contestants of one merge in turn, `rounds` times; medians and every round."""
    taken: dict[str, list[dict[str, Any]]] = {w: [] for w in who}
    for number in range(rounds):
        for name in who[number % len(who) :] + who[: number % len(who)]:
            plain, _, cold = name.partition(" ")
            taken[name].append(child(plain, method, folder, names, out, *([cold] if cold else [])))
    found: dict[str, Any] = {"size": size, "method": method, "models": len(names.split(",")), "contestants": {}}
    for name, runs in taken.items():
        medians = {f: statistics.median(r[f] for r in runs) for f in FIELDS}
        found["contestants"][name] = {"median": medians, "rounds": [[r["cpu"], r["user"], r["wall"]] for r in runs]}
    ratios = {}
    for name in who:
        if name.startswith("mergekit"):
            pairs = list(zip(taken[name], taken["ours"], strict=True))
            ratios[name] = {kind: round(statistics.median(a[kind] / b[kind] for a, b in pairs), 2)
                            for kind in ("cpu", "user", "wall", "peak_growth", "anonymous_growth")}  # fmt: skip
    found["times_as_much"] = ratios
    line = {n: round(c["median"]["cpu"], 2) for n, c in found["contestants"].items()}
    print(
        size,
        method,
        found["models"],
        "CPU s",
        line,
        "ratios",
        {n: (r["cpu"], r["user"]) for n, r in ratios.items()},
        flush=True,
    )
    return found


def main() -> None:
    """Run what the result file does not hold yet, and write it after every case: a run that was cut goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", type=Path)
    parser.add_argument("--one", type=Path)
    parser.add_argument("--seven", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path("merge-benchmark-out"))
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    given = parser.parse_args()
    folders = {"0.5b": given.half, "1.1b": given.one, "7b": given.seven}
    result: dict[str, Any] = {"machine": machine(), "rounds": given.rounds, "cases": [], "limits": [], "growth": []}
    if given.out.is_file():
        result = json.loads(given.out.read_text(encoding="utf-8"))
    for part, size, method, names, who, rounds in plan(given.rounds):
        key = (size, method, len(names.split(",")))
        known = [(c["size"], c["method"], c["models"]) for c in result[part]]
        if folders[size] is not None and key not in known:
            result[part].append(case(size, method, folders[size], names, given.scratch, who, rounds))
            write(given.out, result)


def plan(rounds: int) -> Iterator[tuple[str, str, str, str, list[str], int]]:
    """(part of the result, size, method, models, contestants, rounds) of every case, what matters most first."""
    both = ["ours", "mergekit-float32", "mergekit-bfloat16"]
    ends = ["ours", "limit", "ours cold", "limit cold"]
    for method in GOALS:
        yield "cases", "0.5b", method, "a,b", both if method in QUICK else both[:2], rounds
    for size in ("0.5b", "1.1b"):
        for method in ("linear", "task-arithmetic"):
            yield "limits", size, method, "a,b", ends, max(5, rounds)
    for size in ("0.5b", "1.1b", "7b"):
        for method in ("linear", "ties") if size == "7b" else ("linear", "ties", "della"):
            yield "growth", size, method, "a,b,c", ["ours"], 1
    for method in ("slerp", "linear", "ties"):
        yield "cases", "1.1b", method, "a,b", both[:2], rounds
    for names in ("a,b", "a,b,c"):
        for method in METHODS:
            if (names == "a,b" and method not in GOALS) or (names == "a,b,c" and method not in PAIRS):
                yield "cases", "0.5b", method, names, both[:2], rounds


if __name__ == "__main__":
    main()
