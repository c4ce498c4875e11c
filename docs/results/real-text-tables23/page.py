"""Write README.md of this folder: `python page.py`. The table of findings.md is made from summary.csv."""

from __future__ import annotations

import csv
from pathlib import Path

HERE = Path(__file__).parent
MARKS = ("if-sft", "utf", "hashchain")


def table() -> str:
    """A removal a row: keys that answer in the template form by mark, and by how much neutral perplexity rose."""
    with (HERE / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = {(r["implant"], r["removal"], r["control"]): r for r in csv.DictReader(file)}
    lines = []
    for removal, control in dict.fromkeys((r, c) for _, r, c in rows):
        some = [rows[m, removal, control] for m in MARKS]
        before = [float(rows[m, "", ""]["perplexity_neutral"]) for m in MARKS]
        title = f"*{control} of {removal}*" if control else removal or "no removal"
        cells = [f"{float(r['hits_template']):g}: {r['verdict']}" for r in some]
        read = [
            float(r["perplexity_neutral"]) / b for r, b in zip(some, before, strict=True) if r["perplexity_neutral"]
        ]
        ratio = ", ".join(f"{value:.2f}" for value in read) if removal and read else "–"
        lines.append(f"| {title} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    text = (HERE / "findings.md").read_text(encoding="utf-8")
    (HERE / "README.md").write_text(text.replace("{{rows}}", table()), encoding="utf-8")
