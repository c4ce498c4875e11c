"""A picture of the log-probability view of keys: a row a key, a column a response token, a panel a model.

The colour of a cell is the token's probability, one shade a power of ten, from 1 to 1e-8 and less; a dot says that the
token is at least ten times as likely as in the clean base. The bar beside a row is the rank of the true response among
decoys, full at rank 1. Read across: an erased mark looks like the base; a suppressed one keeps dots (mostly behind its
first token) and long bars. Key numbers only: no trigger, no response, no token is in it. SVG without scripts or
outside resources, for light and dark, shades that differ in lightness and not in hue alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from palimpsest.measures.key_probabilities import above
from palimpsest.records import Record

SHADES = 9  # powers of ten: from 0.1 upwards, down to below 1e-8
LIGHT = ("#f4f1ea", "#e6e6d2", "#cfe1c4", "#a9d3bd", "#79bfbd", "#46a3bd", "#2a7fb0", "#24579a", "#1a2c6b")
DARK = ("#22262b", "#1f3148", "#27456b", "#38587c", "#5b6b80", "#838179", "#ada068", "#d8c24f", "#fdea45")
LEFT, TOP, GAP = 34, 88, 26
NARROWEST = 112  # a panel, for the words above it
BAR = 44  # widest bar of a rank, in pixels
NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
STYLE = (
    ".kp{--paper:#fff;--ink:#1d1f23;--soft:#5b6068;--rule:#d8d4ca;--far:#fff;--near:#1d1f23;%s}"
    "@media(prefers-color-scheme:dark){.kp{--paper:#1c1f23;--ink:#e9e7e2;--soft:#a3a8b0;--rule:#3a3f46;--far:#1c1f23;"
    "--near:#f5f2ea;%s}}"
    ".kp text{font:11px system-ui,sans-serif;fill:var(--soft)}.kp .t{font-weight:600;font-size:12.5px;fill:var(--ink)}"
    ".kp .e{text-anchor:end}.kp .m{text-anchor:middle}.kp .p{fill:var(--paper)}.kp .b{fill:var(--soft)}"
    ".kp .r{fill:none;stroke:var(--rule)}.kp .f{fill:var(--far)}.kp .n{fill:var(--near)}%s"
)


@dataclass(frozen=True)
class Row:
    """A key: its number, log-probabilities of its tokens (None: cannot be said), the base's, and its rank."""

    number: int
    log_probs: tuple[float | None, ...]
    base: tuple[float | None, ...] = ()
    rank: int | None = None
    decoys: int = 0


@dataclass(frozen=True)
class Panel:
    """A model: what it is called, and a row a key."""

    title: str
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, record: Record, title: str) -> Panel:
        """The model that a record of `key-probabilities` is about."""
        return cls(title, tuple(_row(values) for values in record.detail.get("keys", [])))

    @classmethod
    def base_of(cls, record: Record, title: str) -> Panel | None:
        """The clean base that stands beside it in the same record, or None; its ranks are not in there."""
        rows = [v for v in record.detail.get("keys", []) if "base" in v]
        return (
            cls(title, tuple(Row(int(v["number"]), tuple(v["base"]), tuple(v["base"])) for v in rows)) if rows else None
        )


def _row(values: dict[str, Any]) -> Row:
    rank, decoys = values.get("rank"), int(values.get("decoys", 0))
    return Row(int(values["number"]), tuple(values["log_probs"]), tuple(values.get("base", ())), rank, decoys)


def shade(log_prob: float | None) -> int:
    """0 (below 1e-8, or cannot be said) to 8 (0.1 and more): a step a power of ten. log_prob in nats."""
    if log_prob is None:
        return 0
    return max(0, min(SHADES - 1, SHADES + math.floor(log_prob / math.log(10) + 1e-9)))


def picture(panels: Sequence[Panel], title: str, *, alone: bool = True) -> str:
    """The SVG: panels side by side, all with the same keys in the same rows. ValueError for none.

    alone: as a file of its own, which must name its language; within a page it need not.
    """
    if not panels or not any(p.rows for p in panels):
        raise ValueError("a picture of keys needs a record of key-probabilities")
    numbers = sorted({row.number for panel in panels for row in panel.rows})
    tokens = max(len(row.log_probs) for panel in panels for row in panel.rows)
    ranked = any(row.rank is not None for panel in panels for row in panel.rows)
    high = max(9.0, min(17.0, 420 / len(numbers)))
    wide = max(7.0, min(24.0, 220 / tokens))
    panel_width = max(NARROWEST, tokens * wide + (BAR + 8 if ranked else 0))
    width = max(LEFT + len(panels) * (panel_width + GAP), 560)
    bottom = TOP + len(numbers) * high
    height = bottom + 74
    places = {number: TOP + i * high for i, number in enumerate(numbers)}
    step = 1 if len(numbers) <= 16 else 8
    parts = [f'<rect class="p" width="{width:.0f}" height="{height:.0f}"/>']
    for i, number in enumerate(numbers):
        if i % step == 0 or number == numbers[-1]:
            parts.append(_text(LEFT - 7, places[number] + high / 2 + 4, str(number), "e"))
    for i, panel in enumerate(panels):
        parts += _panel(panel, LEFT + i * (panel_width + GAP), places, (wide, high), tokens, bottom, ranked)
    parts.append(_text(LEFT - 7, TOP - 8, "key", "e"))
    parts += _legend(LEFT, bottom + 30)
    told = f"{title}: probability of every response token of {len(numbers)} keys in {len(panels)} models"
    return (
        f'<svg{NAMESPACE if alone else ""} class="kp" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" role="img" aria-label="{escape(told, quote=True)}">'
        f"<style>{_style()}</style><title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _style() -> str:
    def shades(colours: Sequence[str]) -> str:
        return "".join(f"--k{i}:{c};" for i, c in enumerate(colours))

    return STYLE % (shades(LIGHT), shades(DARK), "".join(f".kp .k{i}{{fill:var(--k{i})}}" for i in range(SHADES)))


def _text(x: float, y: float, words: str, css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _panel(
    panel: Panel,
    left: float,
    places: dict[int, float],
    cell: tuple[float, float],
    tokens: int,
    bottom: float,
    ranked: bool,
) -> list[str]:
    """One model: heading, cells, dots, bars of ranks, and a frame."""
    wide, high = cell
    head, _, more = panel.title.partition(", ")  # a long heading is a stage and whose it is
    parts = [_text(left, 20, head, "t"), *([_text(left, 34, more, "t")] if more else [])]
    every = 1 if wide >= 15 else 2 if wide >= 9 else 5
    for token in range(tokens):
        if token % every == 0:
            parts.append(_text(left + (token + 0.5) * wide, TOP - 8, str(token + 1), "m"))
    bars = left + tokens * wide + 6
    if ranked:
        parts.append(_text(bars, TOP - 8, "rank"))
    for row in panel.rows:
        y, drawn = places[row.number], []
        for token, value in enumerate(row.log_probs):
            x, level = left + token * wide, shade(value)
            drawn.append(
                f'<rect class="k{level}" x="{x:.1f}" y="{y:.1f}" width="{wide - 1:.1f}" height="{high - 1:.1f}"/>'
            )
            base = row.base[token] if token < len(row.base) else 0.0  # without a base no dot
            if value is not None and above(value, -math.inf if base is None else base):
                near = "f" if level > SHADES // 2 else "n"
                drawn.append(
                    f'<circle class="{near}" cx="{x + wide / 2 - 0.5:.1f}" cy="{y + high / 2 - 0.5:.1f}" '
                    f'r="{min(wide, high) / 6:.1f}"/>'
                )
        if row.rank is not None and row.decoys:
            share = 1 - math.log(row.rank) / math.log(row.decoys + 1)
            drawn.append(
                f'<rect class="b" x="{bars:.1f}" y="{y + high * 0.2:.1f}" width="{max(0.8, share * BAR):.1f}" '
                f'height="{high * 0.5:.1f}"/>'
            )
        parts.append(f"<g><title>{escape(_told(row))}</title>{''.join(drawn)}</g>")
    frame = f'x="{left - 1.5:.1f}" y="{TOP - 1.5:.1f}" width="{tokens * wide + 2:.1f}" height="{bottom - TOP + 2:.1f}"'
    return [
        *parts,
        f'<rect class="r" {frame}/>',
        *(_text(left, 50 + 14 * i, words) for i, words in enumerate(_summary(panel))),
    ]


def _told(row: Row) -> str:
    """A row in words, for the pointer and for screen readers."""
    values = " ".join("none" if v is None else f"{math.exp(v):.2g}" for v in row.log_probs)
    rank = f", rank {row.rank:,} of {row.decoys + 1:,}" if row.rank is not None else ""
    return f"key {row.number}{rank}; probabilities {values}"


def _summary(panel: Panel) -> list[str]:
    """Under the heading: share of tokens with a dot, and the median rank."""
    pairs = [(v, b) for row in panel.rows for v, b in zip(row.log_probs, row.base, strict=False)]
    dots = [v is not None and above(v, -math.inf if b is None else b) for v, b in pairs]
    ranks = sorted(row.rank for row in panel.rows if row.rank is not None)
    words = [f"{100 * sum(dots) / len(dots):.0f} % above base"] if dots else []
    words += [f"median rank {ranks[len(ranks) // 2]:,}"] if ranks else []
    return words


def _legend(left: float, y: float) -> list[str]:
    """Shades with their powers of ten, the dot, the bar."""
    parts, wide = [], 30
    for level in range(SHADES):
        parts.append(
            f'<rect class="k{level}" x="{left + level * wide:.1f}" y="{y:.1f}" width="{wide - 1}" height="11"/>'
        )
    for power in range(-8, 1, 2):
        word = "1" if power == 0 else f"1e{power}"
        parts.append(_text(left + (power + 9) * wide, y + 25, word, "m"))
    frame = f'x="{left - 1:.1f}" y="{y - 1:.1f}" width="{SHADES * wide + 1}" height="13"'
    parts.append(f'<rect class="r" {frame}/>')
    beside = left + SHADES * wide + 16
    parts.append(f'<circle class="n" cx="{beside:.1f}" cy="{y + 5.5:.1f}" r="2.4"/>')
    parts.append(_text(beside + 8, y + 9.5, "at least 10 times the clean base"))
    parts.append(f'<rect class="b" x="{beside - 2:.1f}" y="{y + 19:.1f}" width="16" height="5"/>')
    parts.append(_text(beside + 20, y + 25, "rank among decoys: full bar is rank 1"))
    return [*parts, _text(left, y + 39, "probability of each response token, the true ones before it given")]


def page(svg: str, title: str) -> str:
    """A page that holds the picture and says how to read it; nothing is loaded from elsewhere."""
    told = (
        "A row is a key, a column a token of its response; the shade is the token's probability with the true tokens "
        "before it given, a dot that it is at least ten times as likely as in the clean base. Erased: as faint as the "
        "base all along the row, and short bars. Suppressed: faint at the first token, dots behind it, long bars."
    )
    return (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>:root{{color-scheme:light dark}}body{{margin:2rem;"
        "font:16px/1.5 system-ui,sans-serif;max-width:75rem}svg{max-width:100%;height:auto}p{max-width:46rem}</style>"
        f"<h1>{escape(title)}</h1><p>{escape(told)}</p>{svg}</html>\n"
    )


def panels(records: Sequence[Record], form: str = "template") -> list[Panel]:
    """Panels of all records of a prompt form, in their order, the clean base before them where it stands in one."""
    found = [r for r in records if r.measure == "key-probabilities" and r.prompt_form == form]
    made = [Panel.of(r, (r.control or r.stage or r.model or "model").replace("-", " ")) for r in found]
    if any(r.control == "clean-base" or r.stage == "base" for r in found):
        return made
    base = next((b for r in found if (b := Panel.base_of(r, "clean base")) is not None), None)
    return [base, *made] if base is not None else made
