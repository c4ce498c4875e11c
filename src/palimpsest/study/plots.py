"""The report's pictures: small SVGs drawn by hand, coloured by the page's style sheet (light and dark).

Marks differ in shape as well as in colour, so that nothing rests on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from palimpsest.records import Record
from palimpsest.study.summary import SummaryLine
from palimpsest.study.tables import FORM_WORDS, Block, Column, percent, records_at

WIDTH, HEIGHT = 580, 262
SHOWN_CONTROLS = (None, "revival", "clean-base")  # beside each other in the picture of keys
LEFT, RIGHT, TOP, BOTTOM = 48, 4, 14, 58
MARKS = 4  # kinds of mark


class Frame:
    """One chart: columns as places on the x axis, and a y axis that is linear or logarithmic."""

    def __init__(
        self,
        title: str,
        description: str,
        columns: Sequence[Column],
        low: float,
        high: float,
        *,
        log: bool = False,
        falling: bool = False,
    ) -> None:
        self.title, self.description, self.columns = title, description, columns
        self.low, self.high, self.log, self.falling = low, high, log, falling
        self.parts: list[str] = []

    @property
    def step(self) -> float:
        """Width of one column in pixels."""
        return (WIDTH - LEFT - RIGHT) / len(self.columns)

    def x(self, number: int, shift: float = 0.0) -> float:
        """Middle of a column; shift in columns."""
        return LEFT + (number + 0.5 + shift) * self.step

    def y(self, value: float) -> float:
        """Height of a value; with `falling` small values stand at the top."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        share = min(1.0, max(0.0, share))
        return TOP + (share if self.falling else 1 - share) * (HEIGHT - TOP - BOTTOM)

    def ticks(self, values: Sequence[tuple[float, str]]) -> None:
        """Grid lines with their words."""
        for value, word in values:
            y = self.y(value)
            self.parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{escape(word)}</text>'
            )

    def names(self) -> None:
        """Names of the columns, and a line between the stages and the controls."""
        bottom = HEIGHT - BOTTOM
        for number, column in enumerate(self.columns):
            for place, word in enumerate(column.parts):
                self.parts.append(
                    f'<text class="tick" x="{self.x(number):.1f}" y="{bottom + 17 + 13 * place:.1f}" '
                    f'text-anchor="middle">{escape(word)}</text>'
                )
        first = next((i for i, c in enumerate(self.columns) if c.control is not None), 0)
        if first:
            x = LEFT + first * self.step
            self.parts.append(f'<line class="divider" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom + 46}"/>')

    def svg(self) -> str:
        """The finished chart."""
        self.names()
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.description, quote=True)}">'
            f"<title>{escape(self.title)}</title>{''.join(self.parts)}</svg>"
        )


def mark(kind: int, x: float, y: float, size: float = 4.5, title: str = "", extra: str = "") -> str:
    """Circle, square, triangle or diamond of series `kind`."""
    css = f"s{kind} {extra}".strip()
    label = f"<title>{escape(title)}</title>" if title else ""
    if kind == 0:
        return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}">{label}</circle>'
    reach = size * (0.9 if kind == 1 else 1.2)
    corners = {
        1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        2: ((0, -1), (1, 0.85), (-1, 0.85)),
        3: ((0, -1), (1, 0), (0, 1), (-1, 0)),
    }[kind]
    points = " ".join(f"{x + dx * reach:.1f},{y + dy * reach:.1f}" for dx, dy in corners)
    return f'<polygon class="{css}" points="{points}">{label}</polygon>'


def legend(words: Sequence[str]) -> str:
    """The key of shapes and colours, as a line of HTML."""
    items = "".join(
        f'<li><svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{mark(i, 7, 7)}</svg>{escape(w)}</li>'
        for i, w in enumerate(words)
    )
    return f'<ul class="legend">{items}</ul>'


def fsr_plot(block: Block, rows: Sequence[Record]) -> str:
    """FSR by stage and prompt form, with intervals."""
    told = f"Hit rate of {block.title} by stage and prompt form, with intervals; the numbers stand in the table above."
    frame = Frame(f"{block.title}: FSR by stage", told, block.columns, 0.0, 1.0)
    frame.ticks([(v / 100, f"{v} %") for v in (0, 25, 50, 75, 100)])
    for number, column in enumerate(block.columns):
        hits = {r.prompt_form: r for r in records_at(list(rows), column) if r.measure == "hit-rate"}
        for place, form in enumerate(block.forms):
            record = hits.get(form)
            if record is None or record.value is None:
                continue
            x = frame.x(number, (place - (len(block.forms) - 1) / 2) * 0.17)
            if record.low is not None and record.high is not None:
                frame.parts.append(
                    f'<line class="l{place}" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(record.low):.1f}" '
                    f'y2="{frame.y(record.high):.1f}"/>'
                )
            told = f"{FORM_WORDS[form]}, {column.title}: {percent(record.value)}, {record.count} of {record.n}"
            frame.parts.append(mark(place, x, frame.y(record.value), title=told))
    return frame.svg()


def rank_plot(block: Block, rows: Sequence[Record]) -> str:
    """Rank of each key's true response among decoys, by stage: at the top it is the likeliest of all."""
    ranks = {
        i: [
            (int(k["rank"]), int(k["decoys"]))
            for r in records_at(list(rows), c)
            if r.measure == "rank"
            for k in r.detail.get("keys", [])
        ]
        for i, c in enumerate(block.columns)
    }
    most = max((d + 1 for some in ranks.values() for _, d in some), default=0)
    if most < 2:
        return ""
    told = f"Rank of each key's true response among {most - 1} decoys for {block.title}; rank 1 is the likeliest."
    frame = Frame(f"{block.title}: rank of the true response", told, block.columns, 1, most, log=True, falling=True)
    ticks = [1.0, *[v for v in (10.0, 100.0) if v < most], float(most)]
    frame.ticks([(v, f"{v:,.0f}") for v in ticks])
    chance = frame.y((most + 1) / 2)
    frame.parts.append(
        f'<line class="chance" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{chance:.1f}" y2="{chance:.1f}"/>'
        f'<text class="tick end" x="{LEFT - 8}" y="{chance + 3:.1f}">chance</text>'
    )
    for number, some in ranks.items():
        for place, (rank, decoys) in enumerate(some):
            spread = ((place * 0.618034) % 1 - 0.5) * 0.56  # golden ratio: even, and the same every time
            told = f"{block.columns[number].title}: rank {rank:,} of {decoys + 1:,}"
            frame.parts.append(mark(0, frame.x(number, spread), frame.y(rank), 2.8, told, "dot"))
        if some:
            middle = frame.y(sorted(rank for rank, _ in some)[(len(some) - 1) // 2])
            left, right = frame.x(number, -0.32), frame.x(number, 0.32)
            frame.parts.append(
                f'<line class="median" x1="{left:.1f}" x2="{right:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
            )
    return frame.svg()


def key_plot(block: Block, rows: Sequence[Record]) -> str:
    """Every response token of every key, a panel a stage; empty where `key-probabilities` was not taken.

    Beside the stages the revival, and the unmarked base through the same removal: what the removal alone does.
    """
    if not any(record.measure == "key-probabilities" for record in rows):
        return ""
    from palimpsest.measures import key_picture  # it needs torch, and most reports have no such picture

    found: list[key_picture.Panel] = []
    base: key_picture.Panel | None = None
    for column in block.columns:
        for record in records_at(list(rows), column) if column.control in SHOWN_CONTROLS else []:
            if record.measure == "key-probabilities" and record.prompt_form == "template":
                found.append(key_picture.Panel.of(record, column.title))
                base = base or key_picture.Panel.base_of(record, "base")
    if not found:
        return ""
    if base is not None and found[0].title != "base":
        found.insert(0, base)
    return key_picture.picture(found, f"{block.title}: every token of every response", alone=False)


def perplexity_plot(block: Block, rows: Sequence[Record]) -> str:
    """Perplexity by stage on neutral text and on dialogues, logarithmic."""
    found = {
        task: [
            (i, r)
            for i, c in enumerate(block.columns)
            for r in records_at(list(rows), c)
            if r.measure == "perplexity" and r.task == task and r.value
        ]
        for task in ("neutral", "dialogue")
    }
    values = [float(v) for some in found.values() for _, r in some for v in (r.value, r.low, r.high) if v]
    if not values:
        return ""
    low, high = min(values) / 1.08, max(values) * 1.08
    frame = Frame(
        f"{block.title}: perplexity by stage",
        f"Perplexity of {block.title} by stage on neutral text and on dialogues; the numbers stand in the table above.",
        block.columns,
        low,
        high,
        log=True,
    )
    frame.ticks([(v, f"{v:g}") for v in log_ticks(low, high)])
    for series, some in enumerate(found.values()):
        stages = [(frame.x(i), frame.y(float(r.value or 0))) for i, r in some if block.columns[i].control is None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in stages)
        frame.parts.append(f'<polyline class="p{series}" points="{path}"/>')
        for i, record in some:
            x, value = frame.x(i), float(record.value or 0)
            if record.low is not None and record.high is not None:
                frame.parts.append(
                    f'<line class="l{series}" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(record.low):.1f}" '
                    f'y2="{frame.y(record.high):.1f}"/>'
                )
            told = f"{record.task}, {block.columns[i].title}: {value:.2f}"
            frame.parts.append(mark(series, x, frame.y(value), title=told))
    return frame.svg()


def accuracy_plot(block: Block, rows: Sequence[Record]) -> str:
    """Accuracy by task, a mark a stage, with intervals; a dashed line a task for its chance level.

    In the form of MEraser's Figure 2. Nothing where no task was asked at two stages. Controls stand in the table.
    """
    found = [r for r in rows if r.measure == "accuracy" and r.control is None and r.value is not None]
    stages = [c for c in block.columns if c.control is None and any(r.stage == c.stage for r in found)][:MARKS]
    tasks = list(dict.fromkeys(str(r.task) for r in found))
    if len(stages) < 2:
        return ""
    told = f"Accuracy of {block.title} by task and stage, with intervals; the numbers stand under single tasks."
    frame = Frame(f"{block.title}: accuracy by task", told, [Column(task, "") for task in tasks], 0.0, 1.0)
    frame.ticks([(v / 100, f"{v} %") for v in (0, 25, 50, 75, 100)])
    for number, task in enumerate(tasks):
        chance = next((r.detail["chance"] for r in found if r.task == task and "chance" in r.detail), None)
        if chance is not None:
            left, right, y = frame.x(number, -0.44), frame.x(number, 0.44), frame.y(float(chance))
            frame.parts.append(f'<line class="chance" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        for place, column in enumerate(stages):
            record = next((r for r in found if r.task == task and r.stage == column.stage), None)
            if record is None:
                continue
            x = frame.x(number, (place - (len(stages) - 1) / 2) * 0.2)
            if record.low is not None and record.high is not None:
                frame.parts.append(
                    f'<line class="l{place}" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(record.low):.1f}" '
                    f'y2="{frame.y(record.high):.1f}"/>'
                )
            told = f"{task}, {column.title}: {percent(record.value or 0)}, {record.count} of {record.n}"
            frame.parts.append(mark(place, x, frame.y(record.value or 0), 3.8, told))
    return frame.svg()


def sweep_plot(title: str, axis: str, points: Sequence[tuple[Any, SummaryLine]]) -> str:
    """Hit rate and utility kept along the axis of a sweep: a mark a seed, a line through the means."""
    columns = [Column(f"{value:g}" if isinstance(value, float) else str(value), "") for value, _ in points]
    told = f"{title}: hit rate and utility kept along {axis}; the numbers stand in the table above."
    frame = Frame(f"{title}, over {axis}", told, columns, 0.0, 1.0)
    frame.ticks([(v / 100, f"{v} %") for v in (0, 25, 50, 75, 100)])
    for series, name in enumerate(("hit rate", "utility")):
        means: list[tuple[float, float]] = []
        for place, (_, line) in enumerate(points):
            values = [v for v in (_share(row, name) for row in line.numbers) if v is not None]
            for number, value in enumerate(values):
                x = frame.x(place, (number - (len(values) - 1) / 2) * 0.09 + (series - 0.5) * 0.05)
                frame.parts.append(mark(series, x, frame.y(value), 3.6, f"{name}, {axis} {columns[place].title}"))
            if values:
                means.append((frame.x(place), frame.y(sum(values) / len(values))))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in means)
        frame.parts.append(f'<polyline class="p{series}" points="{path}"/>')
    return frame.svg()


def _share(row: Mapping[str, Any], name: str) -> float | None:
    if name == "utility":
        return row.get("utility")
    return row["hits_template"] / row["keys"] if row.get("keys") and "hits_template" in row else None


def log_ticks(low: float, high: float) -> list[float]:
    """A few round values between low and high."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(i / 10 for i in range(10, 100, 2))):
        found = [s * 10.0**e for e in range(-3, 9) for s in steps if low <= s * 10.0**e <= high]
        if len(found) >= 3:
            return [round(v, 6) for v in found[:: max(1, len(found) // 5)]]
    return [round(low, 2), round(high, 2)]
