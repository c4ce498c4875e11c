"""What a method will do with a model: its fine-tuning phases, and what they write."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.digest import TOKENIZER_FILES
from palimpsest.method import input_fields
from palimpsest.preflight.estimate import state_bytes
from palimpsest.training.settings import Tuning

SMALL_FILES = 1 << 16  # config and lineage


@dataclass(frozen=True)
class Job:
    """One fine-tuning phase. what: in words. setting: how `--set` calls its Tuning (`erase`, `search.plant`)."""

    what: str
    setting: str
    tuning: Tuning


def jobs_of(instance: Any, name: str = "", inside: str = "") -> list[Job]:
    """The fine-tuning phases of a method instance: every field that is a Tuning, or that holds one.

    inside: how `--set` calls the instance itself where it is a parameter of another, with its dot.
    """
    own = name or _name(instance)
    if not dataclasses.is_dataclass(instance) or _unused(instance):
        return []
    found = []
    for field in dataclasses.fields(instance):
        value, setting = getattr(instance, field.name), inside + field.name
        if isinstance(value, Tuning):
            found.append(Job(f"{own}{'' if setting == 'tuning' else f' ({setting})'}", setting, value))
        elif dataclasses.is_dataclass(value) and not isinstance(value, Checkpoint):
            found += jobs_of(value, own, f"{setting}.")
    return found


def phases_of(instance: Any) -> list[tuple[str, Any]]:
    """A method's phases by name, or the method itself under its own."""
    steps = getattr(instance, "steps", None)
    if steps is None:
        return [(_name(instance), instance)]
    return list(steps() if callable(steps) else steps)


def loads_model(instance: Any) -> bool:
    """Whether a method holds the whole model: it trains, or runs data through it. All others stream the weights."""
    return bool(jobs_of(instance)) or "data" in input_fields(type(instance))


def _unused(instance: Any) -> bool:
    """Whether a method trains nothing after all: a transfer whose adapter is given."""
    return getattr(instance, "adapter", None) is not None


def written_bytes(instance: Any, model: Checkpoint) -> int:
    """Bytes that lie on the output's disk when a method ends, intermediate checkpoints of its phases among them."""
    whole = model_bytes(model)
    phases = [phase for _, phase in phases_of(instance)]
    return sum(adapter_bytes(p, model) if getattr(p, "save", "merged") == "adapter" else whole for p in phases)


def model_bytes(model: Checkpoint) -> int:
    """Bytes of a checkpoint that is written as this one is stored."""
    beside = [model.path / name for name in TOKENIZER_FILES if (model.path / name).is_file()]
    return sum(t.end - t.start for t in model.tensors()) + sum(f.stat().st_size for f in beside) + SMALL_FILES


def adapter_bytes(instance: Any, model: Checkpoint) -> int:
    """Bytes of the adapter that a method trains: a third of the state that a killed run goes on from."""
    return resume_bytes(instance, model) // 3 + SMALL_FILES


def resume_bytes(instance: Any, model: Checkpoint) -> int:
    """Bytes of the largest state that a killed phase goes on from; it lies in the scratch folder."""
    count = stored_parameters(model)
    return max((state_bytes(model.config, job.tuning, count) for job in jobs_of(instance)), default=0)


def stored_parameters(model: Checkpoint) -> int:
    """Numbers in the weights' files."""
    return sum(t.count for t in model.tensors())


def _name(instance: Any) -> str:
    info = getattr(instance, "info", None)
    return str(info.name) if info is not None else type(instance).__name__
