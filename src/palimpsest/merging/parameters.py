"""Parameters that differ from tensor to tensor, in the form that mergekit's files have.

A setting is one value; a list of numbers, which is a gradient over the layers (first value at the first layer, last
at the last, linear between; tensors outside the layers take the first); or a list of `{filter: TEXT, value: ...}`,
of which the first whose text is in the tensor's name (or matches it, where it has a `*`) counts, and one without
`filter` is for all others. A tuple has one value for each model.

On the command line: `density=0.4`, `density=0.4,0.6` (a tuple), `t=[0,0.5,1]` (a gradient), `density@mlp=0.3` (a
filter).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml

from palimpsest.errors import BadInput

Setting = Any
Settings = Mapping[str, Setting]
_SCALARS = (bool, int, float, str)


def resolve(setting: Setting, tensor: str, depth: float, where: str = "parameter") -> Any:
    """The value of a setting for a tensor at `depth` in [0, 1] of the layers; None where no filter fits."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if isinstance(setting, (*_SCALARS, tuple)) or setting is None:
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


def listed(name: str, values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The values of a setting that has one for each model. Raises BadInput for another number of them."""
    if len(values) != count:
        raise BadInput(f"{name}: {len(values)} values for {count} models; give one for each, or one for all")
    return values


def layered(first: Setting, second: Setting) -> Setting:
    """A setting that is `first` where it has a value for a tensor, else `second`."""
    if isinstance(first, Mapping):
        first = [first]
    open_end = isinstance(first, list) and first and all(isinstance(e, Mapping) for e in first)
    if second is None or not open_end:
        return second if first is None or first == [] else first
    return [*first, {"value": second}] if not _filters(second) else [*first, *_filters(second)]


def _filters(setting: Setting) -> list[Mapping[str, Any]]:
    entries = setting if isinstance(setting, list) else [setting]
    return list(entries) if all(isinstance(e, Mapping) for e in entries) else []


def from_words(given: Settings) -> dict[str, Setting]:
    """Settings as the command line gives them: `NAME@FILTER` keys gathered, lists and tuples read from their text.

    The filters of a parameter come in the order in which they are given, and its plain value is for all others.
    """
    found: dict[str, Setting] = {}
    for key, value in given.items():
        name, at, pattern = key.partition("@")
        if at:
            if not pattern:
                raise BadInput(f"--set {key}: say after the @ which tensors, as in density@mlp=0.3")
            found[name] = [*found.get(name, []), {"filter": pattern, "value": _value(value, key)}]
    for key, value in given.items():
        if "@" not in key:
            found[key] = layered(found.get(key), _value(value, key))
    return found


def _value(said: Any, where: str) -> Setting:
    if not isinstance(said, str):
        return said
    if said.startswith("["):
        try:
            read = yaml.safe_load(said)
        except yaml.YAMLError:
            raise BadInput(f"--set {where}: {said!r} is no list; write a gradient as [0,0.5,1]") from None
        return read
    return tuple(v.strip() for v in said.split(",")) if "," in said else said


def own_settings(shared: dict[str, Setting], own: Sequence[Settings], for_each: Iterable[str]) -> list[dict[str, Any]]:
    """Each model's own settings with the filters of `shared` before them: a filter says more than `MODEL:0.5` does."""
    found = [dict(settings) for settings in own]
    for name in for_each:
        for number, settings in enumerate(found):
            entries = [e for e in _filters(shared.get(name)) if e.get("filter") not in (None, "*")]
            if name in settings and entries:
                mine = [{**e, "value": _of_model(name, e["value"], number, len(found))} for e in entries]
                settings[name] = layered(mine, settings[name])
    return found


def _of_model(name: str, value: Setting, number: int, count: int) -> Setting:
    return listed(name, value, count)[number] if isinstance(value, tuple) else value
