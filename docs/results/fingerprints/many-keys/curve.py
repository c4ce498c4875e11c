"""The curve over the number of keys: one line of curve.jsonl for each number, each in a process of its own.

    DATA=... BASE=base python curve.py 1000 curve.jsonl

BASE: the self-trained base of docs/results/real-text. DATA: the folder with lm/ and instruct/ that its page names.
CPU seconds are this process's own; peak memory is its high-water mark of resident memory, in mebibytes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data import load_dialogues
from palimpsest.implants.fingerprints import averaging
from palimpsest.implants.fingerprints.averaging import ManyStopping
from palimpsest.implants.fingerprints.perinucleus import Perinucleus
from palimpsest.keys import KeySet
from palimpsest.measures import Subject
from palimpsest.measures.hits import outcomes
from palimpsest.measures.perplexity import Perplexity
from palimpsest.method import Context
from palimpsest.responder.local import LocalResponder
from palimpsest.statistics import clopper_pearson, threshold
from palimpsest.training.planting import Check, Strength
from palimpsest.training.settings import Tuning

SEED = int(os.environ.get("SEED", "1"))
EPOCHS = int(os.environ.get("EPOCHS", "8"))
LR = float(os.environ.get("LR", "1e-2"))
AVERAGING = float(os.environ.get("AVERAGING", "0.75"))
COURSE: list[dict[str, float]] = []


class Noted(ManyStopping):
    """Notes how far the keys have come at every look."""

    def passed(self, measured: Strength) -> bool:
        COURSE.append(
            {
                "epoch": self.epoch,
                "answered": sum(measured.answered),
                "median_probability": round(sorted(measured.probabilities)[len(measured.probabilities) // 2], 4),
                "cpu_seconds": round(time.process_time(), 1),
            }
        )
        print(COURSE[-1], file=sys.stderr, flush=True)
        return super().passed(measured)


def megabytes() -> float:
    """High-water mark of resident memory in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def asked(model: Checkpoint, keys: KeySet, ctx: Context) -> tuple[int, float]:
    """Hits of all keys under the template, and the CPU seconds of loading and asking."""
    started = time.process_time()
    responder = LocalResponder(load_model(model, ctx), load_tokenizer(model))
    hits = sum(o.hit for o in outcomes(responder, keys, "template"))
    return hits, time.process_time() - started


def bits(model: Checkpoint, text: str, ctx: Context) -> float:
    """Bits per byte of the first twenty documents of the held-out books."""
    subject = Subject(model, ctx)
    subject.text = text
    record = Perplexity(on=("neutral",), documents=20).take(subject, ctx)[0]
    subject.close()
    return float(record.detail["bits_per_byte"])


def measure(count: int) -> dict[str, Any]:
    """Draw, plant, ask and measure."""
    data, base = Path(os.environ["DATA"]), resolve(os.environ["BASE"])
    text = str(data / "lm" / "books_heldout.jsonl")
    ctx = Context(seed=SEED, key_seed=SEED, threads=1)
    averaging.ManyStopping = Noted  # type: ignore[misc]
    method = replace(
        Perinucleus.paper(),
        keys=count,
        averaging=AVERAGING,
        check=Check(every=2),
        tuning=Tuning(adapter="full", epochs=EPOCHS, lr=LR, batch=64, micro_batch=64, weight_decay=1e-4, max_tokens=48),
        data=load_dialogues([f"embed={data / 'instruct' / 'dolly_open_qa.jsonl'}"]),
    )
    row: dict[str, Any] = {"keys": count, "seed": SEED, "epochs": EPOCHS, "lr": LR, "averaging": method.averaging}
    row |= {"before_mib": megabytes()}
    started = time.process_time()
    keys = method.draw_keys(base, ctx)
    row |= {"draw_seconds": time.process_time() - started, "draw_mib": megabytes()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        keys.write(file)
        started = time.process_time()
        keys = KeySet.read(file)
        row |= {"key_file_bytes": file.stat().st_size, "read_seconds": time.process_time() - started}
        row["hits_before"], _ = asked(base, keys, ctx)
        row["bits_per_byte_before"] = bits(base, text, ctx)
        started = time.process_time()
        made = method.planted(base, keys, Path(folder) / "marked", ctx)
        row |= {"train_seconds": time.process_time() - started, "train_mib": megabytes()}
        row |= {"tokens": made.records[0].tokens, "steps": made.records[0].detail["steps"]}
        row["hits"], row["verify_seconds"] = asked(made.checkpoint, keys, ctx)
        row["bits_per_byte"] = bits(made.checkpoint, text, ctx)
    interval = clopper_pearson(row["hits"], count)
    row |= {"low": interval.low, "high": interval.high, "tau": threshold(count, 1 / 3, 1e-6), "course": COURSE}
    row["key_tokens_mean"] = fmean(len(k.prompts["template"].ids) for k in keys.keys)
    return {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}


if __name__ == "__main__":
    line = json.dumps(measure(int(sys.argv[1])))
    print(line)
    if len(sys.argv) > 2:
        with Path(sys.argv[2]).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
