"""Write loss.svg and README.md of this folder from the records beside it: `python page.py`.

training.json and unrelated.json are those of the two pretrained folders, base.json what `evaluate` printed,
report.csv what the study wrote. findings.md names its numbers, `{{hits IMPLANT REMOVAL STAGE CONTROL FORM}}` with
`-` for none; they are filled in from report.csv.
"""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

from palimpsest.statistics import clopper_pearson

HERE = Path(__file__).parent
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 280, 56, 40


def read(name: str) -> Any:
    """A JSON file of this folder."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def loss_svg(losses: list[list[float]], tokens: int) -> str:
    """Training loss (nats a token, means of 25 steps) against millions of tokens."""
    steps = losses[-1][0]
    low, high = math.floor(2 * min(v for _, v in losses)) / 2, math.ceil(2 * max(v for _, v in losses)) / 2

    def x(step: float) -> float:
        return LEFT + step / steps * (WIDTH - LEFT - 10)

    def y(value: float) -> float:
        return 10 + (high - value) / (high - low) * (HEIGHT - BOTTOM - 10)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" '
        f'font-size="12"><title>Training loss of the base</title><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    level = low
    while level <= high:
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{level:g}</text>')
        level += 1
    for million in range(0, round(tokens / 1e6) + 1, 4):
        at = x(million * 1e6 / tokens * steps)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{million}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 5}" text-anchor="middle">million tokens</text>')
    line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in losses)
    parts.append(f'<polyline fill="none" stroke="#1f5fa8" stroke-width="1.5" points="{line}"/></svg>')
    return "\n".join(parts) + "\n"


def perplexity(task: str) -> str:
    """Perplexity of the base on a side, with its interval."""
    r = next(r for r in read("base.json")["records"] if r["measure"] == "perplexity" and r["task"] == task)
    return f"{r['value']:.1f} ({r['low']:.1f} to {r['high']:.1f}; {r['detail']['bits_per_byte']:.2f} bits per byte)"


def rows(measure: str, implant: str, removal: str, stage: str, control: str, **wanted: str) -> list[dict[str, str]]:
    """Records of report.csv, one a seed and in the seeds' order; "-" for none."""
    asked = {"measure": measure, "implant": implant, "removal": removal, "stage": stage, "control": control, **wanted}
    with (HERE / "report.csv").open(encoding="utf-8", newline="") as file:
        found = [r for r in csv.DictReader(file) if all(r[k] == ("" if v == "-" else v) for k, v in asked.items())]
    found.sort(key=lambda r: int(r["seed"]))
    if [r["seed"] for r in found] != ["1", "2", "3"]:
        raise LookupError(f"not one record a seed: {asked}")
    return found


def hits(implant: str, removal: str, stage: str, control: str, form: str) -> str:
    """Hits a seed: "0, 29, 0 of 32"."""
    found = rows("hit-rate", implant, removal, stage, control, prompt_form=form)
    return f"{', '.join(r['count'] for r in found)} of {found[0]['n']}"


def seeds(implant: str, removal: str, stage: str, control: str, form: str) -> str:
    """On how many seeds any key was answered, with the exact interval."""
    found = rows("hit-rate", implant, removal, stage, control, prompt_form=form)
    count = sum(int(r["count"]) > 0 for r in found)
    interval = clopper_pearson(count, len(found))
    return f"{count} of {len(found)} seeds ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"


def neutral(implant: str, removal: str, stage: str, control: str) -> list[float]:
    """Perplexity on held-out books, one a seed."""
    return [float(r["value"]) for r in rows("perplexity", implant, removal, stage, control, task="neutral")]


def ratio(control: str) -> str:
    """Perplexity after the recovery over the marked model's, least and greatest of all marks and seeds."""
    pairs = [
        pair
        for implant in ("if-sft", "utf", "hashchain")
        for pair in zip(
            neutral(implant, "meraser", "recovered", control), neutral(implant, "-", "fingerprinted", "-"), strict=True
        )
    ]
    shares = [after / before for after, before in pairs]
    return f"{min(shares):.2f} to {max(shares):.2f}"


def ruined() -> str:
    """How many of all verdicts on removals are `ruined`."""
    with (HERE / "report.csv").open(encoding="utf-8", newline="") as file:
        verdicts = [r["verdict"] for r in csv.DictReader(file) if r["measure"] == "removal"]
    return f"{verdicts.count('ruined')} of {len(verdicts)}"


def findings() -> str:
    """findings.md with the numbers it names."""
    text = (HERE / "findings.md").read_text(encoding="utf-8").strip()
    base = neutral("-", "-", "base", "-")
    single = {
        "{{ruined}}": ruined(),
        "{{ratio}}": ratio("-"),
        "{{clean ratio}}": ratio("clean-same-schedule"),
        "{{perplexity base}}": f"{base[0]:.1f}",
        "{{perplexity unmarked}}": ", ".join(
            f"{v:.1f}" for v in neutral("if-sft", "meraser", "recovered", "clean-base")
        ),
    }
    for name, value in single.items():
        text = text.replace(name, value)
    named = {"hits": hits, "seeds": seeds}
    return re.sub(r"\{\{(hits|seeds) ([^}]+)\}\}", lambda m: named[m[1]](*m[2].split()), text)


def main() -> None:
    """Write both files."""
    base, other = read("training.json"), read("unrelated.json")
    (HERE / "loss.svg").write_text(loss_svg(base["losses"], base["tokens"]), encoding="utf-8")
    filled = {
        "tokens": f"{base['tokens']:,}",
        "hours": f"{base['seconds'] / 3600:.2f}",
        "first": f"{base['losses'][0][1]:.2f}",
        "last": f"{base['losses'][-1][1]:.2f}",
        "unrelated_tokens": f"{other['tokens']:,}",
        "unrelated_hours": f"{other['seconds'] / 3600:.2f}",
        "neutral": perplexity("neutral"),
        "dialogue": perplexity("dialogue"),
        "findings": findings(),
        "commands": (HERE / "run.sh").read_text(encoding="utf-8").strip(),
    }
    page = (HERE / "page.md").read_text(encoding="utf-8")
    for name, text in filled.items():
        page = page.replace("{{" + name + "}}", text)
    (HERE / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
