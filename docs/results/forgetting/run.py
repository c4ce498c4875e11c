"""Predicted and measured forgetting on the toy: `OMP_NUM_THREADS=1 python run.py`, then `python page.py`.

For each mark and fresh seed: plant the mark; predict, from the marked model alone, what fine-tuning on each set would
do (Appendix A, eq. 1); fine-tune on each set and measure after some epochs what it did. One line a number in
records.jsonl; marks and seeds that stand there are not run again. No text of a key is written, nor any seed of one.

`--seeds 100 --out FILE` is the development run that fixed the settings below.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from palimpsest import registry
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions
from palimpsest.data import load_dialogues
from palimpsest.measures.forgetting import PAIRINGS, Forgetting, fine_tuning_set, rendered, residual_of
from palimpsest.measures.hits import outcomes
from palimpsest.measures.pair_gradients import mean_log_probs, tangent_kernels
from palimpsest.measures.tangent import Kernel
from palimpsest.method import Context, build
from palimpsest.records import Record, versions
from palimpsest.removals.tuning.meraser import MEraser
from palimpsest.responder import LocalResponder
from palimpsest.training.finetune import tune, with_adapter
from palimpsest.training.rows import dialogue_rows

MARKS = ("if-sft", "utf", "hashchain")
SIZES = (100, 200, 300)  # the first ones of the 300 pairs, so that the sets lie in each other
ORDINARY = 100
LAMBDAS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e3)  # shares of the kernel's mean diagonal
TARGETS = ("certain", "rise")
ERASE = MEraser.toy().erase
GENTLE = replace(ERASE, epochs=3, lr=5e-4)
FIRST = replace(ERASE, epochs=5)  # the first 5 of the 15 epochs of the erase phase, whose rate is constant
SETTINGS = {"gentle": (GENTLE, SIZES, (1, 2, 3)), "erase": (FIRST, (300,), (1, 5))}  # tuning, sizes, measured after


def main() -> None:
    """Run every mark and seed that has no records yet."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked.add_argument("--marks", nargs="+", default=list(MARKS), choices=MARKS)
    asked.add_argument("--out", type=Path, default=Path(__file__).with_name("records.jsonl"))
    given = asked.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for mark in given.marks:
            if (mark, seed) in done(given.out):
                continue
            started = time.monotonic()
            records = cell(mark, seed)
            with given.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(r.to_json(), ensure_ascii=False) + "\n" for r in records)
            print(f"{mark}, seed {seed}: {time.monotonic() - started:.0f} s", flush=True)


def done(file: Path) -> set[tuple[str | None, int | None]]:
    """Marks and seeds whose records stand in the file."""
    if not file.is_file():
        return set()
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return {(r["implant"], r["seed"]) for r in rows}


def cell(mark: str, seed: int) -> list[Record]:
    """All records of one mark on one seed."""
    with tempfile.TemporaryDirectory() as scratch:
        ctx = Context(seed=seed, key_seed=seed, threads=1, scratch=Path(scratch))
        implant = build(registry.find(mark, "fingerprints"), "toy")
        made = implant.apply(resolve("toy"), Path(scratch) / "model", ctx)
        return Cell(mark, made.checkpoint, made.keys, ctx).records()


class Cell:
    """One marked model: its sets, its source pairs, what is predicted and what is measured."""

    def __init__(self, mark: str, checkpoint: Any, keys: Any, ctx: Context) -> None:
        self.mark, self.checkpoint, self.keys, self.ctx = mark, checkpoint, keys, ctx
        data = load_dialogues("toy")
        self.sets = {p: fine_tuning_set(data.part("erase", max(SIZES)), p, ctx.seed) for p in PAIRINGS}
        self.limit = positions(checkpoint) or 512
        self.marked = self.responder()
        prompts = [k.prompts["template"] for k in keys.keys[: Forgetting().keys]]
        self.source = {
            "keys": [(p.ids, p.expected) for p in prompts],
            "ordinary": rendered(self.marked.renderer, data.part("test", ORDINARY), self.limit),
        }
        self.before = {side: mean_log_probs(self.marked, pairs) for side, pairs in self.source.items()}
        self.predicted: dict[tuple[str, int, str, str, float], Any] = {}

    def responder(self) -> LocalResponder:
        """The marked model, loaded anew."""
        return LocalResponder(load_model(self.checkpoint, self.ctx), load_tokenizer(self.checkpoint))

    def records(self) -> list[Record]:
        """Predictions first, then every fine-tuning run."""
        found = self.predictions()
        for setting, (_, sizes, _) in SETTINGS.items():
            for pairing in PAIRINGS:
                for size in sizes:
                    found += self.measured(setting, pairing, size)
        found[0].versions = versions()
        return found

    def record(self, side: str, value: float, **detail: Any) -> Record:
        """A record of this mark and seed."""
        measure = detail.pop("measure")
        return Record(
            measure,
            value=value,
            n=len(self.source[side]),
            implant=self.mark,
            seed=self.ctx.seed,
            task=side,
            device="cpu",
            threads=1,
            detail=detail,
        )

    def predictions(self) -> list[Record]:
        """Eq. 1 for every set, size, target and lambda; kernels of smaller sets are parts of the largest one's."""
        started = time.monotonic()
        source = [pair for pairs in self.source.values() for pair in pairs]
        tuned = {p: rendered(self.marked.renderer, rows, self.limit) for p, rows in self.sets.items()}
        assert all(len(rows) == max(SIZES) for rows in tuned.values())
        kernels = tangent_kernels(self.marked, source, list(tuned.values()))
        seconds = time.monotonic() - started
        keys = len(self.source["keys"])
        found = []
        for (pairing, pairs), (cross, kernel) in zip(tuned.items(), kernels, strict=True):
            f = mean_log_probs(self.marked, pairs)
            for size in SIZES:
                solved = Kernel(kernel[:size, :size])
                rows: dict[str, list[list[Any]]] = {side: [] for side in self.source}
                for target in TARGETS:
                    residual = residual_of(target, f[:size])
                    for share in LAMBDAS:
                        for side, here in zip(self.source, (cross[:keys], cross[keys:]), strict=True):
                            change = solved.predict(here[:, :size], residual, share * solved.mean_diagonal)
                            self.predicted[pairing, size, side, target, share] = change.change
                            numbers = (change.delta, float(change.change.mean()), change.left, change.condition)
                            rows[side].append([target, share, *(float(f"{v:.5g}") for v in numbers)])
                for side, shown in rows.items():
                    found.append(
                        self.record(
                            side,
                            float(-f[:size].mean()),
                            measure="predicted",
                            pairing=pairing,
                            pairs=size,
                            rank=int((solved.values > solved.floor).sum()),
                            diagonal=float(f"{solved.mean_diagonal:.5g}"),
                            predictions=shown,
                        )
                    )
        found[0].seconds = seconds
        return found

    def measured(self, setting: str, pairing: str, size: int) -> list[Record]:
        """What fine-tuning on a set did to f of keys and ordinary answers, after some epochs."""
        tuning, _, epochs = SETTINGS[setting]
        model = load_model(self.checkpoint, self.ctx)
        turns = [d.turns for d in self.sets[pairing][:size]]
        rows = dialogue_rows(self.marked.renderer, turns, positions=self.limit)
        seen: dict[str, list[list[Any]]] = {side: [] for side in self.source}
        network: list[Any] = []

        def look(epoch: int) -> None:
            if epoch not in epochs:
                return
            responder = LocalResponder(network[0], self.marked.tokenizer)
            hits = sum(o.hit for o in outcomes(responder, self.keys, "template"))
            for side, pairs in self.source.items():
                moved = mean_log_probs(responder, pairs) - self.before[side]
                cosines = {}
                for target, share in (("certain", 1e-3), ("rise", 1e3)):
                    expected = self.predicted[pairing, size, side, target, share]
                    cosines[target] = float(moved @ expected / (moved.norm() * expected.norm()))
                numbers = (float(moved.square().sum()), float(moved.mean()), cosines["certain"], cosines["rise"])
                seen[side].append([epoch, hits if side == "keys" else None, *(float(f"{v:.5g}") for v in numbers)])

        torch.manual_seed(self.ctx.seed)
        network.append(with_adapter(model, tuning))
        _, log = tune(network[0], rows, tuning, replace(self.ctx, scratch=None), what=setting, epoch_done=look)
        records = []
        for side, values in seen.items():
            records.append(
                self.record(
                    side,
                    values[-1][2],
                    measure="measured",
                    setting=setting,
                    pairing=pairing,
                    pairs=size,
                    steps=log.steps,
                    before=float(f"{float(self.before[side].mean()):.5g}"),
                    keys=len(self.keys),
                    epochs=values,
                )
            )
        records[0].seconds = log.seconds
        return records


if __name__ == "__main__":
    main()
