"""What `--through`, `--set`, `--preset` and `--reference` mean: wrappers around what is asked, built and checked.

A setting names its method first, `cleangen.alpha=20`, and need not where only one can be meant: the one wrapper, or the
one measure where nothing is wrapped. Presets are given the same way, `cleangen=released_code`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from palimpsest import registry
from palimpsest.checkpoint import Checkpoint, is_toy, resolve
from palimpsest.data import load_dialogues
from palimpsest.errors import BadInput
from palimpsest.method import build, input_fields, presets


@dataclass(frozen=True)
class Asked:
    """Wrappers, the innermost first, and measures, all with their inputs; what else will be loaded; notes to read."""

    wrappers: tuple[Any, ...]
    measures: tuple[Any, ...]
    models: tuple[Checkpoint, ...]
    notes: list[str] = field(default_factory=list)


def asked_through(
    model: Checkpoint,
    through: Sequence[str] = (),
    measures: Sequence[str] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    preset: Sequence[str] = (),
    references: Mapping[str, str | Path | Checkpoint | None] | None = None,
    data: Sequence[str | Path] = (),
) -> Asked:
    """Build what a call names; BadInput for what is misspelt, missing or does not fit the model. Loads no model.

    references: models by the name of the input that takes them (`reference`, `original`, `base`).
    """
    wraps = {_name(cls): cls for cls in map(_wrapper, through)}
    if len(wraps) < len(through):
        raise BadInput("--through: names the same removal twice")
    taken = {_name(cls): cls for cls in (registry.find(m, "measures") for m in measures)}
    set_for = shared_out((settings or {}).items(), ".", list(wraps), list(taken), "--set")
    preset_for = shared_out(((p, "") for p in preset), "=", list(wraps), list(taken), "--preset")
    notes: list[str] = []
    built = {}
    for name, cls in {**wraps, **taken}.items():
        chosen = next(iter(preset_for[name]), None)
        if chosen is None and name in wraps and is_toy(model) and "toy" in presets(cls):
            chosen = "toy"
            notes.append(f"preset toy of {name} (the model is the embedded toy)")
        built[name] = build(cls, chosen, dict(set_for[name]))
    models = _fill(built, references or {}, notes)
    for name, cls in wraps.items():
        if "data" in input_fields(cls) and data:
            built[name] = replace(built[name], data=load_dialogues(list(data)))
    for place, name in enumerate(wraps):
        if place and getattr(wraps[name], "innermost", False):
            raise BadInput(f"--through {name}: decodes with the model itself, so it stands innermost: name it first")
        if hasattr(built[name], "check"):
            built[name].check(model)
    return Asked(tuple(built[n] for n in wraps), tuple(built[n] for n in taken), models, notes)


def _fill(
    built: dict[str, Any], references: Mapping[str, str | Path | Checkpoint | None], notes: list[str]
) -> tuple[Checkpoint, ...]:
    """Give every method the models that it takes; the models that some method does."""
    models = []
    for role, reference in references.items():
        if reference is None:
            continue
        takers = [name for name, instance in built.items() if role in input_fields(type(instance))]
        if not takers:
            notes.append(f"--{role} is not needed here")
            continue
        models.append(resolve(reference))
        for name in takers:
            built[name] = replace(built[name], **{role: models[-1]})
    return tuple(models)


def shared_out(
    given: Iterable[tuple[str, Any]], mark: str, wrappers: list[str], measures: list[str], option: str
) -> dict[str, dict[str, Any]]:
    """Settings by the method that they are for. given: (words, value); `mark` stands after a method's name."""
    named = [*wrappers, *measures]
    found: dict[str, dict[str, Any]] = {name: {} for name in named}
    alone = wrappers if wrappers else measures
    for words, value in given:
        head, marked, rest = words.partition(mark)
        if marked and head.replace("_", "-") in found:
            found[head.replace("_", "-")][rest] = value
        elif len(alone) == 1:
            found[alone[0]][words] = value
        elif not named:
            raise BadInput(f"{option} {words}: there is nothing to set; name a removal with --through")
        else:
            choices = " or ".join(f"{name}{mark}{words}" for name in named)
            raise BadInput(f"{option} {words}: which method is meant? Say {choices}")
    return found


def refuse_wrapper(cls: type, name: str) -> None:
    """BadInput where a removal acts on what is asked and would write nothing."""
    if hasattr(cls, "wrap") and not hasattr(cls, "apply"):
        raise BadInput(
            f"{name}: acts while a model answers, so there is no checkpoint to make; "
            f"use palimpsest verify --through {name} (or evaluate --through {name})"
        )


def _wrapper(name: str) -> type[Any]:
    cls = registry.find(name, "removals")
    if not hasattr(cls, "wrap"):
        raise BadInput(f"--through {name}: makes a checkpoint; use palimpsest remove {name} and verify what it makes")
    return cls


def _name(cls: type[Any]) -> str:
    info = getattr(cls, "info", None)
    return str(info.name) if info is not None else cls.__name__
