"""Write README.md of this folder: `python page.py`. findings.md names its numbers, and they come from the records.

The summaries are `summary.csv` of the folders that the studies wrote. What stands in double braces is a column of one
removal, a value a seed: `{{TABLE | IMPLANT | REMOVAL | COLUMN}}`, with `control:NAME` after the removal for one of its
controls, and `-` for no removal. `{{matrix TABLE}}` is a table of all removals and marks; `{{grid TABLE |
IMPLANT | SWEEP | COLUMN}}` one of a sweep's points; `{{strengths TABLE | IMPLANT | PARAMETER | COLUMN}}` one of all
removals by a parameter of the mark; `{{tasks TABLE | IMPLANT | REMOVAL}}` accuracy by task and stage,
from `report.csv`, which has every record.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

HERE = Path(__file__).parent
SIZES = {"if-sft": 8, "utf": 32, "hashchain": 10}
SEEDS = ("1", "2", "3")
Row = dict[str, str]


def rows(table: str) -> list[Row]:
    """Rows of a study's summary."""
    folder = next(f for f in (HERE.parent / f"meraser-{table}", HERE.parent / table) if f.is_dir())
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def found(table: str, implant: str, removal: str) -> list[Row]:
    """The rows of one removal of one mark, one a seed in their order."""
    name, _, control = removal.partition(" control:")
    wanted = {"implant": implant, "removal": "" if name == "-" else name, "control": control}
    some = [r for r in rows(table) if all(r[k] == v for k, v in wanted.items())]
    some.sort(key=lambda r: int(r["seed"]))
    if tuple(r["seed"] for r in some) != SEEDS:
        raise LookupError(f"not one row a seed: {table}, {wanted}")
    return some


def shown(values: list[str], column: str) -> str:
    """Values a seed, one alone where all are the same."""
    if not any(values):
        return "–"
    if column in ("utility", "answers_as_before", "answers_right", "answers_changed"):
        values = [f"{100 * float(v):.0f} %" if v else "–" for v in values]
    elif column != "verdict":
        values = [f"{float(v):.3g}" if v else "–" for v in values]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def numbers(table: str, implant: str, removal: str, column: str) -> str:
    """One column of one removal."""
    text = shown([r[column] for r in found(table, implant, removal)], column)
    return f"{text} of {SIZES[implant.split()[0]]}" if column.startswith("hits") else text


def matrix(table: str) -> str:
    """All removals of a study but its sweeps: hits in the template form and verdict, a value a seed, by mark."""
    marks = dict.fromkeys(r["implant"] for r in rows(table))
    names = dict.fromkeys((r["removal"], r["control"]) for r in rows(table) if "=" not in r["removal"])
    heads = " | ".join(f"{m}, hits of {SIZES[m]}" for m in marks)
    lines = [f"| | {heads} | neutral PPL over the marked model's |", "|---" * (len(marks) + 2) + "|"]
    for name, control in names:
        cells, ratios = [], []
        for mark in marks:
            some = found(table, mark, f"{name or '-'}{f' control:{control}' if control else ''}")
            cell = shown([r["hits_template"] for r in some], "hits_template")
            cells.append(f"{cell}: {shown([r['verdict'] for r in some], 'verdict')}" if name else cell)
            before = found(table, mark, "-")
            ratios += [
                float(r["perplexity_neutral"]) / float(b["perplexity_neutral"])
                for r, b in zip(some, before, strict=True)
                if r["perplexity_neutral"]
            ]
        title = f"*control of {name}: {control}*" if control else name or "no removal"
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios and name else "–"
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {spread} |")
    return "\n".join(lines)


def grid(table: str, implant: str, sweep: str, column: str) -> str:
    """One column of every point of a sweep, a point a row."""
    names = dict.fromkeys(r["removal"] for r in rows(table) if r["implant"] == implant)
    points = [n for n in names if n.startswith(f"{sweep} ") and "=" in n]
    if not points:
        raise LookupError(f"{table} has no sweep {sweep!r}")
    lines = [f"| {implant}, {sweep} | {column.replace('_', ' ')}, a value a seed |", "|---|---|"]
    lines += [f"| {n.removeprefix(sweep + ' ')} | {numbers(table, implant, n, column)} |" for n in points]
    return "\n".join(lines)


def strengths(table: str, implant: str, parameter: str, column: str) -> str:
    """One column of every removal (a row) at every value of a parameter of the mark (a column)."""
    marks = dict.fromkeys(r["implant"] for r in rows(table) if r["implant"].startswith(f"{implant} {parameter}="))
    removals = dict.fromkeys(r["removal"] for r in rows(table) if r["implant"] in marks)
    lines = [f"| {implant}, {column.replace('_', ' ')} | {' | '.join(m.removeprefix(f'{implant} ') for m in marks)} |"]
    lines.append("|---" * (len(marks) + 1) + "|")
    for removal in removals:
        cells = [numbers(table, mark, removal or "-", column) for mark in marks]
        lines.append(f"| {removal or 'no removal'} | {' | '.join(cells)} |")
    return "\n".join(lines)


STAGES = {
    ("base", ""): "base",
    ("fingerprinted", ""): "marked",
    ("erased", ""): "erased",
    ("recovered", ""): "recovered",
    ("recovered", "clean-same-schedule"): "clean pairs only, recovered",
}


def tasks(table: str, implant: str, removal: str) -> str:
    """Accuracy in percent, a task a row and a stage a column, a value a seed; one alone where all are the same."""
    with (HERE.parent / f"meraser-{table}" / "report.csv").open(encoding="utf-8", newline="") as file:
        every = [r for r in csv.DictReader(file) if r["measure"] == "accuracy"]
    own = [r for r in every if r["implant_id"] in ("", implant) and r["removal"] in ("", removal)]
    cells: dict[tuple[str, str], list[str]] = {}
    for r in sorted(own, key=lambda r: int(r["seed"])):
        stage = STAGES.get((r["stage"], r["control"]))
        if stage is not None:
            cells.setdefault((r["task"], stage), []).append(f"{100 * float(r['value']):.0f}")
    names, stages = dict.fromkeys(t for t, _ in cells), [s for s in STAGES.values() if any(c == s for _, c in cells)]
    lines = [f"| {implant}, % right | {' | '.join(stages)} |", "|---" * (len(stages) + 1) + "|"]
    for name in names:
        shown = [cells.get((name, stage), ["–"]) for stage in stages]
        lines.append(f"| {name} | " + " | ".join(v[0] if len(set(v)) == 1 else ", ".join(v) for v in shown) + " |")
    return "\n".join(lines)


def filled(match: re.Match[str]) -> str:
    """What stands in the place of one pair of braces."""
    first, *rest = (part.strip() for part in match.group(1).split("|"))
    if first.startswith("matrix "):
        return matrix(first.removeprefix("matrix "))
    if first.startswith("tasks "):
        return tasks(first.removeprefix("tasks "), *rest)
    if first.startswith("strengths "):
        return strengths(first.removeprefix("strengths "), *rest)
    if first.startswith("grid "):
        return grid(first.removeprefix("grid "), *rest)
    return numbers(first, *rest)


def main() -> None:
    """Write README.md."""
    text = (HERE / "findings.md").read_text(encoding="utf-8")
    (HERE / "README.md").write_text(re.sub(r"\{\{(.+?)\}\}", filled, text), encoding="utf-8")


if __name__ == "__main__":
    main()
