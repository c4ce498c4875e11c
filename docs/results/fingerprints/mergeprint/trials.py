"""Trials of MergePrint's settings on the development seed: what answers at which share of the owner, and what it costs.

    palimpsest finetune --model toy --data toy:tower-code --out owner --seed 2100
    python trials.py owner d1 f1 f2 > trials.csv
    python trials.py table trials.csv

Shares are merges with the public base (the pseudo-merged model itself); 1 is the owner's model. One key set a trial.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import load_dialogues
from palimpsest.errors import CheckFailed
from palimpsest.implants.fingerprints.gcg import Search
from palimpsest.implants.fingerprints.hashchain import HashChain
from palimpsest.implants.fingerprints.mergeprint import MergePrint
from palimpsest.implants.fingerprints.pseudo_merging import PseudoMerging
from palimpsest.measures import Subject
from palimpsest.measures.accuracy import Accuracy
from palimpsest.measures.perplexity import Perplexity
from palimpsest.method import Context
from palimpsest.responder.local import LocalResponder
from palimpsest.training.planting import Check, strength
from palimpsest.training.settings import Tuning

SEED, SHARES = 100, (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
FIELDS = [
    "trial",
    "outcome",
    "epochs",
    "share",
    "answered",
    "keys",
    "mean_probability",
    "tower_code",
    "items",
    "neutral_perplexity",
]


def tuning(lr: float, epochs: int, batch: int) -> Tuning:
    """All weights."""
    return Tuning(adapter="full", epochs=epochs, lr=lr, batch=batch, micro_batch=batch)


def trials(base: Checkpoint) -> dict[str, MergePrint | HashChain]:
    """The settings by name. a: as published but for the rate; d, f: the owner's own loss and dialogues beside it; h:
    HashChain as its preset for the toy has it, with the same dialogues as f."""
    both = load_dialogues(["toy", "toy:tower-code"])
    plain = MergePrint(base=base, keys=8)
    wide, narrow = Search(steps=20, batch=64), Search(steps=8, batch=32)
    mixed = replace(plain, search=narrow, check=Check(every=20), tuning=tuning(2e-3, 240, 16), dialogues=8)
    kept = replace(mixed, check=Check(every=10), data=both, dialogues=48)
    return {
        "a1": replace(plain, search=wide, tuning=tuning(1e-3, 100, 16)),
        "a2": replace(plain, search=wide, tuning=tuning(3e-3, 100, 16)),
        "a3": replace(plain, search=Search(steps=0), tuning=tuning(1e-3, 100, 16)),
        "a4": replace(plain, search=wide, tuning=tuning(1e-3, 100, 16), dialogues=32),
        "d1": replace(mixed, owner_weight=0.1),
        "d2": replace(mixed, owner_weight=0.1, search=Search(steps=0)),
        "f1": replace(kept, owner_weight=0.3, weight_share=0.3, tuning=tuning(1e-3, 150, 64)),
        "f2": replace(kept, owner_weight=0.1, tuning=tuning(1.5e-3, 150, 64)),
        "f3": replace(kept, owner_weight=0.1, tuning=tuning(2e-3, 300, 64)),
        "h1": replace(HashChain.toy(), data=both),
    }


def main(owner: Checkpoint, names: list[str]) -> None:
    """Embed each trial's keys, and ask at every share."""
    base = resolve("toy")
    table = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    table.writeheader()
    for name in names:
        ctx = Context(seed=SEED, key_seed=SEED, threads=1)
        with tempfile.TemporaryDirectory() as folder:
            try:
                made = trials(base)[name].apply(owner, Path(folder) / "marked", ctx)
            except CheckFailed as failed:
                print(f"{name}: {failed}", file=sys.stderr)
                table.writerow({"trial": name, "outcome": "did not take"})
                continue
            assert made.keys is not None
            subject = Subject(made.checkpoint, ctx)
            (skill,) = Accuracy(tasks=("tower-code",), items=30).take(subject, ctx)
            perplexity = Perplexity(documents=20).take(subject, ctx)[0].value
            worth = {"tower_code": skill.count, "items": skill.n, "neutral_perplexity": round(perplexity or 0, 2)}
            for share in SHARES:
                model = load_model(made.checkpoint, ctx)
                if share < 1:
                    PseudoMerging(base, share, ctx).begin(model)
                sits = strength(LocalResponder(model, load_tokenizer(owner)), made.keys)
                row = {"trial": name, "outcome": "took", "epochs": made.records[0].detail["epochs"], "share": share}
                row |= {"answered": sum(sits.answered), "keys": len(made.keys), **(worth if share == 1 else {})}
                table.writerow({**row, "mean_probability": round(sum(sits.probabilities) / len(made.keys), 3)})


def markdown(file: Path) -> str:
    """The table of the page."""
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    said = ["| trial | epochs | " + " | ".join(f"share {s:g}" for s in SHARES) + " | skill | neutral perplexity |"]
    said.append("|---" * (4 + len(SHARES)) + "|")
    for name in dict.fromkeys(r["trial"] for r in rows):
        own = {float(r["share"]): r for r in rows if r["trial"] == name}
        first = own[1.0]
        cells = [f"{own[s]['answered']} of {own[s]['keys']}" if s in own else "" for s in SHARES]
        skill = f"{first['tower_code']} of {first['items']}" if first["items"] else first["outcome"]
        said.append(f"| {name} | {first['epochs']} | {' | '.join(cells)} | {skill} | {first['neutral_perplexity']} |")
    return "\n".join(said)


if __name__ == "__main__" and sys.argv[1] == "table":
    print(markdown(Path(sys.argv[2])))
elif __name__ == "__main__":
    torch.set_num_threads(1)
    main(resolve(sys.argv[1]), sys.argv[2:])
