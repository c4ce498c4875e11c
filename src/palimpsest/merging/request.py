"""What a merge is asked to do: method, models, base, parameters, and how the result is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from palimpsest.checkpoint import Checkpoint

Vocabulary = Literal["same", "common", "base", "union"]


@dataclass(frozen=True)
class Part:
    """A model that takes part, with the settings that are its own (`weight`, `density`, ...)."""

    model: Checkpoint
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stretch:
    """Layers `first` to `end` (not included) of a model: parts[part], or the base where that is None."""

    part: int | None
    first: int
    end: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Layers of the merged model, made of equally long stretches of its sources."""

    sources: tuple[Stretch, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Copy:
    """Tensors whose name fits `pattern` are taken from one model as they are: parts[part], or the base."""

    pattern: str
    part: int | None


@dataclass(frozen=True)
class MergeRequest:
    """A merge. `method` is a name of the method table; `dtype` what is stored (None: what holds all inputs).

    slices: None takes all layers of all models. vocabulary: what to do where tokenizers differ (see `vocabulary`).
    inputs: what the method takes besides models and settings, by the name of its field.
    """

    method: str
    parts: tuple[Part, ...]
    base: Checkpoint | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    slices: tuple[Slice, ...] | None = None
    copies: tuple[Copy, ...] = ()
    dtype: str | None = None
    vocabulary: Vocabulary = "same"
    seed: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> list[Checkpoint]:
        """All models, the base last."""
        return [*(p.model for p in self.parts), *([self.base] if self.base is not None else [])]

    @property
    def outline(self) -> Checkpoint:
        """The model whose configuration and tokenizer the merged one takes: the base, else the first."""
        return self.base if self.base is not None else self.parts[0].model


def weighted(given: Any) -> tuple[Any, dict[str, float]]:
    """(reference, its own settings) of `reference`, `(reference, weight)`, or text `reference:weight`."""
    if isinstance(given, tuple):
        reference, weight = given
        return reference, {"weight": float(weight)}
    if isinstance(given, str):
        reference, colon, weight = given.rpartition(":")
        try:
            return (reference, {"weight": float(weight)}) if colon else (given, {})
        except ValueError:
            return given, {}  # `toy:unrelated`
    return given, {}
