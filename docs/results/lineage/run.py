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
from palimpsest.measures.intrinsic.cka import cka
from palimpsest.measures.intrinsic.differences import NOTHING, Shared, judge, shared
from palimpsest.measures.intrinsic.huref import HuRef
from palimpsest.measures.intrinsic.invariants import opened
from palimpsest.measures.intrinsic.lineage import Lineage, differences
from palimpsest.measures.intrinsic.reef import Reef, layer_at
from palimpsest.measures.intrinsic.states import last_token_states
from palimpsest.measures.intrinsic.weight_cosine import WeightCosine
from palimpsest.method import Context
from palimpsest.records import versions
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
TOKENS, PROMPTS = 512, 100  # fewer than the measures' defaults: 1,024 (lineage), 4,096 (huref), 200 (reef)


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
            for part in (lineage_rows, raw_rows):
                if (tuning, seed, part.__name__) not in done(given.out):
                    began = time.monotonic()
                    rows = [{**row, "part": part.__name__} for row in part(models, tuning, seed)]
                    with given.out.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                    took = time.monotonic() - began
                    print(f"{tuning}, owner {seed}, {part.__name__}: {len(rows)} in {took:.0f} s", flush=True)


def done(file: Path) -> set[tuple[str, int, str]]:
    """Which tunings, owners and parts stand in a file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {(row["tuning"], row["owner"], row["part"]) for row in map(json.loads, lines)}


def suspects_of(models: Models, tuning: str, seed: int) -> list[tuple[str, str, Checkpoint]]:
    """Kind, name and model of all suspects."""
    found = [("derivative", n, m) for n, m in models.derivatives(models.tuned(tuning, seed), tuning, seed).items()]
    return found + [("negative", n, m) for n, m in models.negatives(tuning, seed).items()]


def raw_rows(models: Models, tuning: str, seed: int) -> list[dict[str, Any]]:
    """Similarity of every suspect to the owner's model."""
    ctx, owner = Context(seed=seed), models.tuned(tuning, seed)
    prompts = [d.question for d in load_dialogues("toy").part("test")[:PROMPTS]]
    theirs = states(owner, prompts, ctx)
    at = layer_at(Reef().depth, len(theirs))
    rows = []
    for kind, name, model in suspects_of(models, tuning, seed):
        about = {"tuning": tuning, "owner": seed, "kind": kind, "suspect": name, "measure": "similarity"}
        subject = Subject(model, ctx)
        weights, huref = WeightCosine(original=owner, base=models.base), HuRef(original=owner, tokens=TOKENS)
        records = [*weights.take(subject, ctx), *huref.take(subject, ctx)]
        rows += [{**about, "task": r.task, "value": r.value} for r in records]
        rows.append({**about, "task": "reef", "value": cka(states(model, prompts, ctx)[at], theirs[at])})
    return [{**r, "versions": versions()} for r in rows]


def states(model: Checkpoint, prompts: list[str], ctx: Context) -> list[Any]:
    """Hidden states of a model, which is let go."""
    subject = Subject(model, ctx)
    found = last_token_states(subject, prompts)
    subject.close()
    return found


def lineage_rows(models: Models, tuning: str, seed: int) -> list[dict[str, Any]]:
    """Cosine, share and verdict of every suspect and control by the measure `lineage`'s own functions.

    What the measure does for one suspect is done for all together: each model is read once.
    """
    measure = Lineage(tokens=TOKENS)
    suspects = suspects_of(models, tuning, seed)
    siblings = [*(models.tuned(tuning, s) for s in TWINS), *(models.elsewhere(tuning, s) for s in CONTROLS)]
    everyone = [models.tuned(tuning, seed), *siblings, *(model for _, _, model in suspects)]
    with opened([models.base, *everyone]) as (base, *read):
        found = differences(base, read, measure.tokens, measure.choice, measure.layers, Context())
    gram, first = found.gram, 1 + len(siblings)
    own, others = range(1, 1 + len(TWINS)), range(1 + len(TWINS), first)
    controls = {number: shared(gram, number, 0, own, others) for number in range(1, first)}
    rows = []
    for number, (kind, name, _) in enumerate(suspects, first):
        about = {"tuning": tuning, "owner": seed, "kind": kind, "suspect": name}
        each = shared(gram, number, 0, own, others)
        said = judge(each, list(controls.values()), found.correlations[number], measure.alpha)
        if each.norm > NOTHING:
            rows += numbers(about, each)
        p = {"value": each.t_p, "rank_p": each.rank_p} if each.norm > NOTHING else {}
        rows.append({**about, "measure": "lineage", **p, "verdict": said.word, "reason": said.reason})
        rows[-1] |= {"correlation": found.correlations[number], "norm": each.norm, "twins": list(each.twins)}
    for number, each in controls.items():
        name = "a twin" if number in own else "other data"
        about = {"tuning": tuning, "owner": seed, "kind": "control", "suspect": name}
        rows += numbers(about, each)
        word = "derivative" if each.t_p is not None and each.t_p <= measure.alpha else "same-base"
        rows.append({**about, "measure": "lineage", "value": each.t_p, "verdict": word})
    return [{**r, "versions": versions()} for r in rows]


def numbers(about: dict[str, Any], found: Shared) -> list[dict[str, Any]]:
    """Cosine and share as rows."""
    pairs = (("lineage", found.cosine), ("lineage-share", found.share))
    return [{**about, "measure": "similarity", "task": task, "value": value} for task, value in pairs]


if __name__ == "__main__":
    main()
