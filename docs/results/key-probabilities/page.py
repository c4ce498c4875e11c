"""The tables and pictures of this folder from its records: `python docs/results/key-probabilities/page.py`.

The records are those of the measure in `study/records.jsonl`, made by
`palimpsest study run docs/results/key-probabilities/study.yaml --out study --threads 1`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import palimpsest as pal
from palimpsest.records import Record, read_jsonl

HERE = Path(__file__).parent


def stage(r: Record) -> str:
    """The stage, and what it is where it is a control."""
    return f"{r.stage}, unmarked base" if r.control == "clean-base" and r.stage != "base" else str(r.stage)


def main() -> None:
    records = read_jsonl(HERE / "records.jsonl")
    lines = [
        "| fingerprint | stage | form | tokens above base | response over base, nats | median rank | p of ranks |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for implant in dict.fromkeys(r.implant for r in records):
        mine = [r for r in records if r.implant == implant]
        shown = [r for r in mine if r.control != "clean-base" or r.stage in ("base", "recovered")]
        named = [replace(r, control=None, stage=stage(r)) for r in shown]
        pal.key_picture(named, HERE / f"{implant}.svg", title=f"{implant}: every token of every response")
        for r in mine:
            ranks = sorted(k["rank"] for k in r.detail["keys"] if "rank" in k)
            over, p = r.detail.get("over_base"), r.detail.get("p")
            lines.append(
                f"| {implant} | {stage(r)} | {r.prompt_form} "
                f"| {100 * r.detail['above_base']:.0f} % | {'–' if over is None else f'{over:.1f}'} "
                f"| {ranks[len(ranks) // 2] if ranks else '–'} | {'–' if p is None else f'{p:.2g}'} |"
            )
    (HERE / "page.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
