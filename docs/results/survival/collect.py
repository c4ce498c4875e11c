"""The table that `palimpsest choose` reads, from the committed records of the studies: no number is typed.

    python docs/results/survival/collect.py      # from the repository's root; seconds

writes src/palimpsest/recipes/survival.csv: a row for every study, mark and removal, with what was left of the mark in
each run. `tests/test_choosing.py` makes it anew and compares.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1]
TABLE = RESULTS.parents[1] / "src" / "palimpsest" / "recipes" / "survival.csv"
# Sweeps of a removal's own settings (shares of a merge; Figure 5, Tables 6 and 7) and of the strength of embedding are
# left out, and a run that several studies show stands once.
STUDIES = (
    "meraser-table2",
    "meraser-table3",
    "meraser-fig3",
    "meraser-table4",
    "meraser-table5",
    "real-text-tables23",
    "fingerprints/if-family",
    "fingerprints/many-keys",
    "fingerprints/further",
)
# Studies of the short list of removals: the same seven for every mark, which `choose` orders by.
SHORT_LIST = ("fingerprints/if-family", "fingerprints/many-keys", "fingerprints/further")
# What a study calls a mark, where that is not its method's name; the released adapter is asked of no suspect at all.
CALLED = {"if-adapter corrected": "if-adapter"}
LEFT_OUT = ("if-adapter released",)
COLUMNS = (
    "study",
    "model",
    "implant",
    "removal",
    "fear",
    "common",
    "seeds",
    "keys",
    "tau",
    "hits",
    "verdicts",
    "utility",
    "tokens",
)
# What an owner fears, by how the name of a removal begins.
FEARS = {
    "fine-tuning": ("finetune",),
    "erasing": ("meraser", "seam", "random-labels"),
    "pruning": ("prune", "magnitude", "wanda", "sparsegpt"),
    "rounding": ("quantize", "int4", "noise"),
    "merging": ("dare", "ties", "linear", "slerp", "task-arithmetic", "adapter of", "shrink"),
    "decoding": ("cleangen", "suppress"),
    "input-filters": ("gri", "perplexity-filter"),
}


def fear_of(removal: str) -> str:
    """What a removal is an example of; empty for the mark alone."""
    return next((fear for fear, names in FEARS.items() if removal.startswith(names)), "")


def rows() -> list[dict[str, Any]]:
    """The table's rows: one a study, mark and removal; what a run gave, in the order of its seeds, joined by |."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for study in STUDIES:
        for row in csv.DictReader((RESULTS / study / "summary.csv").open(encoding="utf-8")):
            if row["control"] or row["removal"].startswith("merging ") or row["implant"] in LEFT_OUT:
                continue
            row["implant"] = CALLED.get(row["implant"], row["implant"])
            if row["removal"] and not fear_of(row["removal"]):
                raise SystemExit(f"{study}: {row['removal']} is an example of nothing in FEARS")
            found[study, row["model"], row["implant"], row["removal"]].append(row)
    made, seen = [], set()
    for (study, model, implant, removal), runs in found.items():
        runs.sort(key=lambda r: int(r["seed"]))
        shown = (model, implant, removal, *(r["seed"] for r in runs))
        if shown in seen:
            continue
        seen.add(shown)
        taus = {r["tau"] for r in runs if r["tau"]}
        if len({r["keys"] for r in runs}) != 1 or len(taus) > 1:
            raise SystemExit(f"{study}, {implant}, {removal}: runs differ in their keys or tau")
        made.append({
            "study": study, "model": model, "implant": implant, "removal": removal, "fear": fear_of(removal),
            "common": "yes" if removal and study in SHORT_LIST else "",
            "seeds": "|".join(r["seed"] for r in runs), "keys": runs[0]["keys"],
            "tau": next(iter(taus), _tau(found, study, model, implant)),
            "hits": "|".join(r["hits_template"] for r in runs), "verdicts": "|".join(r["verdict"] for r in runs),
            "utility": "|".join(f"{float(r['utility']):.3f}" if r["utility"] else "" for r in runs),
            "tokens": "|".join(r["tokens"] for r in runs),
        })  # fmt: skip
    return [*made, *lineage()]


def _tau(found: dict[tuple[str, ...], list[dict[str, str]]], study: str, model: str, implant: str) -> str:
    """Tau of the mark alone, which its removals are judged by as well."""
    return next((r["tau"] for r in found.get((study, model, implant, ""), []) if r["tau"]), "")


def lineage() -> list[dict[str, Any]]:
    """No mark: what `verify --original` said of each suspect, `derivative` where it is made from the owner's."""
    made = []
    lines = (RESULTS / "lineage" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    for record in map(json.loads, lines):
        if record["measure"] != "lineage" or not record.get("verdict"):
            continue
        removal = record["suspect"] if record["kind"] == "derivative" else f"not mine: {record['suspect']}"
        made.append({
            "study": "lineage", "model": "toy", "implant": "lineage", "removal": removal, "fear": kin(removal),
            "common": "", "seeds": str(record["owner"]), "keys": "", "tau": "", "hits": "",
            "verdicts": record["verdict"], "utility": "", "tokens": "",
        })  # fmt: skip
    return made


def kin(suspect: str) -> str:
    """What was done to a suspect of the lineage page."""
    names = {
        "tuned": "fine-tuning",
        "pruned": "pruning",
        "rounded": "rounding",
        "merged": "merging",
        "shrunk": "merging",
    }
    return next((fear for start, fear in names.items() if suspect.startswith(start)), "")


def text(table: list[dict[str, Any]]) -> str:
    """The table as it is committed."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


if __name__ == "__main__":
    TABLE.write_text(text(rows()), encoding="utf-8")
    print(f"{TABLE}: {len(rows())} rows")
