"""A comparison of two studies for people: the terminal's table, comparison.md and comparison.csv."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from palimpsest.checkpoint.output import check_target, write_text
from palimpsest.errors import BadInput
from palimpsest.statistics import MINIMUM_SEEDS, SIGNIFICANCE
from palimpsest.study.compare import Comparison, Row, cell_name, number_name
from palimpsest.study.tables import number

FILES = ("comparison.md", "comparison.csv")
SHOWN_LINES = 20  # on a terminal, of what only one study has
SHOWN_SEEDS = 5  # with more of them their mean and range
HEADING = ("", "first", "second", "second − first", "p (Holm)", "")
CSV_FIELDS = (
    *("model", "implant", "removal", "control", "stage", "measure", "prompt_form", "task", "part"),
    *("seeds", "first", "second", "difference", "result", "note"),
    *("test_seed", "test", "p", "p_holm", "more", "fewer", "n"),
)


def terminal(made: Comparison) -> Any:
    """What differs, as a rich renderable; what is alike is counted."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(line) for line in introduction(made)]
    differing = [row for row in made.rows if not row.alike]
    for cell, rows in by_cell(differing):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=Text(cell, style="bold"), title_justify="left")
        for name in HEADING:
            table.add_column(name, justify="right" if name else "left", overflow="fold")
        for row in rows:
            table.add_row(Text(number_name(row.place)), *(Text(c) for c in cells(row)))
        parts.append(table)
    left = len(made.rows) - len(differing)
    parts.append(Text(f"{len(differing)} of {len(made.rows)} numbers differ; {left} are the same in every seed."))
    parts += [Text(line) for line in verdict_lines(made)]
    for name, lines in zip(("first", "second"), made.only, strict=True):
        parts += [Text(f"only in the {name}: {line}") for line in lines[:SHOWN_LINES]]
        if len(lines) > SHOWN_LINES:
            parts.append(Text(f"only in the {name}: {len(lines) - SHOWN_LINES} more, see --out or --json"))
    parts += [Text(line) for line in explanation(made)]
    return Group(*parts)


def markdown(made: Comparison) -> str:
    """Everything, the numbers that are alike too."""
    out = ["# Two studies compared", "", *(f"- {line}" for line in introduction(made)), ""]
    for cell, rows in by_cell(made.rows):
        out += [f"## {cell}", "", _md([h or "number" for h in HEADING[:-1]] + ["result"]), _md(["---"] * len(HEADING))]
        out += [_md([number_name(row.place), *cells(row)]) for row in rows]
        out.append("")
    changed = verdict_lines(made)
    out += ["## Verdicts that differ", "", *(f"- {line}" for line in changed or ["none"]), ""]
    for name, lines in zip(("first", "second"), made.only, strict=True):
        if lines:
            out += [f"## Only in the {name}", "", *(f"- {line}" for line in lines), ""]
    return "\n".join([*out, "## How this was tested", "", *(f"- {line}" for line in explanation(made)), ""])


def csv_text(made: Comparison) -> str:
    """A line for every test, and for every number without one."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in made.rows:
        own = {n: getattr(row.place, n) for n in CSV_FIELDS[:9]} | {
            **{n: " ".join(map(str, getattr(row, n))) for n in ("seeds", "first", "second")},
            **{"difference": row.difference, "result": row.word, "note": row.note},
        }
        for t in row.tests or [None]:
            test = {"test_seed": t.seed, "test": t.name, "p": t.p, "p_holm": t.adjusted} if t else {}
            counts = {"more": t.more, "fewer": t.fewer, "n": t.n} if t else {}
            writer.writerow(own | test | counts)
    return file.getvalue()


def check_out(folder: Path) -> None:
    """BadInput where the comparison may not be written into `folder`: it holds something else."""
    if folder.is_dir() and {p.name for p in folder.iterdir()} <= set(FILES):
        return
    check_target(folder)


def write_comparison(made: Comparison, folder: Path) -> dict[str, Path]:
    """Write comparison.md and comparison.csv into a folder of their own; the paths by kind. Raises BadInput."""
    check_out(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be made: {error.strerror}") from None
    for name, text in zip(FILES, (markdown(made), csv_text(made)), strict=True):
        write_text(folder / name, text)
    return {name.rpartition(".")[2]: folder / name for name in FILES}


# -- lines ----------------------------------------------------------------------------------------------


def introduction(made: Comparison) -> list[str]:
    """Which studies these are, and what was set otherwise."""
    lines = []
    for name, said in (("first", made.first), ("second", made.second)):
        if said:
            title = f": {said['title']}" if said.get("title") else ""
            seeds = ", ".join(map(str, said.get("seeds", [])))
            lines.append(f"{name}: {said['folder']}{title}, seeds {seeds}")
    versions = [said.get("versions", {}) for said in (made.first, made.second)]
    lines += [
        f"versions differ: {name} {versions[0].get(name, '–')} and {versions[1].get(name, '–')}"
        for name in dict.fromkeys([*versions[0], *versions[1]])
        if versions[0].get(name) != versions[1].get(name)
    ]
    return lines + [f"set otherwise: {name}: {one} and {other}" for name, one, other in made.settings]


def explanation(made: Comparison) -> list[str]:
    """What was tested how."""
    tests = made.tests
    over = [t for t in tests if t.seed is None]
    items = len(tests) - len(over)
    lines = []
    if over:
        how = "the paired t test" if made.seed_test == "t" else "exact sign flips"
        lines.append(f"{len(over)} numbers of {MINIMUM_SEEDS} seeds and more: differences over seeds by {how}.")
    if items:
        lines.append(
            f"{items} pairs of models on the same items: McNemar's exact test of hits and right answers, the sign test "
            "of ranks. Such a p speaks of these two models, not of the methods that made them."
        )
    described = sum(not row.tests and not (row.same and row.alike) for row in made.rows)
    if described:
        lines.append(
            f"{described} numbers are only described: below {MINIMUM_SEEDS} seeds nothing beats anything, and they "
            "have no outcomes of the same items."
        )
    same = sum(row.same for row in made.rows)
    if same:
        lines.append(f"{same} numbers are of models that both studies made alike (equal digests); they are not tested.")
    if tests:
        lines.append(
            f"p by Holm over all {len(tests)} tests; a difference is shown where it is at most {SIGNIFICANCE:g}."
        )
    return lines + [f"{note}." for note in made.notes]


def verdict_lines(made: Comparison) -> list[str]:
    """`toy > utf > meraser: erased: removal: claim-lost, then removed (seed 1)`."""
    lines = []
    for v in made.verdicts:
        words = "; ".join(f"{one} and {other} (seed {seed})" for seed, one, other in v.changed)
        lines.append(f"verdicts differ: {cell_name(v.place)}, {number_name(v.place)}: {words}")
    return lines


def by_cell(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of every cell, in the order in which cells come first."""
    names = {name: place for place, name in enumerate(dict.fromkeys(cell_name(r.place) for r in rows))}
    ordered = sorted(rows, key=lambda r: names[cell_name(r.place)])
    for name, some in itertools.groupby(ordered, key=lambda r: cell_name(r.place)):
        yield name, list(some)


def cells(row: Row) -> list[str]:
    """Values of both, difference, p and result of a row."""
    difference = row.difference
    shown = f"{100 * difference:+.3g} points" if row.rate else f"{difference:+.3g}"
    note = f" ({row.note})" if row.note and (not row.tests or row.same) else ""
    return [
        _values(row.first, row.rate),
        _values(row.second, row.rate),
        shown if difference else "0",
        ", ".join(_once([p_text(t.adjusted) for t in row.tests])) or "–",
        row.word + note,
    ]


def p_text(p: float) -> str:
    """Two significant digits, `< 1e-6` below that."""
    return "< 1e-6" if p < 1e-6 else f"{p:.2g}"


def _values(values: Sequence[float], rate: bool) -> str:
    def show(value: float) -> str:
        return f"{100 * value:.3g}" if rate else number(value)

    unit = " %" if rate else ""
    if len(values) <= SHOWN_SEEDS:
        return ", ".join(_once([show(v) for v in values])) + unit
    mean = math.fsum(values) / len(values)
    return f"{show(mean)}{unit} ({show(min(values))} to {show(max(values))})"


def _once(texts: list[str]) -> list[str]:
    """One text for all seeds where they agree."""
    return texts[:1] if len(set(texts)) == 1 else texts


def _md(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
