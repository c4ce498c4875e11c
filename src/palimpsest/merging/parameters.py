"""Parameters that differ from tensor to tensor, in the form that mergekit's files have.

A setting is one value; a list of numbers, which is a gradient over the layers (first value at the first layer, last
at the last, linear between; tensors outside the layers take the first); or a list of `{filter: TEXT, value: ...}`,
of which the first whose text is in the tensor's name (or matches it, where it has a `*`) counts, and one without
`filter` is for all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from palimpsest.errors import BadInput

Setting = Any
Settings = Mapping[str, Setting]
_SCALARS = (bool, int, float, str)


def resolve(setting: Setting, tensor: str, depth: float, where: str = "parameter") -> Any:
    """The value of a setting for a tensor at `depth` in [0, 1] of the layers; None where no filter fits."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if isinstance(setting, _SCALARS) or setting is None:
        return setting
    if not isinstance(setting, Sequence):
        raise BadInput(f"{where}: {setting!r} is no value, no list, and no list of filters")
    if all(isinstance(v, _SCALARS) for v in setting):
        return _gradient(list(setting), depth) if setting else None
    for entry in setting:
        if not isinstance(entry, Mapping) or "value" not in entry or set(entry) - {"filter", "value"}:
            raise BadInput(f"{where}: {entry!r} is no `{{filter: TEXT, value: ...}}`")
        if fits(entry.get("filter"), tensor):
            return resolve(entry["value"], tensor, depth, where)
    return None


def fits(pattern: str | None, tensor: str) -> bool:
    """Whether a filter takes in a tensor: none or `*` all, text with a `*` as a pattern, else where the name has it."""
    if pattern is None or pattern == "*":
        return True
    return fnmatchcase(tensor, pattern) if "*" in pattern else pattern in tensor


def first_of(name: str, settings: Iterable[Settings], tensor: str, depth: float) -> Any:
    """The value of a parameter from the first of `settings` that has one for this tensor, or None."""
    for given in settings:
        if name in given:
            value = resolve(given[name], tensor, depth, name)
            if value is not None:
                return value
    return None


def _gradient(values: list[Any], depth: float) -> Any:
    """Linear between numbers; of anything else the one that the depth falls on."""
    try:
        numbers = [float(v) if isinstance(v, str) else v for v in values]
    except ValueError:
        numbers = values
    scaled = depth * (len(values) - 1)
    low = int(scaled)
    if any(isinstance(n, bool | str) for n in numbers):
        return values[low]
    high = min(len(values) - 1, low + 1)
    return (1 - (scaled - low)) * numbers[low] + (scaled - low) * numbers[high]
