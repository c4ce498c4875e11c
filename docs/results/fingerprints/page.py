"""README.md of a folder beside this from its findings.md, summary.csv and controls.csv. No number is typed.

    python page.py FOLDER          # surviving, mergeprint, further or all-attacks
    python page.py FOLDER STUDY    # takes the two tables from a study's folder first

`{{family NAME}}` is the table of one family of removals: of every mark hits, whether a claim at 1e-6 stands, and the
share of utility kept; `{{controls}}` and `{{owners}}` are tables of their own. Numbers stand in the order of the
seeds; a dash stands for a seed on which the mark did not take. Where the folder has wrappers.csv (`wrappers.py`), the
skill kept behind what wraps a model is from there.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path

from palimpsest.verdicts import PERPLEXITY_GATE, UTILITY_GATE

FAMILIES = {
    "simulated": ("finetune", "linear", "shrink", "magnitude"),
    "held out": (
        "meraser",
        "ties",
        "dare",
        "quantize",
        "noise",
        "prune-l1",
        "suppress",
        "distill",
        "cleangen",
        "perplexity-filter",
        "imitate",
    ),
    "adaptive": ("overwrite",),
    "merging": ("linear", "3-way", "ties", "dare", "shrink"),
    "everything": ("",),
    "short list": ("finetune", "linear", "prune", "quantize", "int4", "meraser"),
    "everything else": ("finetune", "magnitude", "quantize", "meraser"),
}
CHANCE = 1 / 6  # of a code word
ORDER = ("mergeprint 0.1", "mergeprint 0.3")
Row = dict[str, str]


def once(values: list[str]) -> str:
    """Values in the order of the seeds, once where all are alike."""
    return values[0] if len(set(values)) == 1 else ", ".join(values)


class Study:
    """The rows of the summary by mark and removal, in the order of the seeds."""

    def __init__(self, rows: list[Row], controls: list[Row], wrapped: list[Row]) -> None:
        self.rows, self.unmarked = rows, controls
        told = {(r["implant"], r["removal"], r["seed"]): int(r["right_behind"]) / int(r["questions"]) for r in wrapped}
        for row in rows:
            place = (row["implant"], row["removal"], row["seed"])
            if place in told:
                row["utility"] = str(round((told[place] - CHANCE) / (1 - CHANCE), 12))
        self.seeds = sorted({int(r["seed"]) for r in rows})
        self.marks = sorted(dict.fromkeys(r["implant"] for r in rows if r["implant"]), key=self.place)
        self.removals = list(dict.fromkeys(r["removal"] for r in rows if r["removal"] and not r["control"]))

    def place(self, mark: str) -> int:
        """Where the study names a mark; one that did not take on the first seed comes late in the summary."""
        return [*ORDER, mark].index(mark)

    def runs(self, mark: str, removal: str, control: str = "") -> list[Row]:
        """One row a seed."""
        found = [r for r in self.rows if (r["implant"], r["removal"], r["control"]) == (mark, removal, control)]
        return sorted(found, key=lambda r: int(r["seed"]))

    def alone(self, mark: str, seed: str) -> Row:
        """The marked model before any removal."""
        return next(r for r in self.runs(mark, "") if r["seed"] == seed)

    def tau(self, mark: str) -> int:
        """Hits that a claim at 1e-6 takes; 0 of a mark that bears none."""
        return int(next((r["tau"] for r in self.runs(mark, "") if r["tau"]), "0"))

    def of(self, mark: str) -> str:
        """What its hits are out of, and how many a claim takes."""
        keys = self.runs(mark, "")[0]["keys"]
        return f"{self.tau(mark)} of {keys}" if self.tau(mark) else f"of {keys}, no claim"

    def perplexity(self, run: Row) -> float:
        """Neutral perplexity, times the marked model's."""
        before = self.alone(run["implant"], run["seed"])["perplexity_neutral"]
        return float(run["perplexity_neutral"]) / float(before) if run["perplexity_neutral"] else 1.0

    def useful(self, run: Row) -> bool:
        """Whether the result is inside the thief's limits."""
        kept = float(run["utility"]) if run["utility"] else 1.0
        return kept >= UTILITY_GATE and self.perplexity(run) <= PERPLEXITY_GATE

    def cell(self, mark: str, removal: str) -> str:
        """Hits and the share of the skill: struck out where outside the thief's limits, bold where lost inside them."""
        runs = self.runs(mark, removal)
        if not runs:
            return "–"
        shown, kept = [], []
        for seed in self.seeds:
            run = next((r for r in runs if int(r["seed"]) == seed), None)
            if run is None:
                shown.append("–")
                continue
            hits, stands = run["hits_template"], int(run["hits_template"]) >= self.tau(mark)
            text = hits if self.useful(run) else f"~~{hits}~~"
            shown.append(f"**{hits}**" if self.useful(run) and not stands else text)
            kept.append(f"{100 * float(run['utility']):.0f}" if run["utility"] else "–")
        return f"{', '.join(shown)}; {once(kept)} %"

    def family(self, name: str) -> str:
        """The table of a family."""
        head = [f"`{m}` ({self.of(m)})" for m in self.marks]
        lines = [f"| removal | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
        for removal in self.removals:
            if removal.startswith(FAMILIES[name]):
                lines.append(f"| {removal} | {' | '.join(self.cell(m, removal) for m in self.marks)} |")
        return "\n".join(lines)

    def owners(self) -> str:
        """What each mark costs its owner."""
        lines = [
            "| mark | keys answered | skill kept, % | neutral perplexity | tokens trained | seconds |",
            "|---" * 6 + "|",
        ]
        for mark in self.marks:
            runs = self.runs(mark, "")

            def listed(column: str, style: str, times: float = 1.0, runs: list[Row] = runs) -> str:
                told = {int(run["seed"]): style.format(times * float(run[column])) for run in runs}
                return ", ".join(told.get(seed, "–") for seed in self.seeds)

            lines.append(
                f"| `{mark}` | {listed('hits_template', '{:.0f}')} of {runs[0]['keys']} | "
                f"{listed('utility', '{:.0f}', 100)} | {listed('perplexity_neutral', '{:.2f}')} | "
                f"{listed('tokens', '{:,.0f}')} | {listed('seconds', '{:.0f}')} |"
            )
        return "\n".join(lines)

    def controls(self) -> str:
        """Hits of what bears no mark, and of another owner's keys (controls.csv)."""
        lines = [f"| | {' | '.join(f'`{m}`' for m in self.marks)} |", "|---" * (1 + len(self.marks)) + "|"]
        for kind in dict.fromkeys(r["control"] for r in self.unmarked):
            cells = []
            for mark in self.marks:
                asked = [r for r in self.unmarked if (r["control"], r["implant"]) == (kind, mark)]
                asked.sort(key=lambda r: int(r["seed"]))
                cells.append(f"{', '.join(r['hits'] for r in asked)} of {asked[0]['keys']}" if asked else "–")
            lines.append(f"| {kind.replace('-', ' ')} | {' | '.join(cells)} |")
        return "\n".join(lines)


def take(study: Path, folder: Path) -> None:
    """summary.csv and controls.csv of a finished study."""
    shutil.copy(study / "summary.csv", folder / "summary.csv")
    found = {}
    for record in map(json.loads, (study / "records.jsonl").read_text(encoding="utf-8").splitlines()):
        detail = record.get("detail") or {}
        if record["measure"] == "hit-rate" and record.get("control") and not detail.get("removal"):
            place = (detail.get("implant"), record["control"], record["seed"])
            found[place] = [*place, record["count"], record["n"]]
    with (folder / "controls.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("implant", "control", "seed", "hits", "keys"), *found.values()]
        )


def table(file: Path) -> list[Row]:
    """The rows of a table."""
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def main(folder: str, study: str = "") -> None:
    """Write README.md of a folder."""
    here = Path(__file__).parent / folder
    if study:
        take(Path(study), here)
    behind = here / "wrappers.csv"
    wrapped = table(behind) if behind.is_file() else []
    found = Study(table(here / "summary.csv"), table(here / "controls.csv"), wrapped)

    def fill(match: re.Match[str]) -> str:
        what, _, name = match[1].strip().partition(" ")
        return found.family(name) if what == "family" else str(getattr(found, what)())

    text = re.sub(r"\{\{(.*?)\}\}", fill, (here / "findings.md").read_text(encoding="utf-8"))
    (here / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
