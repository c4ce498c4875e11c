"""README.md of this folder from findings.md, summary.csv and controls.csv: `python page.py`. No number is typed.

`python page.py STUDY` takes the two from a study's folder first.

`{{family NAME}}` is the table of one family of removals: of every mark hits, whether a claim at 1e-6 stands, the share
of the skill kept, perplexity against the marked model's; `{{controls}}` and `{{owners}}` are tables of their own.
Numbers stand in the order of the seeds.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path

from palimpsest.verdicts import PERPLEXITY_GATE, UTILITY_GATE

HERE = Path(__file__).parent
FAMILIES = {
    "simulated": ("finetune", "linear", "shrink", "magnitude"),
    "held out": ("meraser", "ties", "dare", "quantize", "noise", "prune-l1", "suppress"),
    "adaptive": ("overwrite",),
}
Row = dict[str, str]


def once(values: list[str]) -> str:
    """Values in the order of the seeds, once where all are alike."""
    return values[0] if len(set(values)) == 1 else ", ".join(values)


class Study:
    """The rows of the summary by mark and removal, in the order of the seeds."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.marks = list(dict.fromkeys(r["implant"] for r in rows if r["implant"]))
        self.removals = list(dict.fromkeys(r["removal"] for r in rows if r["removal"] and not r["control"]))

    def runs(self, mark: str, removal: str, control: str = "") -> list[Row]:
        """One row a seed."""
        found = [r for r in self.rows if (r["implant"], r["removal"], r["control"]) == (mark, removal, control)]
        return sorted(found, key=lambda r: int(r["seed"]))

    def alone(self, mark: str, seed: str) -> Row:
        """The marked model before any removal."""
        return next(r for r in self.runs(mark, "") if r["seed"] == seed)

    def tau(self, mark: str) -> int:
        """Hits that a claim at 1e-6 takes."""
        return int(next(r["tau"] for r in self.runs(mark, "") if r["tau"]))

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
        shown = []
        for run in runs:
            hits, stands = run["hits_template"], int(run["hits_template"]) >= self.tau(mark)
            text = hits if self.useful(run) else f"~~{hits}~~"
            shown.append(f"**{hits}**" if self.useful(run) and not stands else text)
        kept = [f"{100 * float(r['utility']):.0f}" if r["utility"] else "–" for r in runs]
        return f"{', '.join(shown)}; {once(kept)} %"

    def family(self, name: str) -> str:
        """The table of a family."""
        head = [f"`{m}` ({self.tau(m)} of {self.runs(m, '')[0]['keys']})" for m in self.marks]
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
                return ", ".join(style.format(times * float(run[column])) for run in runs)

            lines.append(
                f"| `{mark}` | {listed('hits_template', '{:.0f}')} of {runs[0]['keys']} | "
                f"{listed('utility', '{:.0f}', 100)} | {listed('perplexity_neutral', '{:.2f}')} | "
                f"{listed('tokens', '{:,.0f}')} | {listed('seconds', '{:.0f}')} |"
            )
        return "\n".join(lines)

    def controls(self) -> str:
        """Hits of what bears no mark, and of another owner's keys (controls.csv)."""
        with (HERE / "controls.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        lines = [f"| | {' | '.join(f'`{m}`' for m in self.marks)} |", "|---" * (1 + len(self.marks)) + "|"]
        for kind in dict.fromkeys(r["control"] for r in rows):
            cells = []
            for mark in self.marks:
                runs = sorted(
                    (r for r in rows if (r["control"], r["implant"]) == (kind, mark)), key=lambda r: int(r["seed"])
                )
                cells.append(f"{', '.join(r['hits'] for r in runs)} of {runs[0]['keys']}" if runs else "–")
            lines.append(f"| {kind.replace('-', ' ')} | {' | '.join(cells)} |")
        return "\n".join(lines)


def take(study: Path) -> None:
    """summary.csv and controls.csv of a finished study."""
    shutil.copy(study / "summary.csv", HERE / "summary.csv")
    found = {}
    for record in map(json.loads, (study / "records.jsonl").read_text(encoding="utf-8").splitlines()):
        detail = record.get("detail") or {}
        if record["measure"] == "hit-rate" and record.get("control") and not detail.get("removal"):
            place = (detail.get("implant"), record["control"], record["seed"])
            found[place] = [*place, record["count"], record["n"]]
    with (HERE / "controls.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("implant", "control", "seed", "hits", "keys"), *found.values()]
        )


def main() -> None:
    """Write README.md."""
    if sys.argv[1:]:
        take(Path(sys.argv[1]))
    with (HERE / "summary.csv").open(encoding="utf-8", newline="") as file:
        study = Study(list(csv.DictReader(file)))

    def fill(match: re.Match[str]) -> str:
        what, _, name = match[1].strip().partition(" ")
        return study.family(name) if what == "family" else str(getattr(study, what)())

    text = re.sub(r"\{\{(.*?)\}\}", fill, (HERE / "findings.md").read_text(encoding="utf-8"))
    (HERE / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
