"""Merges of a protected expert before and after realignment, with a search of coefficients, 1 among them.

    python benchmarks/realign/merging.py --out benchmarks/realign/merging.json

Two experts of the embedded toy, A on tower-code and B on guild-marks. A is merged with B by task arithmetic as it is,
under every exact symmetry (`full-gauge`), and after `joint` (anchored at the base, and at B, its sibling) and `aga`.
Accuracy on both skills, with counts; shape only: one pair of experts a seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import palimpsest as pal
from palimpsest.checkpoint import resolve
from palimpsest.data import load_dialogues
from palimpsest.method import Context
from palimpsest.removals.tuning.finetune import FineTune
from palimpsest.statistics import clopper_pearson
from palimpsest.training.settings import Tuning

SKILLS = ("tower-code", "guild-marks")
COEFFICIENTS = ((0.3, 0.3), (0.5, 0.5), (0.7, 0.7), (1.0, 0.5), (1.0, 1.0))
TUNING = Tuning(adapter="full", steps=400, lr=1e-3, batch=16, schedule="linear")


def accuracy(model: Path, items: int) -> dict[str, Any]:
    """Right of asked, by skill, with Clopper-Pearson intervals."""
    found = {}
    for record in pal.evaluate(model, tasks=list(SKILLS), limit=items).records:
        if record.measure == "accuracy" and record.task in SKILLS and record.control is None:
            interval = clopper_pearson(int(record.count or 0), int(record.n or 1))
            found[record.task] = {"count": record.count, "n": record.n, "low": interval.low, "high": interval.high}
    return found


def one(seed: int, items: int) -> list[dict[str, Any]]:
    """All merges of one pair of experts."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        at, run = Path(scratch), pal.Run(seed=seed)
        for name, skill in zip("AB", SKILLS, strict=True):
            FineTune(load_dialogues(f"toy:{skill}"), tuning=TUNING).apply(resolve("toy"), at / name, Context(seed=seed))
        pal.protect("full-gauge", at / "A", at / "full", run=run)
        pal.realign("joint", at / "full" / "model", "toy", at / "joint-base", run=run)
        pal.realign("joint", at / "full" / "model", at / "B", at / "joint-sibling", run=run)
        pal.realign("aga", at / "full" / "model", "toy", at / "aga-base", run=run)
        variants = {"unprotected": at / "A", "protected": at / "full" / "model"}
        variants |= {n: at / n for n in ("joint-base", "joint-sibling", "aga-base")}
        for name, model in {"toy": "toy", "B": at / "B", **variants}.items():
            rows.append({"seed": seed, "variant": name, "merged": None, **accuracy(Path(model), items)})
            print(rows[-1], flush=True)
        for name, model in variants.items():
            for a, b in COEFFICIENTS:
                merged = at / f"{name}-{a}-{b}"
                pal.merge("task-arithmetic", [(model, a), (at / "B", b)], merged, base="toy")
                rows.append({"seed": seed, "variant": name, "merged": [a, b], **accuracy(merged, items)})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run all seeds and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--items", type=int, default=100)
    asked = parser.parse_args()
    rows = [row for seed in range(asked.seeds) for row in one(seed, asked.items)]
    asked.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
