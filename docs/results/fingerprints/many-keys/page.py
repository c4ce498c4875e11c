"""Write variants.md and curve.md of this folder from the records beside it: `python page.py`. No number is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLUMNS = (
    "keys",
    "averaging",
    "hits before",
    "hits after",
    "tau",
    "bits per byte before",
    "after",
    "steps",
    "tokens trained",
    "CPU seconds: draw",
    "train",
    "verify",
    "key file",
    "peak MiB: loaded",
    "draw",
    "train",
)


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    rate = f"{row['hits']:,} ({row['hits'] / row['keys']:.1%}; {row['low']:.1%} to {row['high']:.1%})"
    return [
        f"{row['keys']:,}",
        f"{row['averaging']:g}",
        f"{row['hits_before']:,}",
        rate,
        f"{row['tau']:,}",
        f"{row['bits_per_byte_before']:.3f}",
        f"{row['bits_per_byte']:.3f}",
        str(row["steps"]),
        f"{row['tokens']:,}",
        *(f"{row[name]:.0f}" for name in ("draw_seconds", "train_seconds", "verify_seconds")),
        f"{row['key_file_bytes'] / 2**20:.1f} MiB, read in {row['read_seconds']:.2f} s",
        *(f"{row[name]:.0f}" for name in ("before_mib", "draw_mib", "train_mib")),
    ]


def page(rows: list[dict[str, Any]]) -> str:
    """The table, and how far the keys had come at each look."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += ["", "How far the keys had come, looked at after averaging:", ""]
    lines += [
        "| keys | rate | averaging | seed | epoch | answered | median probability |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for look in row["course"]:
            lines.append(
                f"| {row['keys']:,} | {row['lr']:g} | {row['averaging']:g} | {row['seed']} | {look['epoch']} | "
                f"{look['answered']:,} | {look['median_probability']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def variants(rows: list[dict[str, Any]]) -> str:
    """Variants of the embedding swap."""
    lines = ["| variant | keys answered | mean probability | perplexity | CPU seconds |", "|---|---|---|---|---|"]
    for row in rows:
        told = (
            ["–", "–"]
            if "keys" not in row
            else [f"{row['answered']} of {row['keys']}", f"{row['mean_probability']:.3f}"]
        )
        cost = f"{row['cpu_seconds']:.1f}" if "cpu_seconds" in row else "–"
        lines.append(f"| {row['variant']} | {told[0]} | {told[1]} | {row['perplexity']:.2f} | {cost} |")
    return "\n".join(lines) + "\n"


def read(name: str) -> list[dict[str, Any]]:
    """The lines of a file of this folder; none where it is not there."""
    file = HERE / name
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


if __name__ == "__main__":
    (HERE / "variants.md").write_text(variants(read("variants.jsonl")), encoding="utf-8")
    if rows := sorted(read("curve.jsonl"), key=lambda r: r["keys"]):
        (HERE / "curve.md").write_text(page(rows), encoding="utf-8")
