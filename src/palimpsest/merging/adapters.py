"""LoRA adapters of PEFT (arXiv 2106.09685): their factors, and a base with its adapter read as one model.

An adapter gives weights W (out, in) of its target modules the delta B A * scale, with A (rank, in), B (out, rank) and
scale = alpha / rank, or alpha / sqrt(rank) with rslora. The delta is computed for the rows that are read, so that no
whole model is made first. Tensors in `modules_to_save` replace those of the base.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.files import TensorInfo
from palimpsest.errors import BadInput
from palimpsest.merging.reading import STORED, Buffers, Files, Source, Stored, check_finite
from palimpsest.merging.weights import Weights

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<which>A|B|embedding_A|embedding_B)(?:\.default)?(?:\.weight)?(?P<rest>\.\w+)?"
)
_PREFIX = "base_model.model."
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.default)?)\.")
# Kinds of adapters whose effect is another than W + B A * scale: field of adapter_config.json to what it is.
_OTHER = {
    "use_dora": "DoRA",
    "lora_bias": "a bias on B (lora_bias)",
    "layer_replication": "replicated layers",
    "target_parameters": "target_parameters",
    "trainable_token_indices": "trainable_token_indices",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "arrow_config": "Arrow",
    "megatron_config": "Megatron layers",
}
_KEPT = 24  # factors held at a time: those of the tensors in work, and a few more


@dataclass(frozen=True)
class Pair:
    """The two factors of a module: where A and B lie, the scale, and whether they stand for a table of rows.

    embedding: factors of an embedding are stored the other way round, A (rank, tokens) and B (width, rank).
    """

    module: str
    a: TensorInfo
    b: TensorInfo
    scale: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """Rank of the delta."""
        return self.a.shape[0]

    @property
    def delta_shape(self) -> tuple[int, int]:
        """Shape of B A: (out, in), or for an embedding (width, tokens)."""
        return self.b.shape[0], self.a.shape[1]


class Adapter:
    """A PEFT folder: `pairs` of factors and `replaced` tensors by the name of module or tensor in its base."""

    def __init__(self, model: Checkpoint) -> None:
        self.model, self.config = model, model.config
        kind = self.config.get("peft_type", "LORA")
        if kind != "LORA":
            raise BadInput(f"{model.name}: is an adapter of the type {kind}; only LoRA adapters are merged here")
        for field, what in _OTHER.items():
            if self.config.get(field):
                raise BadInput(
                    f"{model.name}: its adapter has {what}, so its effect is not W + B A; merge it into its base "
                    "with peft (merge_and_unload), and name the whole model"
                )
        self.replaced: dict[str, TensorInfo] = {}
        found: dict[str, dict[str, TensorInfo]] = {}
        for tensor in model.tensors():
            name = tensor.name.removeprefix(_PREFIX)
            if tensor.dtype not in STORED:
                raise BadInput(f"{model.name}: tensor {tensor.name} is stored as {tensor.dtype}")
            match = _FACTOR.fullmatch(name)
            if ".original_module." in name:
                continue  # what PEFT writes beside a saved module of another size: the base's, not in use
            if match is None and ".lora_" not in name:
                plain = _WRAPPED.sub(".", name)
                if plain == name or plain not in self.replaced:
                    self.replaced[plain] = tensor
            elif match is None or match["rest"]:
                raise BadInput(f"{model.name}: tensor {tensor.name} is nothing that LoRA adapters have")
            else:
                found.setdefault(match["module"], {})[match["which"]] = tensor
        self.pairs = {module: self._pair(module, factors) for module, factors in found.items()}

    def _pair(self, module: str, factors: dict[str, TensorInfo]) -> Pair:
        names = [n for n in (("A", "B"), ("embedding_A", "embedding_B")) if set(n) == set(factors)]
        if not names:
            raise BadInput(f"{self.model.name}: {module} has {', '.join(sorted(factors))} and not A and B")
        a, b = (factors[n] for n in names[0])
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise BadInput(
                f"{self.model.name}: {module}: A {list(a.shape)} and B {list(b.shape)} are no two matrices that can be "
                "multiplied (convolutions are not merged)"
            )
        alpha = float(self._said("alpha_pattern", module, self.config.get("lora_alpha", 8)))
        rank = a.shape[0]
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return Pair(module, a, b, scale, names[0][0] != "A")

    def _said(self, pattern: str, module: str, default: Any) -> Any:
        """The value of the first pattern that fits a module's name, as PEFT matches them."""
        for key, value in (self.config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        return default

    @property
    def transposed(self) -> bool:
        """Whether the weights it is for are (in, out), as GPT-2's are."""
        return bool(self.config.get("fan_in_fan_out"))


class Factors:
    """Factors in float32, the last few that were asked for; shared by all threads."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, str], tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, pair: Pair, model: str, make: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Any:
        """What `make` makes of A and B."""
        key = (str(pair.a.file), pair.module)
        with self._lock:
            if key not in self._held:
                self._held[key] = make(read_whole(pair.a, model), read_whole(pair.b, model))
                if len(self._held) > _KEPT:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            return self._held[key]


def read_whole(tensor: TensorInfo, model: str) -> Tensor:
    """A small tensor as float32 in its shape. Raises BadInput for a number that is not finite."""
    raw = np.frombuffer(bytearray(b"".join(tensor.chunks())), dtype=np.uint8)
    found = torch.from_numpy(raw).view(STORED[tensor.dtype]).float()
    check_finite(found, 0, model, tensor.name)
    return found.view(tensor.shape)


@dataclass(frozen=True)
class Adapted:
    """A base's tensor (rows, columns) with an adapter's delta left (rows, rank) @ right (rank, columns) added."""

    base: Source
    pair: Pair
    across: bool  # whether the delta is (B A) transposed
    factors: Factors
    model: str

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the base."""
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """That of the base."""
        return self.base.dtype

    def read(self, first: int, end: int, files: Files, buffers: Buffers, place: int) -> Tensor:
        """Numbers `first` to `end`: the base's, and the delta of the rows they are in."""
        found = self.base.read(first, end, files, buffers, place)
        left, right = self.factors.get(self.pair, self.model, self._sides)
        width = self.base.shape[1]
        top, bottom = first // width, -(-end // width)
        delta = (left[top:bottom] @ right).view(-1)
        return found.add_(delta[first - top * width : end - top * width])

    def _sides(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        scaled = b * self.pair.scale
        return (a.T.contiguous(), scaled.T.contiguous()) if self.across else (scaled, a)


class AdaptedWeights(Weights):
    """A whole model with an adapter on it, by the names in the whole model."""

    def __init__(self, ground: Checkpoint, model: Checkpoint, factors: Factors) -> None:
        super().__init__(ground)
        self.name = f"{ground.name} with {model.name}"
        self._factors = factors
        adapter = Adapter(model)
        pairs = {self.named(f"{module}.weight"): pair for module, pair in adapter.pairs.items()}
        replaced = {self.named(name): tensor for name, tensor in adapter.replaced.items()}
        touched = {n for n in (self.head, self.embedding) if n in pairs or n in replaced}
        if self.tied and touched:  # PEFT changes one of the two and leaves the other as it is
            self.stored[self.head] = self.stored[self.embedding]
            self.tied = False
        for name in [*pairs, *replaced]:
            if name not in self.stored:
                raise BadInput(
                    f"{model.name}: is an adapter for {name}, which {ground.name} does not have; it is the adapter of "
                    f"another model ({adapter.config.get('base_model_name_or_path') or 'not said which'})"
                )
        # Under the names that the whole model's files have, since the merged model's are taken from here.
        self.stored.update({n: replace(t, name=self.stored[n].name) for n, t in replaced.items()})
        self._across = {n: self._is_across(n, pair, adapter.transposed) for n, pair in pairs.items()}
        self._pairs = pairs

    def _is_across(self, name: str, pair: Pair, transposed: bool) -> bool:
        shape, delta = self.stored[name].shape, pair.delta_shape
        across = pair.embedding or transposed
        if shape != (delta[::-1] if across else delta):
            if shape != (delta if across else delta[::-1]) or pair.embedding:
                raise BadInput(
                    f"tensor {name}: the adapter {self.name.rpartition(' with ')[2]} is for the shape {list(delta)}, "
                    f"{self.model.name} has {list(shape)}"
                )
            across = not across
        return across

    def raw(self, name: str) -> TensorInfo | None:
        """The tensor's place in a file, or None where the adapter changes it."""
        return None if self._key(name) in self._pairs else self.get(name)

    def source(self, name: str) -> Source:
        """The tensor of a name to read from."""
        key = self._key(name)
        plain = Stored(self.stored[key], self.name)
        if key not in self._pairs:
            return plain
        return Adapted(plain, self._pairs[key], self._across[key], self._factors, self.name)
