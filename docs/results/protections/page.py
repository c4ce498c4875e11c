"""Numbers and page of this folder: `python page.py STUDY` writes cells.csv and facts.csv from a study's records,
`python page.py` writes README.md from them and findings.md.

cells.csv: one line a merge, task and seed. facts.csv: what was measured of the protected and the realigned models
themselves. In findings.md `{{own}}`, `{{kin}}` and `{{merges METHOD AT AT ...}}` are tables; `{{PROTECTION | ATTACK |
METHOD AT | TASK}}` is one number, the lowest and the highest of the seeds.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

from palimpsest.study.protections_table import UNAWARE, UNPROTECTED, read_chain

HERE = Path(__file__).parent
CELLS = ("protection", "attack", "merge", "at", "seed", "task", "right", "items")
FACTS = ("protection", "attack", "seed", "measure", "value")
SKILLS = ("guild-marks", "tower-code")
LAST = {"protection": "weight change", "realignment": "distance to the anchor", "cost": "seconds"}  # of the last link
SIMILARITIES = ("weight-cosine", "weight-cosine-difference", "huref")
Row = dict[str, str]


def write(name: str, fields: tuple[str, ...], rows: list[list[object]]) -> None:
    """A CSV of this folder."""
    with (HERE / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([fields, *rows])


def read(name: str) -> list[Row]:
    """A CSV of this folder."""
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def take(study: Path) -> None:
    """cells.csv and facts.csv of a study's records."""
    spec = json.loads((study / "study.json").read_text(encoding="utf-8"))["spec"]
    chains = {e["id"]: read_chain(e) for e in spec["removals"] if e["name"] != "none"}
    cells: list[list[object]] = []
    facts: list[list[object]] = []
    with (study / "records.jsonl").open(encoding="utf-8") as file:
        for line in file:
            r = json.loads(line)
            removal = (r.get("detail") or {}).get("removal")
            chain = chains.get(removal)
            if chain is None or (chain.merge is None) != (r["stage"] in ("protected", "realigned")):
                continue
            place = [chain.protection, chain.attack.split(",")[0] if chain.attack != UNAWARE else UNAWARE]
            if r["measure"] == "accuracy" and chain.merge is not None:
                cells.append([*place, chain.merge, chain.coefficient, r["seed"], r["task"], r["count"], r["n"]])
            elif r["measure"] == "accuracy":
                cells.append([*place, "", "", r["seed"], r["task"], r["count"], r["n"]])
            elif chain.merge is None and (r["measure"] == "barrier" or r.get("task") in SIMILARITIES):
                name = r["measure"] if r["measure"] == "barrier" else r["task"]
                facts.append([*place, r["seed"], name, f"{r['value']:.6g}"])
            elif chain.merge is None and r["measure"] in LAST:
                name = LAST[r["measure"]]
                last = r["stage"] == ("protected" if chain.attack == UNAWARE else "realigned")
                if last:
                    facts.append([*place, r["seed"], name, f"{r['value']:.6g}"])
    write("cells.csv", CELLS, cells)
    write("facts.csv", FACTS, facts)


def spread(values: list[float], style: str = "{:.0f}") -> str:
    """The lowest and the highest, once where they read alike."""
    low, high = style.format(min(values)), style.format(max(values))
    return low if low == high else f"{low} to {high}"


def percent(rows: list[Row], tasks: tuple[str, ...]) -> str:
    """Accuracy in percent over these tasks, lowest and highest of the seeds."""
    seeds = sorted({r["seed"] for r in rows})
    found = []
    for seed in seeds:
        mine = [r for r in rows if r["seed"] == seed and r["task"] in tasks]
        found.append(100 * sum(int(r["right"]) for r in mine) / sum(int(r["items"]) for r in mine))
    return spread(found)


class Page:
    """What the placeholders stand for."""

    def __init__(self) -> None:
        self.cells, self.facts = read("cells.csv"), read("facts.csv")
        self.others = tuple(dict.fromkeys(r["task"] for r in self.cells if r["task"] not in SKILLS))
        self.places = list(dict.fromkeys((r["protection"], r["attack"]) for r in self.cells if r["merge"]))

    def some(self, protection: str, attack: str, merge: str, at: str) -> list[Row]:
        """The lines of one merge."""
        wanted = {"protection": protection, "attack": attack, "merge": merge, "at": at}
        return [r for r in self.cells if all(r[k] == v for k, v in wanted.items())]

    def merges(self, method: str, *at: str) -> str:
        """Owner's skill, other's skill, what both had, by protection and attack."""
        lines = ["| protection | merger | " + " | ".join(f"at {a}" for a in at) + " |"]
        lines.append("|---" * (2 + len(at)) + "|")
        for protection, attack in self.places:
            shown = []
            for a in at:
                rows = self.some(protection, attack, method, a)
                parts = [percent(rows, (t,)) for t in SKILLS] + [percent(rows, self.others)] if rows else []
                shown.append(" / ".join(parts) or "–")
            if any(s != "–" for s in shown):
                lines.append(f"| {protection} | {attack} | " + " | ".join(shown) + " |")
        return "\n".join(lines)

    def own(self) -> str:
        """The protected models themselves."""
        lines = [
            "| protection | owner's skill | what both had | weights moved by | barrier to the other expert | seconds |",
            "|---" * 6 + "|",
        ]
        for protection in dict.fromkeys(p for p, _ in self.places if p != UNPROTECTED):
            rows = self.some(protection, UNAWARE, "", "")
            facts = (("weight change", "{:.2f}"), ("barrier", "{:.2f}"), ("seconds", "{:.1f}"))
            shown = [self.fact(protection, UNAWARE, name, style) for name, style in facts]
            parts = [protection, percent(rows, SKILLS[:1]), percent(rows, self.others), *shown]
            lines.append(f"| {' | '.join(parts)} |")
        return "\n".join(lines)

    def fact(self, protection: str, attack: str, measure: str, style: str) -> str:
        """One measure of a protected or realigned model."""
        wanted = {"protection": protection, "attack": attack, "measure": measure}
        found = [float(r["value"]) for r in self.facts if all(r[k] == v for k, v in wanted.items())]
        return spread(found, style) if found else "–"

    def kin(self) -> str:
        """How near protected and realigned models are to the owner's own."""
        lines = [
            "| protection | merger | cosine of weights | cosine of the differences to the base | HuRef | barrier "
            "| seconds |",
            "|---" * 7 + "|",
        ]
        for protection, attack in dict.fromkeys((r["protection"], r["attack"]) for r in self.facts):
            values = [self.fact(protection, attack, m, "{:.3f}") for m in SIMILARITIES]
            lines.append(
                f"| {protection} | {attack} | "
                + " | ".join(
                    [
                        *values,
                        self.fact(protection, attack, "barrier", "{:.2f}"),
                        self.fact(protection, attack, "seconds", "{:.1f}"),
                    ]
                )
                + " |"
            )
        return "\n".join(lines)

    def fill(self, match: re.Match[str]) -> str:
        """The text in the place of one placeholder."""
        said = match[1].strip()
        if said == "full-gauge-cosine":
            return self.fact("full-gauge", UNAWARE, "weight-cosine", "{:.2f}")
        if said in ("own", "kin"):
            return str(getattr(self, said)())
        if said.startswith("merges "):
            return self.merges(*said.split()[1:])
        protection, attack, merge, task = (part.strip() for part in said.split("|"))
        method, _, at = merge.rpartition(" ")
        rows = self.some(protection, attack, method, at) if merge != "-" else self.some(protection, attack, "", "")
        if not rows:
            raise LookupError(said)
        return percent(rows, self.others if task == "others" else (task,)) + " %"


def main() -> None:
    """Write what was asked for."""
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
        return
    page = Page()
    text = (HERE / "findings.md").read_text(encoding="utf-8")
    (HERE / "README.md").write_text(re.sub(r"\{\{(.*?)\}\}", page.fill, text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
