"""Write README.md from records.jsonl and reading.md: `python page.py`. Every number of its tables is a record's."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Rows = Sequence[dict[str, Any]]
NAMES = {"lora": "LoRA (rank 16, query and value)", "full": "all weights"}
NUMBERS = (
    ("weight-cosine", "weights"),
    ("weight-cosine-difference", "weights' differences"),
    ("huref", "HuRef ICS"),
    ("reef", "REEF CKA"),
    ("lineage", "cosine of differences"),
    ("lineage-share", "share of mine"),
)


def main() -> None:
    """Write the page."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "records.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    reading = (HERE / "reading.md").read_text(encoding="utf-8")
    parts = [reading.replace("TABLES", "\n".join(tables(rows))).replace("COUNTS", "\n".join(counts(rows)))]
    (HERE / "README.md").write_text("".join(parts), encoding="utf-8")


def tables(rows: Rows) -> list[str]:
    """One table a tuning."""
    lines: list[str] = []
    for tuning in NAMES:
        some = [r for r in rows if r["tuning"] == tuning]
        if not some:
            continue
        owners = sorted({r["owner"] for r in some})
        lines += [f"### Tuned by {NAMES[tuning]}; owner seeds {', '.join(map(str, owners))}", ""]
        there = {r.get("task") for r in some}
        numbers = [(task, name) for task, name in NUMBERS if task in there]
        heads = ["suspect", "correlation with the base", *(name for _, name in numbers), "t p", "verdict"]
        lines += [row_of(heads), row_of(["---", *["---:"] * (len(numbers) + 2), "---"])]
        by_suspect: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in some:
            by_suspect[row["kind"], row["suspect"]].append(row)
        for kind, title in (("derivative", "made from mine"), ("negative", "not made from mine")):
            lines.append(row_of([f"**{title}**", *[""] * (len(numbers) + 3)]))
            lines += [line_of(name, found, numbers) for (k, name), found in by_suspect.items() if k == kind]
        lines.append(row_of(["**controls of the rule**", *[""] * (len(numbers) + 3)]))
        lines += [line_of(name, found, numbers) for (k, name), found in by_suspect.items() if k == "control"]
        lines.append("")
    return lines


def line_of(name: str, rows: Rows, numbers: Sequence[tuple[str, str]]) -> str:
    """One suspect: means over owners, the range of the share, the verdicts counted."""
    cells = [name, shown([r["correlation"] for r in rows if "correlation" in r], False)]
    for task, _ in numbers:
        values = [r["value"] for r in rows if r["measure"] == "similarity" and r["task"] == task and "value" in r]
        cells.append(shown(values, task == "lineage-share"))
    verdicts = [r for r in rows if "verdict" in r]
    p = [r["value"] for r in verdicts if "value" in r]
    cells.append(f"{min(p):.2g} to {max(p):.2g}" if p and max(p) > min(p) else (f"{p[0]:.2g}" if p else ""))
    words = [r["verdict"] for r in verdicts]
    cells.append(", ".join(f"{w} {words.count(w)}/{len(words)}" for w in dict.fromkeys(words)))
    return row_of(cells)


def shown(values: Sequence[float], ranged: bool) -> str:
    """The mean; with the range where that is asked for."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.3f}"
    return f"{mean} ({min(values):.2f} to {max(values):.2f})" if ranged and len(values) > 1 else mean


def counts(rows: Rows) -> list[str]:
    """How often each verdict was drawn on derivatives and on negatives."""
    lines = [row_of(["tuning", "suspects", "derivative", "same-base", "not-shown"]), row_of(["---"] * 2 + ["---:"] * 3)]
    kinds: dict[str, Callable[[str], bool]] = {
        "made from mine": lambda r: r == "derivative",
        "not made from mine": lambda r: r == "negative",
    }
    for tuning in NAMES:
        for title, fits in kinds.items():
            words = [r["verdict"] for r in rows if r["tuning"] == tuning and fits(r["kind"]) and "verdict" in r]
            if words:
                each = [f"{words.count(w)} of {len(words)}" for w in ("derivative", "same-base", "not-shown")]
                lines.append(row_of([NAMES[tuning], title, *each]))
    return lines


def row_of(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
