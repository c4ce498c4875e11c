"""Write page.md from records.jsonl and reading.md: `python page.py`. Every number of its tables is a record's."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

HERE = Path(__file__).parent
PAIRINGS = ("derangement", "cross-type", "random", "clean")
TARGETS = ("certain", "rise")
PRIMARY = ("certain", 1e-3)  # the measure's default, fixed before the fresh seeds were run
DRAWS = 20_000
Set = tuple[str, int]  # pairing, pairs


class Cell:
    """One mark on one seed. Of each side (keys, ordinary): what was predicted and measured, by set."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.mark, self.seed = rows[0]["implant"], rows[0]["seed"]
        self.predicted = {
            (r["task"], (r["detail"]["pairing"], r["detail"]["pairs"])): r for r in rows if r["measure"] == "predicted"
        }
        self.measured = {
            (r["task"], r["detail"]["setting"], (r["detail"]["pairing"], r["detail"]["pairs"])): r
            for r in rows
            if r["measure"] == "measured"
        }

    def prediction(self, side: str, of: Set, target: str, share: float) -> tuple[float, float, float, float]:
        """(Delta, mean change in nats a token, share left unfitted, condition)."""
        for row in self.predicted[side, of]["detail"]["predictions"]:
            if row[0] == target and row[1] == share:
                return row[2], row[3], row[4], row[5]
        raise KeyError((target, share))

    def residual(self, of: Set) -> float:
        """Mean residual of the set, nats a token."""
        return float(self.predicted["keys", of]["value"])

    def outcome(self, side: str, setting: str, of: Set, epoch: int) -> dict[str, Any]:
        """What a run had done after an epoch."""
        detail = self.measured[side, setting, of]["detail"]
        for number, hits, squared, mean, certain, rise in detail["epochs"]:
            if number == epoch:
                cosine = {"certain": certain, "rise": rise}
                return {"hits": hits, "squared": squared, "drop": -mean, "cosine": cosine, "of": detail["keys"]}
        raise KeyError(epoch)


# Comparisons: name to (setting, its sets with the epoch after which each is looked at).
COMPARISONS: dict[str, tuple[str, list[tuple[Set, int]]]] = {
    "gentle, 4 sets of 300, after 1 epoch": ("gentle", [((p, 300), 1) for p in PAIRINGS]),
    "gentle, 4 sets of 300, after 3 epochs": ("gentle", [((p, 300), 3) for p in PAIRINGS]),
    "gentle, 8 sets of 100 and 300, after 38 or 39 steps": (
        "gentle",
        [((p, n), e) for p in PAIRINGS for n, e in ((100, 3), (300, 1))],
    ),
    "gentle, 12 sets of 100, 200 and 300, after 3 epochs": (
        "gentle",
        [((p, n), 3) for p in PAIRINGS for n in (100, 200, 300)],
    ),
    "erase, 4 sets of 300, after 1 epoch": ("erase", [((p, 300), 1) for p in PAIRINGS]),
    "erase, 4 sets of 300, after 5 epochs": ("erase", [((p, 300), 5) for p in PAIRINGS]),
}
WRONG = PAIRINGS[:3]
COMPARISONS |= {  # added after the fresh seeds were seen: is more told apart than right answers from wrong ones?
    "gentle, 3 sets of 300 without clean, after 3 epochs": ("gentle", [((p, 300), 3) for p in WRONG]),
    "erase, 3 sets of 300 without clean, after 5 epochs": ("erase", [((p, 300), 5) for p in WRONG]),
}
Predictor = Callable[[Cell, str, Set], float]


def delta(target: str, share: float) -> Predictor:
    """Delta of eq. 1 as a predictor."""
    return lambda cell, side, of: cell.prediction(side, of, target, share)[0]


def signed(target: str, share: float) -> Predictor:
    """The predicted mean drop (nats a token)."""
    return lambda cell, side, of: -cell.prediction(side, of, target, share)[1]


def ranked(cell: Cell, side: str, comparison: str, by: Predictor, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (see `standard`) of what was predicted and of what came, over the sets of a comparison."""
    setting, looked = COMPARISONS[comparison]
    guess = standard([by(cell, side, of) for of, _ in looked])
    return guess, standard([cell.outcome(side, setting, of, epoch)[what] for of, epoch in looked])


def rho(cell: Cell, side: str, comparison: str, by: Predictor, what: str) -> float:
    """Spearman's rho of one cell over the sets of a comparison."""
    guess, true = ranked(cell, side, comparison, by, what)
    return float(guess @ true)


@cache
def orders(count: int, seed: int) -> np.ndarray:
    """All permutations of up to four sets, else 20,000 drawn ones; (permutations, count)."""
    if count <= 4:
        return np.array(list(itertools.permutations(range(count))))
    draw = np.random.default_rng(seed)
    return np.array([draw.permutation(count) for _ in range(DRAWS)])


def permutation_p(cells: Sequence[Cell], side: str, comparison: str, by: Predictor, what: str) -> float:
    """One-sided p for the mean rho of the cells, when the sets of each are permuted apart from the other cells'.

    Every combination of permutations for up to four sets; drawn ones, the order found counted with them, for more.
    """
    pairs = [ranked(cell, side, comparison, by, what) for cell in cells]
    least = sum(float(guess @ true) for guess, true in pairs) - 1e-9
    count = len(pairs[0][0])
    nulls = [true[orders(count, place)] @ guess for place, (guess, true) in enumerate(pairs)]
    if count <= 4:
        sums = np.zeros(1)
        for null in nulls:
            sums = (sums[:, None] + null[None, :]).ravel()
        return float((sums >= least).mean())
    return float((1 + (sum(nulls) >= least).sum()) / (1 + DRAWS))


def standard(values: Sequence[float]) -> np.ndarray:
    """Ranks (ties share theirs) with mean 0 and norm 1, so that a product of two is Spearman's rho; 0 without order."""
    ranks = rankdata(values) - (len(values) + 1) / 2
    norm = np.linalg.norm(ranks)
    return ranks / norm if norm > 0 else ranks


# -- the page ---------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """One number a seed."""
    return ", ".join(f"{v:{form}}" for v in values)


def shown_p(p: float) -> str:
    """A p-value in a few characters."""
    return f"{p:.4f}" if p >= 1e-4 else f"{p:.0e}"


def by_mark(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells of each mark, by seed."""
    found: dict[str, list[Cell]] = defaultdict(list)
    for cell in sorted(cells, key=lambda c: c.seed):
        found[cell.mark].append(cell)
    return found


def sets_table(cells: Sequence[Cell], side: str) -> str:
    """Predicted and measured for the sets of 300, one number a seed."""
    rows = []
    for mark, own in by_mark(cells).items():
        for pairing in PAIRINGS:
            of = (pairing, 300)
            row = [mark, pairing, spread([c.residual(of) for c in own])]
            for target in TARGETS:
                row.append(spread([c.prediction(side, of, target, 1e-3)[0] for c in own], ".3g"))
            row.append(spread([-c.prediction(side, of, *PRIMARY)[1] for c in own], ".2g"))
            for setting, epoch in (("gentle", 3), ("erase", 5)):
                done = [c.outcome(side, setting, of, epoch) for c in own]
                row.append(spread([d["drop"] for d in done]))
                if side == "keys":
                    row.append(", ".join(str(d["hits"]) for d in done) + f" of {done[0]['of']}")
            rows.append(row)
    hits = ["keys left, gentle"] if side == "keys" else []
    full = ["keys left, erase"] if side == "keys" else []
    head = ["mark", "set", "mean residual", "Δ, certain", "Δ, rise", "predicted drop, certain"]
    return table([*head, "drop, gentle", *hits, "drop, erase", *full], rows)


def correlation_table(cells: Sequence[Cell], side: str, what: str, by: Predictor) -> str:
    """Spearman's rho of a predictor with the outcome, a row a comparison."""
    marks = by_mark(cells)
    rows = []
    for name in COMPARISONS:
        row = [name]
        for own in marks.values():
            rhos = [rho(cell, side, name, by, what) for cell in own]
            row.append(f"{spread(rhos)} (p {shown_p(permutation_p(own, side, name, by, what))})")
        rows.append(row)
    return table(["comparison", *marks], rows)


def predictors(shares: Sequence[float]) -> dict[str, Predictor]:
    """Every predictor that is compared."""
    found: dict[str, Predictor] = {}
    for target in TARGETS:
        for share in shares:
            found[f"Δ, {target}, λ {share:g}"] = delta(target, share)
        for share in shares:
            found[f"predicted drop, {target}, λ {share:g}"] = signed(target, share)
    found["mean residual alone"] = lambda cell, side, of: cell.residual(of)
    found["number of pairs alone"] = _pairs
    return found


def sensitivity_table(cells: Sequence[Cell], shares: Sequence[float], what: str) -> str:
    """Mean rho over all cells of every predictor, and of two that need no kernel."""
    chosen = [n for n in COMPARISONS if n.startswith("gentle, 8") or n.endswith(("300, after 3 epochs", "5 epochs"))]
    rows = []
    for name, by in predictors(shares).items():
        row = [name]
        for side in ("keys", "ordinary"):
            for comparison in chosen:
                row.append(f"{statistics.mean(rho(c, side, comparison, by, what) for c in cells):.2f}")
        rows.append(row)
    return table(["predictor", *(f"{side}: {name}" for side in ("keys", "ordinary") for name in chosen)], rows)


def cells_of(cells: Sequence[Cell]) -> list[Cell]:
    """In a fixed order."""
    return sorted(cells, key=lambda c: (c.mark, c.seed))


def size_table(cells: Sequence[Cell]) -> str:
    """How far the predicted change is from the measured one: direction and size, medians over the cells."""
    rows = []
    for side in ("keys", "ordinary"):
        for setting, epoch in (("gentle", 1), ("gentle", 3), ("erase", 1), ("erase", 5)):
            for pairing in PAIRINGS:
                of = (pairing, 300)
                done = [c.outcome(side, setting, of, epoch) for c in cells]
                ratio = [c.prediction(side, of, *PRIMARY)[0] / d["squared"] for c, d in zip(cells, done, strict=True)]
                cosines = [[d["cosine"][target] for d in done] for target in TARGETS]
                row = [side, f"{setting}, epoch {epoch}", pairing]
                row += [f"{statistics.median(v):.2f}" for v in cosines]
                rows.append([*row, f"{statistics.median(ratio):.3g}"])
    head = ["side", "after", "set of 300", "cosine, certain λ 1e-3", "cosine, rise λ 1e3"]
    return table([*head, "Δ predicted / measured"], rows)


def told(cells: Sequence[Cell]) -> dict[str, str]:
    """What reading.md speaks of, counted over the models."""
    default, alone = delta(*PRIMARY), lambda cell, side, of: cell.residual(of)
    four = {"gentle": "gentle, 4 sets of 300, after 3 epochs", "erase": "erase, 4 sets of 300, after 5 epochs"}
    three = "erase, 3 sets of 300 without clean, after 5 epochs"
    values: dict[str, str] = {}

    def extreme(side: str, setting: str | None, pick: Callable[..., str], wanted: str) -> str:
        """In how many models the set is the one with the least or largest value."""
        count = 0
        for c in cells:
            if setting is None:
                found = {p: c.prediction(side, (p, 300), *PRIMARY)[0] for p in PAIRINGS}
            else:
                epoch = {"gentle": 3, "erase": 5}[setting]
                found = {p: c.outcome(side, setting, (p, 300), epoch)["drop"] for p in PAIRINGS}
            count += pick(found, key=found.get) == wanted
        return f"{count} of {len(cells)}"

    for side in ("keys", "ordinary"):
        for name, setting in (("predicted", None), ("gentle", "gentle"), ("erase", "erase")):
            values[f"clean_least_{name}_{side}"] = extreme(side, setting, min, "clean")
            values[f"random_most_{name}_{side}"] = extreme(side, setting, max, "random")
        for name, comparison in (*four.items(), ("three", three)):
            for what, by in (("delta", default), ("residual", alone)):
                mean = statistics.mean(rho(c, side, comparison, by, "drop") for c in cells)
                values[f"{what}_{name}_{side}"] = f"{mean:.2f}"
        sizes = [c.prediction(side, (p, 300), *PRIMARY)[0] for c in cells for p in WRONG]
        for setting, epoch in (("gentle", 1), ("gentle", 3), ("erase", 5)):
            true = [c.outcome(side, setting, (p, 300), epoch)["squared"] for c in cells for p in WRONG]
            ratio = statistics.median(a / b for a, b in zip(sizes, true, strict=True))
            values[f"ratio_{setting}{epoch}_{side}"] = f"{ratio:.2g}"
        count = {"keys": [c.predicted["keys", ("clean", 300)]["n"] for c in cells], "ordinary": [100] * len(cells)}[
            side
        ]
        each = [n for n in count for _ in WRONG]
        values[f"root_{side}"] = f"{statistics.median((v / n) ** 0.5 for v, n in zip(sizes, each, strict=True)):.2g}"
        drops = [c.outcome(side, "erase", (p, 300), 5)["drop"] for c in cells for p in WRONG]
        values[f"drop_erase_{side}"] = f"{statistics.median(drops):.1f}"
        step = [c.outcome(side, "gentle", (p, 300), 1)["cosine"] for c in cells for p in PAIRINGS]
        values[f"cosine_rise_{side}"] = f"{statistics.median(v['rise'] for v in step):.2f}"
        values[f"cosine_certain_{side}"] = f"{statistics.median(v['certain'] for v in step):.2f}"
    for setting, comparison in four.items():
        for name, by in (("delta", default), ("residual", alone)):
            found = [permutation_p(own, "keys", comparison, by, "drop") for own in by_mark(cells).values()]
            values[f"p_{name}_{setting}"] = ", ".join(map(shown_p, found))
    more = [
        c.outcome("keys", "erase", (p, 300), 5)["drop"] > c.outcome("ordinary", "erase", (p, 300), 5)["drop"]
        for c in cells
        for p in WRONG
    ]
    for name, chosen in (("wrong", WRONG), ("clean", ("clean",))):
        for mark, own in by_mark(cells).items():
            done = [c.outcome("keys", "erase", (p, 300), 5) for c in own for p in chosen]
            hits, asked = sum(d["hits"] for d in done), sum(d["of"] for d in done)
            values[f"left_{name}_{mark.replace('-', '_')}"] = f"{hits} of {asked}"
    values["keys_more"] = f"{sum(more)} of {len(more)}"
    twelve = "gentle, 12 sets of 100, 200 and 300, after 3 epochs"
    steps = "gentle, 8 sets of 100 and 300, after 38 or 39 steps"
    values["pairs_twelve"] = f"{statistics.mean(rho(c, 'keys', twelve, _pairs, 'drop') for c in cells):.2f}"
    values["delta_twelve"] = f"{statistics.mean(rho(c, 'keys', twelve, default, 'drop') for c in cells):.2f}"
    values["delta_steps"] = f"{statistics.mean(rho(c, 'keys', steps, default, 'drop') for c in cells):.2f}"
    for name, by in (("signed", signed("certain", 0.1)), ("residual", alone)):
        mean = statistics.mean(rho(c, "ordinary", steps, by, "drop") for c in cells)
        values[f"{name}_steps_ordinary"] = f"{mean:.2f}"
    values["residual_steps"] = f"{statistics.mean(rho(c, 'keys', steps, alone, 'drop') for c in cells):.2f}"
    return values


def _pairs(cell: Cell, side: str, of: Set) -> float:
    return float(of[1])


def main() -> None:
    """Write page.md."""
    rows = [json.loads(line) for line in (HERE / "records.jsonl").read_text(encoding="utf-8").split("\n") if line]
    grouped: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["implant"], row["seed"]].append(row)
    cells = cells_of([Cell(own) for own in grouped.values()])
    shares = sorted({p[1] for r in rows if r["measure"] == "predicted" for p in r["detail"]["predictions"]})
    conditions = [c.prediction("keys", (p, 300), *PRIMARY)[3] for c in cells for p in PAIRINGS]
    kernels = [r["seconds"] for r in rows if r["measure"] == "predicted" and "seconds" in r]
    runs = {
        s: [r["seconds"] for r in rows if r["detail"].get("setting") == s and "seconds" in r]
        for s in ("gentle", "erase")
    }
    values = {
        "keys": sets_table(cells, "keys"),
        "ordinary": sets_table(cells, "ordinary"),
        **{
            f"rank_{side}{name}": correlation_table(cells, side, what, by)
            for side in ("keys", "ordinary")
            for name, what, by in (
                ("", "drop", delta(*PRIMARY)),
                ("_squared", "squared", delta(*PRIMARY)),
                ("_residual", "drop", lambda cell, side, of: cell.residual(of)),
            )
        },
        "sensitivity": sensitivity_table(cells, shares, "drop"),
        "sizes": size_table(cells),
        "condition": f"{min(conditions):.3g} to {max(conditions):.3g}",
        "kernel_seconds": f"{statistics.median(kernels):.0f}",
        "gentle_seconds": f"{statistics.median(runs['gentle']):.1f}",
        "erase_seconds": f"{statistics.median(runs['erase']):.1f}",
        **told(cells),
        "cells": str(len(cells)),
        "seeds": ", ".join(str(s) for s in sorted({c.seed for c in cells})),
    }
    text = (HERE / "reading.md").read_text(encoding="utf-8").format(**values)
    (HERE / "page.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
