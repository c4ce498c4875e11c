"""Sweeps: one entry of a study file that stands for several, one a value of a parameter.

    removals: [{meraser: {preset: toy, mismatched: [100, 200, 300], pairing: [derangement, cross-type]}}]

becomes six entries with the ids `meraser mismatched=100 pairing=derangement`, ... A list stands for its values one by
one wherever the parameter takes a single value; one that takes a list itself has lists of lists for that. A parameter
of a part is written with a dot (`erase.lr`) or nested (`erase: {lr: [...]}`); `preset` and the inputs that name a model
or data may be swept as well. Axes multiply, the last one fastest. What moves together is one axis whose values are
mappings (`erase: [{rank: 4, alpha: 8}, {rank: 16, alpha: 32}]`). Under the word `sweep` every list is an axis. In a
chain the axes of all links multiply.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import types
import typing
from typing import Any, Literal, get_args, get_origin

from palimpsest import registry
from palimpsest.errors import BadInput
from palimpsest.method import spoken
from palimpsest.study.entries import ARROW, OWN_FIELDS, default_id, is_chain, name_and_given

MOST = 100  # entries of one sweep: more is a mistake in the file
INPUTS: dict[str, Any] = {"Checkpoint": str, "Dialogues": str | tuple[str, ...], "KeySet": str}
INPUTS |= {"LabelledItems": str | tuple[str, ...]}  # what a study file writes in their place


def expanded(entry: Any, kinds: tuple[str, ...] = ()) -> list[Any]:
    """The entries that one entry of a study file stands for: itself where nothing in it has several values.

    An entry that came of a sweep has `point`: {"of": id before, "at": {axis: value}}. kinds: of the method. Raises
    ValueError.
    """
    if is_chain(entry):
        return _expanded_chain(entry, kinds)
    if not isinstance(entry, dict) or len(entry) > 2:
        return [entry]
    try:
        name, given = name_and_given(entry)
    except ValueError:
        return [entry]  # for the entry itself to refuse
    given = dict(given)
    axes: dict[str, list[Any]] = {}
    rest: dict[str, Any] = {}
    cls = _class(name, kinds) if any(_holds_lists(v) for v in given.values()) else None
    for key, value in given.items():
        if key == "sweep":
            found, kept = axes_of(value, name), None
        elif cls is None or key == "id" or (key in OWN_FIELDS and key != "preset"):
            found, kept = {}, value
        else:
            found, kept = _split(value, str if key == "preset" else _hint(cls, str(key)), str(key))
            _check_axes(found, name)
        for axis in found:
            if axis in axes:
                raise ValueError(f"sweep of {name}: {axis!r} is given twice")
        axes |= found
        if kept is not None or (key != "sweep" and not found):
            rest[key] = kept
    if not axes:
        return [entry]
    for axis in axes:
        if axis in rest:
            raise ValueError(f"sweep of {name}: {axis!r} is given beside the sweep as well")
    of = str(rest.pop("id", default_id(name)))
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    _check_size(len(points), name)
    return [{name: {**rest, **at, "id": f"{of} {point_text(at)}", "point": {"of": of, "at": at}}} for at in points]


def _expanded_chain(entry: Any, kinds: tuple[str, ...]) -> list[Any]:
    """A chain for every choice of a point of each link. An axis that two links have is told apart by theirs."""
    given = {"chain": entry} if isinstance(entry, list) else entry
    if not isinstance(given["chain"], list):
        return [entry]
    links = [[link] if is_chain(link) else expanded(link, kinds) for link in given["chain"]]
    points = [[_point(made) for made in some] for some in links]
    if not any(p for some in points for p in some):
        return [entry]
    _check_size(math.prod(map(len, links)), "a chain")
    axes = [axis for some in points for axis in (some[0] or {"at": {}})["at"]]
    names = [_id(some[0], made[0]) for some, made in zip(points, links, strict=True)]
    of = str(given.get("id", ARROW.join(names)))
    found = []
    for chosen, at_points in zip(itertools.product(*links), itertools.product(*points), strict=True):
        at: dict[str, Any] = {}
        for number, point in enumerate(at_points):
            for axis, value in (point or {"at": {}})["at"].items():
                own = f"{number + 1} {point['of']}.{axis}" if axes.count(axis) > 1 and point else axis
                at[own] = value
        without = [_without_point(link) for link in chosen]
        made = {"chain": without, "id": f"{of} {point_text(at)}", "point": {"of": of, "at": at}}
        found.append({**{k: v for k, v in given.items() if k not in ("chain", "id")}, **made})
    return found


def _point(entry: Any) -> dict[str, Any] | None:
    if not (isinstance(entry, dict) and len(entry) == 1):
        return None
    given = next(iter(entry.values()))
    return given.get("point") if isinstance(given, dict) else None


def _without_point(entry: Any) -> Any:
    if _point(entry) is None:
        return entry
    name, given = next(iter(entry.items()))
    return {name: {k: v for k, v in given.items() if k != "point"}}


def _id(point: dict[str, Any] | None, entry: Any) -> str:
    """What a link is called: by its sweep, its `id`, or its name."""
    if point is not None:
        return str(point["of"])
    name, given = name_and_given(entry)
    return str(given.get("id", default_id(name)))


def _check_size(size: int, name: str) -> None:
    if size > MOST:
        raise ValueError(f"sweep of {name}: {size} entries are more than the {MOST} that one sweep may have")


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
        axes[".".join(path)] = value

    collect(sweep, ())
    _check_axes(axes, name)
    return axes


def _check_axes(axes: dict[str, list[Any]], name: str) -> None:
    for axis, values in axes.items():
        if not values:
            raise ValueError(f"sweep of {name}: {axis}: the list is empty")
        if len({_text(v) for v in values}) < len(values):
            raise ValueError(f"sweep of {name}: {axis}: one value is given twice")


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
    if isinstance(value, str) and os.sep in value:  # a path stands in no id
        return value.rstrip(os.sep).rpartition(os.sep)[2]
    return str(value)


# -- lists that are axes ----------------------------------------------------------------------------------


def _class(name: str, kinds: tuple[str, ...]) -> type[Any] | None:
    try:
        return registry.find(name, *kinds)
    except BadInput:
        return None  # for the check of names to refuse


def _holds_lists(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and any(map(_holds_lists, value.values())))


def _hint(cls: Any, dotted: str) -> Any:
    """The type of a parameter or input (a dotted one: of a part); None where there is none of that name."""
    for part in dotted.split("."):
        if not dataclasses.is_dataclass(cls):
            return None
        wanted = spoken(part.replace("-", "_"))
        field = next((f for f in dataclasses.fields(cls) if spoken(f.name) == wanted), None)
        if field is None:
            return None
        if field.metadata.get("input"):
            return _input_hint(str(field.type))
        cls = typing.get_type_hints(cls, localns=dict.fromkeys(INPUTS, object))[field.name]
    return cls


def _input_hint(written: str) -> Any:
    """What a study file gives for an input: the name of a model, of a data set or of several."""
    if written.startswith("tuple[Checkpoint"):
        return tuple[str, ...]
    return next((hint for name, hint in INPUTS.items() if name in written), None)


def _split(value: Any, hint: Any, path: str) -> tuple[dict[str, list[Any]], Any]:
    """The axes in a value of a type, and what is left of it (None for nothing)."""
    part = next((t for t in _options(hint) if dataclasses.is_dataclass(t)), None)
    if isinstance(value, dict) and part is not None:
        axes: dict[str, list[Any]] = {}
        rest: dict[str, Any] = {}
        for key, inner in value.items():
            found, kept = _split(inner, _hint(part, str(key)), f"{path}.{key}")
            axes |= found
            if not found or kept is not None:
                rest[key] = kept
        return (axes, rest or None) if axes else ({}, value)
    if hint is not None and isinstance(value, list) and _depth(value) > max(map(_type_depth, _options(hint))):
        return {path: value}, None
    return {}, value


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _type_depth(hint: Any) -> int:
    """How many lists stand in one another in a value of a type."""
    if get_origin(hint) is Literal or get_origin(hint) not in (tuple, list):
        return 0
    inner = [a for a in get_args(hint) if a is not Ellipsis]
    return 1 + max((_type_depth(o) for a in inner for o in _options(a)), default=0)


def _depth(value: Any) -> int:
    return 1 + min((_depth(v) for v in value), default=0) if isinstance(value, list) else 0
