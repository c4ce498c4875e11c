"""Sweeps: one entry of a study file that stands for several, one a value of a parameter.

    removals: [{meraser: {preset: toy, sweep: {mismatched: [100, 200, 300], pairing: [derangement, cross-type]}}}]

becomes six entries with the ids `meraser mismatched=100 pairing=derangement`, ... A parameter of a part is written
with a dot (`erase.lr`) or nested (`erase: {lr: [...]}`); `preset` and the inputs that name a model or data may be
swept as well. Axes multiply, the last one fastest. What moves together is one axis whose values are mappings
(`erase: [{rank: 4, alpha: 8}, {rank: 16, alpha: 32}]`).
"""

from __future__ import annotations

import itertools
from typing import Any

MOST = 100  # entries of one sweep: more is a mistake in the file


def expanded(entry: Any) -> list[Any]:
    """The entries that one entry of a study file stands for: itself where it has no `sweep`.

    An entry that came of a sweep has `point`: {"of": id before, "at": {axis: value}}. Raises ValueError.
    """
    if not (isinstance(entry, dict) and len(entry) == 1):
        return [entry]
    name, given = next(iter(entry.items()))
    if not (isinstance(given, dict) and "sweep" in given):
        return [entry]
    axes = axes_of(given["sweep"], str(name))
    rest = {k: v for k, v in given.items() if k != "sweep"}
    for axis in axes:
        if axis in rest:
            raise ValueError(f"sweep of {name}: {axis!r} is given beside the sweep as well")
    of = str(rest.pop("id", name if ".py:" in str(name) else str(name).replace("_", "-")))
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(points) > MOST:
        raise ValueError(f"sweep of {name}: {len(points)} entries are more than the {MOST} that one sweep may have")
    return [{name: {**rest, **at, "id": f"{of} {point_text(at)}", "point": {"of": of, "at": at}}} for at in points]


def axes_of(sweep: Any, name: str = "sweep") -> dict[str, list[Any]]:
    """Axis (a dotted parameter) to its values. Raises ValueError where a value is no list, or stands twice."""
    axes: dict[str, list[Any]] = {}

    def collect(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                collect(inner, (*path, str(key)))
            return
        where = f"sweep of {name}" + (f": {'.'.join(path)}" if path else "")
        if not path or not isinstance(value, list) or not value:
            raise ValueError(f"{where}: write each axis as `parameter: [value, value]`")
        if len({_text(v) for v in value}) < len(value):
            raise ValueError(f"{where}: one value is given twice")
        axes[".".join(path)] = value

    collect(sweep, ())
    return axes


def point_text(at: dict[str, Any]) -> str:
    """`mismatched=100 erase.lr=0.001`."""
    return " ".join(f"{axis}={_text(value)}" for axis, value in at.items())


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ",".join(f"{k}:{_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "+".join(map(_text, value))
    return str(value)
