"""What a merge is asked to do: method, models, base, parameters, and how the result is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput

Vocabulary = Literal["same", "common", "base", "union", "unchecked"]
VOCABULARIES = ("same", "common", "base", "union")  # those that a user names
Adapters = Literal["delta", "factor"]


@dataclass(frozen=True)
class Part:
    """A model that takes part, with the settings that are its own (`weight`, `density`, ...).

    on: where `model` is an adapter, the whole model that it is an adapter of.
    """

    model: Checkpoint
    settings: Mapping[str, Any] = field(default_factory=dict)
    on: Checkpoint | None = None

    @property
    def ground(self) -> Checkpoint:
        """The whole model: the one that an adapter stands on, else the model itself."""
        return self.on or self.model

    @property
    def tokenizer(self) -> Path:
        """The folder of its tokenizer: an adapter's own where it has one."""
        own = any((self.model.path / n).is_file() for n in ("tokenizer.json", "vocab.json"))
        return self.model.path if own else self.ground.path


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
    donor: where there is no base, the part that gives configuration and tokenizer; None is the first. owner: the model
    whose vocabulary the merge has, where that is not the outline's. adapters: how adapters become an adapter.
    chat_template: None keeps the tokenizer's. inputs: what the method takes besides models and settings, by the name of
    its field. notes: what the reading of a file has to say.
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
    donor: int | None = None
    owner: Checkpoint | None = None
    adapters: Adapters = "delta"
    chat_template: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> list[Checkpoint]:
        """All whole models, the base last."""
        return [*(p.ground for p in self.parts), *([self.base] if self.base is not None else [])]

    @property
    def folders(self) -> list[Checkpoint]:
        """Every folder that is read."""
        return [*(p.model for p in self.parts), *self.models]

    @property
    def outline(self) -> Checkpoint:
        """The whole model whose configuration and tokenizer the merged one takes: the base, else the donor."""
        return self.base if self.base is not None else self.parts[self.donor or 0].ground

    @property
    def only_adapters(self) -> bool:
        """Whether the merge is of adapters alone, so that its result is an adapter."""
        return self.base is None and all(p.model.is_adapter and p.on is None for p in self.parts)


def check_out(request: MergeRequest, out: Path) -> None:
    """BadInput where writing `out` would write into an input, or replace one."""
    target = out.absolute().resolve()
    for model in request.folders:
        folder = model.path.resolve()
        if target == folder or folder in target.parents:
            raise BadInput(f"--out {out}: lies in the input {model.name} ({model.path}); name a folder outside of it")
        if target in folder.parents and (target / "palimpsest.json").is_file():
            raise BadInput(f"--out {out}: holds the input {model.name} ({model.path}), which it would replace")
