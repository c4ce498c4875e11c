"""Write the tables of README.md beside this from records.jsonl: `python page.py`. Nothing in them is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from palimpsest.statistics import clopper_pearson

HERE = Path(__file__).parent
ALPHA = 0.05
ORDER = (
    "boolq", "cb", "sglue_rte", "wic", "wsc", "copa", "multirc", "anli_r1", "anli_r2", "anli_r3", "openbookqa",
    "arc_easy", "arc_challenge", "piqa", "winogrande", "qnli", "sst2", "cola",
)  # fmt: skip
Row = dict[str, Any]


def percent(share: float) -> str:
    """A share in percent, with one digit."""
    return f"{100 * share:.1f}"


def above(row: Row, level: float, tests: int) -> bool:
    """Whether the two-sided interval at 1 - 0.05 / tests lies above a level."""
    return clopper_pearson(row["count"], row["n"], 1 - ALPHA / tests).low > level


def verdict(row: Row, tests: int) -> str:
    """What may be said of a rate."""
    chance, other = row["detail"]["chance"], max(row["detail"].get(name, 0.0) for name in ("majority", "shortest"))
    if above(row, max(chance, other), tests):
        return "**above all**"
    if above(row, chance, tests):
        return "above chance alone"
    if clopper_pearson(row["count"], row["n"], 1 - ALPHA / tests).high < chance:
        return "below chance"
    return "at chance"


def rates(rows: list[Row]) -> str:
    """The table of everything that is counted and has a chance level."""
    shown = [r for task in ORDER for r in rows if r["task"] == task and "count" in r and "chance" in r["detail"]]
    lines = [
        "| task | metric | right | % | 95 % interval | chance | one class | shortest | after Bonferroni |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in shown:
        one, short = (percent(r["detail"][n]) if n in r["detail"] else "" for n in ("majority", "shortest"))
        interval = f"{percent(r['low'])} to {percent(r['high'])}"
        cells = (
            r["task"], r["detail"]["metric"], f"{r['count']} of {r['n']}", percent(r["value"]), interval,
            percent(r["detail"]["chance"]), one, short, verdict(r, len(shown)),
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    note = f"{len(shown)} rates; intervals of the last column are at {1 - ALPHA / len(shown):.4f}."
    return "\n".join([*lines, "", note])


def others(rows: list[Row]) -> str:
    """F1, Matthews' correlation, perplexity."""
    lines = ["| of | metric | value | 95 % interval |", "|---|---|---|---|"]
    for r in rows:
        if "count" not in r:
            name, bits = r["detail"].get("text", r["task"]), r["detail"].get("bits_per_byte")
            metric = r["measure"] if bits is None else f"{r['measure']} ({bits:.2f} bits per byte)"
            lines.append(f"| {name} | {metric} | {r['value']:.3g} | {r['low']:.3g} to {r['high']:.3g} |")
    return "\n".join(lines)


def read(rows: list[Row]) -> str:
    """What was asked and what it took: items of the file, cut ones, split, tokens, scorer."""
    lines = ["| task | split | items asked | of them cut | tokens | scorer |", "|---|---|---|---|---|---|"]
    for task in ORDER:
        r = next((r for r in rows if r["task"] == task and "positions" in r["detail"]), None)
        if r is not None:
            d = r["detail"]
            asked = f"first {d['limit']}" if d.get("limit") and d["limit"] <= len(d.get("right", "")) else "all"
            n = len(d["right"]) if "right" in d else r["n"]
            cells = (task, d["split"], f"{n:,} ({asked})", d["items_cut"], f"{r['tokens']:,}", d.get("scorer", "HFLM"))
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Fill the marked places of README.md."""
    rows = [json.loads(line) for line in (HERE / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    page = HERE / "README.md"
    text = page.read_text(encoding="utf-8")
    for name, table in (("rates", rates(rows)), ("others", others(rows)), ("read", read(rows))):
        found = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(found, lambda m, t=table: m[1] + t + "\n" + m[2], text, flags=re.S)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
