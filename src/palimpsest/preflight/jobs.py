"""What a method will do with a model: its fine-tuning phases, and what they write."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.preflight.estimate import state_bytes
from palimpsest.training.settings import Tuning

TOKENIZER_BYTES = 8 << 20  # tokenizer, config and lineage beside the weights; large vocabularies take that much


@dataclass(frozen=True)
class Job:
    """One fine-tuning phase. what: in words. setting: how `--set` calls its Tuning (`erase`, `tuning`)."""

    what: str
    setting: str
    tuning: Tuning


def jobs_of(instance: Any, name: str = "") -> list[Job]:
    """The fine-tuning phases of a method instance: every field that is a Tuning."""
    own = name or _name(instance)
    if not dataclasses.is_dataclass(instance):
        return []
    fields = [(f.name, getattr(instance, f.name)) for f in dataclasses.fields(instance)]
    return [
        Job(f"{own}{'' if field == 'tuning' else f' ({field})'}", field, value)
        for field, value in fields
        if isinstance(value, Tuning) and not _unused(instance)
    ]


def phases_of(instance: Any) -> list[tuple[str, Any]]:
    """A method's phases by name, or the method itself under its own."""
    steps = getattr(instance, "steps", None)
    if steps is None:
        return [(_name(instance), instance)]
    return list(steps() if callable(steps) else steps)


def _unused(instance: Any) -> bool:
    """Whether a method trains nothing after all: a transfer whose adapter is given."""
    return getattr(instance, "adapter", None) is not None


def written_bytes(instance: Any, model: Checkpoint) -> int:
    """Bytes that lie on the output's disk when a method ends, intermediate checkpoints of its phases among them."""
    whole = model_bytes(model)
    small = [getattr(phase, "save", "merged") == "adapter" for _, phase in phases_of(instance)]
    return sum(TOKENIZER_BYTES if adapter else whole for adapter in small)


def model_bytes(model: Checkpoint) -> int:
    """Bytes of a checkpoint that is written as this one is stored."""
    return sum(t.end - t.start for t in model.tensors()) + TOKENIZER_BYTES


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
