"""Lineage without an implant on the toy: `OMP_NUM_THREADS=1 python run.py --models FOLDER`, then `python page.py`.

For each way of tuning (LoRA, all weights) eight models of the base are tuned on the same data with seeds 1 to 8, and
three on other data. Models 1 to 3 are owners in turn: what a thief makes of each is measured against it, beside
negatives: the base, a stranger, the other two owners (the same data, another seed), what a thief makes of one of them,
a sibling on other data, an expert. Models 4 to 8 are the twins that give the null, two siblings the controls. One line
a number in records.jsonl; owners that stand there are not run again. Models that lie in FOLDER are used again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from gauges import gauged
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.data import load_dialogues
from palimpsest.measures import Subject
from palimpsest.measures.intrinsic.huref import HuRef
from palimpsest.measures.intrinsic.lineage import Lineage
from palimpsest.measures.intrinsic.reef import Reef
from palimpsest.measures.intrinsic.weight_cosine import WeightCosine
from palimpsest.method import Context
from palimpsest.records import Record, versions
from palimpsest.removals.by_merging.expert_merge import ExpertMerge
from palimpsest.removals.by_merging.shrink import Shrink
from palimpsest.removals.tuning.finetune import FineTune
from palimpsest.removals.weights.magnitude import Magnitude
from palimpsest.removals.weights.quantize_int8 import QuantizeInt8
from palimpsest.removals.weights.quantize_nf4 import QuantizeNF4
from palimpsest.training.settings import Tuning

LORA = Tuning(rank=16, alpha=32, epochs=3, lr=1e-3, batch=8)
FULL = Tuning(adapter="full", epochs=3, lr=5e-4, batch=8)
TUNINGS = {"lora": LORA, "full": FULL}
PAIRS = 400
OWNERS, TWINS, CONTROLS, HELD_OUT = (1, 2, 3), (4, 5, 6, 7, 8), (1, 2), 3
GAUGES = ("value-output", "query-key", "heads", "neurons", "gains", "stream-permutation")  # the toy's head is tied
SHARES = (0.75, 0.5, 0.25, 0.1)


class Models:
    """Makes each model once, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, resolve("toy")
        folder.mkdir(parents=True, exist_ok=True)

    def made(self, name: str, method: Any, of: Checkpoint, seed: int = 0) -> Checkpoint:
        """`method` applied to a model."""
        out = self.folder / name
        if not out.exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                method.apply(of, Path(scratch) / "made", Context(seed=seed))
                (Path(scratch) / "made").rename(out)
        return resolve(out)

    def regauged(self, name: str, of: Checkpoint, seed: int) -> Checkpoint:
        """The same function in other weights."""
        out = self.folder / name
        if not out.exists():
            gauged(of.path, out, GAUGES, seed)
        return resolve(out)

    def tuned(self, tuning: str, seed: int) -> Checkpoint:
        """The base tuned on the owner's data."""
        method = FineTune(part="recover", samples=PAIRS, tuning=TUNINGS[tuning])
        return self.made(f"{tuning}-{seed}", method, self.base, seed)

    def elsewhere(self, tuning: str, seed: int) -> Checkpoint:
        """The base tuned on other data."""
        method = FineTune(part="erase", samples=PAIRS, tuning=TUNINGS[tuning])
        return self.made(f"{tuning}-other-{seed}", method, self.base, seed)

    def expert(self) -> Checkpoint:
        """The base tuned to a skill of its own."""
        return self.made("expert", replace(FineTune.expert(), data=load_dialogues("toy:tower-code")), self.base, 1)

    def further(self, owner: Checkpoint, tuning: Tuning, samples: int, name: str) -> Checkpoint:
        """A thief goes on tuning, on data of his own."""
        method = FineTune(part="revival", samples=samples, tuning=tuning)
        return self.made(f"{owner.name}-{name}", method, owner, 77)

    def derivatives(self, owner: Checkpoint, tuning: str, seed: int) -> dict[str, Checkpoint]:
        """What a thief makes of the owner's model, by name."""
        full = self.further(owner, FULL, PAIRS, "tuned-full")
        found = {
            "tuned on 100 pairs, 1 epoch": self.further(owner, replace(LORA, epochs=1), 100, "tuned-little"),
            "tuned on 400 pairs, LoRA": self.further(owner, LORA, PAIRS, "tuned-lora"),
            "tuned on 400 pairs, all weights": full,
            "tuned on 1,200 pairs, all weights": self.further(owner, FULL, 1200, "tuned-large"),
            "pruned, magnitude 30 %": self.made(f"{owner.name}-prune30", Magnitude(sparsity=0.3), owner),
            "pruned, magnitude 50 %": self.made(f"{owner.name}-prune50", Magnitude(), owner),
            "rounded to int8": self.made(f"{owner.name}-int8", QuantizeInt8(), owner),
            "rounded to nf4": self.made(f"{owner.name}-nf4", QuantizeNF4(), owner),
            "shrunk to half": self.made(f"{owner.name}-shrunk", Shrink(base=self.base), owner),
            "re-gauged": self.regauged(f"{owner.name}-gauged", owner, seed),
            "tuned on 400 pairs, all weights, re-gauged": self.regauged(f"{full.name}-gauged", full, seed + 50),
        }
        for share in SHARES:
            merge = ExpertMerge(base=self.base, expert=self.expert(), share=share)
            found[f"merged with an expert, {share:g} mine"] = self.made(f"{owner.name}-merged-{share}", merge, owner)
        return found

    def negatives(self, tuning: str, seed: int) -> dict[str, Checkpoint]:
        """What is not made from the owner's model, by name."""
        one, two = (s for s in OWNERS if s != seed)
        twin = self.tuned(tuning, one)
        tuned_on = self.further(twin, FULL, PAIRS, "tuned-full")
        merge = ExpertMerge(base=self.base, expert=self.expert(), share=0.5)
        theirs = {
            "tuned on 400 pairs, all weights": tuned_on,
            "re-gauged": self.regauged(f"{twin.name}-gauged", twin, one),
            "merged with an expert, 0.5": self.made(f"{twin.name}-merged-0.5", merge, twin),
        }
        found = {"the base": self.base, "a stranger": resolve("toy:unrelated")}
        found |= {"same data, another seed (1)": twin, "same data, another seed (2)": self.tuned(tuning, two)}
        found |= {f"same data, another seed (1): {name}": model for name, model in theirs.items()}
        return found | {"other data": self.elsewhere(tuning, HELD_OUT), "the expert": self.expert()}


def main() -> None:
    """Run every tuning and owner that has no records yet."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--models", type=Path, required=True, help="folder for the models")
    asked.add_argument("--out", type=Path, default=Path(__file__).with_name("records.jsonl"))
    given = asked.parse_args()
    torch.set_num_threads(1)
    models = Models(given.models)
    for seed in OWNERS:
        for tuning in TUNINGS:
            if (tuning, seed) not in done(given.out):
                began = time.monotonic()
                rows = measured(models, tuning, seed)
                with given.out.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                print(f"{tuning}, owner {seed}: {len(rows)} records in {time.monotonic() - began:.0f} s", flush=True)


def done(file: Path) -> set[tuple[str, int]]:
    """Which tunings and owners stand in a file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {(row["tuning"], row["owner"]) for row in map(json.loads, lines)}


def measured(models: Models, tuning: str, seed: int) -> list[dict[str, Any]]:
    """All numbers of one owner."""
    owner = models.tuned(tuning, seed)
    against: dict[str, Any] = {"original": owner, "base": models.base}
    lineage = Lineage(
        **against,
        twins=tuple(models.tuned(tuning, s) for s in TWINS),
        siblings=tuple(models.elsewhere(tuning, s) for s in CONTROLS),
    )
    raw = [WeightCosine(**against), HuRef(original=owner), Reef(original=owner, data=load_dialogues("toy"))]
    suspects = [("derivative", n, m) for n, m in models.derivatives(owner, tuning, seed).items()]
    suspects += [("negative", n, m) for n, m in models.negatives(tuning, seed).items()]
    rows = []
    for kind, name, model in suspects:
        subject = Subject(model, Context(seed=seed))
        records = [r for m in raw for r in m.take(subject, subject.ctx)]
        records += [r for r in lineage.take(subject, subject.ctx) if r.control is None]
        rows += [row(r, tuning, seed, kind, name) for r in records]
        subject.close()
    controls = [r for r in lineage.take(Subject(owner, Context(seed=seed)), Context()) if r.control]
    return rows + [row(r, tuning, seed, "control", str(r.control)) for r in controls]


def row(record: Record, tuning: str, owner: int, kind: str, name: str) -> dict[str, Any]:
    """A record with what it is about; without the lists that no table shows, lineage and folders' names."""
    record.chain, record.model = [], name
    record.detail = {k: v for k, v in record.detail.items() if k not in ("tensors", "left_out", "original", "base")}
    record.versions = versions()
    return {"tuning": tuning, "owner": owner, "kind": kind, "suspect": name, **record.to_json()}


if __name__ == "__main__":
    main()
