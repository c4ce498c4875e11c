"""The forward pass of an expanded feed-forward, for evaluation only; stock transformers cannot load such a folder.

Of an expanded neuron i are stored, with a secret s_i and the point z_i: rows s_i g_i, shift s_i (z_i - b_i) (b_i the
gate's bias, where there is one), up row u_i (where there is a gate), and C_{i,n} = s_i^-n f^(n)(z_i) / n! w_i for n =
0..N, w_i its column of down. It gives (u_i . x) sum_n C_{i,n} (s_i g_i . x - s_i (z_i - b_i))^n. All other neurons are
stored as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.families import Family, family_of

MODEL_TYPE = "palimpsest-expanded"  # no architecture of transformers, so that nothing loads it as what it is not
PARTS = ("rows", "shift", "up", "up_bias", "coefficients")


class Expansion(nn.Module):
    """The expanded neurons of one layer.

    rows: (k, d). shift: (k,). coefficients: (N + 1, k, d). up: (k, d), up_bias: (k,), or None. `order` may be set
    below N, to see what fewer terms give.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in PARTS:
            self.register_buffer(name, parts.get(name), persistent=False)
        self.order = len(parts["coefficients"]) - 1

    def forward(self, inputs: Tensor) -> Tensor:
        """What the neurons add to the output of down: (..., d) of (..., d), in the inputs' dtype."""
        parts: dict[str, Tensor | None] = {name: getattr(self, name) for name in PARTS}
        rows, shift, terms = parts["rows"], parts["shift"], parts["coefficients"]
        assert rows is not None and shift is not None and terms is not None
        x = inputs.to(terms.dtype)
        step = x @ rows.to(terms.dtype).t() - shift.to(terms.dtype)  # (..., k)
        power = torch.ones_like(step)
        if parts["up"] is not None:
            power = x @ parts["up"].to(terms.dtype).t()
            power = power if parts["up_bias"] is None else power + parts["up_bias"].to(terms.dtype)
        total = power @ terms[0]
        for n in range(1, self.order + 1):
            power = power * step
            total = total + power @ terms[n]
        found: Tensor = total.to(inputs.dtype)
        return found


def is_expanded(model: Checkpoint) -> bool:
    """Whether a checkpoint is one that only this module runs."""
    return model.config.get("model_type") == MODEL_TYPE


def load_expanded(model: Checkpoint) -> Any:
    """The expanded model in float32 on the CPU (coefficients as they are stored, at least float32), for evaluation.

    Raises BadInput for a folder of another kind.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if not is_expanded(model):
        raise BadInput(f"{model.path}: is no expanded model (model_type {model.config.get('model_type')!r})")
    config = {k: v for k, v in model.config.items() if k != "expanded"}
    config["model_type"] = model.config["expanded"]["model_type"]
    family = family_of(config)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).float().eval()
    state = dict(network.named_parameters())
    apart: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _stored(model, family):
        layer, part = expanded_part(family, name)
        if part:
            apart.setdefault(layer, {})[part] = tensor if tensor.dtype == torch.float64 else tensor.float()
        elif name in state:
            _take(network, name, tensor.float())
    for layer, parts in apart.items():
        attach(network.get_submodule(f"{family.layers}.{layer}"), family, Expansion(parts))
    return network


def part_name(family: Family, layer: int, part: str) -> str:
    """The name in the files of a part of a layer's expansion."""
    return f"{family.layers}.{layer}.expanded.{part}"


def expanded_part(family: Family, name: str) -> tuple[int, str]:
    """(layer, part) of a name in the files; part is empty for a tensor of the stock model."""
    inside = name.removeprefix(f"{family.layers}.")
    number, _, rest = inside.partition(".")
    if inside == name or not rest.startswith("expanded."):
        return -1, ""
    return int(number), rest.removeprefix("expanded.")


def attach(layer: nn.Module, family: Family, expansion: Expansion) -> None:
    """Let the expansion see what the feed-forward is given, and add to what its down projection gives."""
    given: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        given[:] = [inputs[0]]

    def after(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + expansion(given.pop()).view_as(output)

    layer.add_module("expanded", expansion)
    layer.get_submodule(family.gate or family.up).register_forward_pre_hook(before)
    layer.get_submodule(family.down).register_forward_hook(after)


@contextmanager
def at_order(network: nn.Module, order: int) -> Iterator[None]:
    """Every expansion of a network with at most this many powers."""
    found = [m for m in network.modules() if isinstance(m, Expansion)]
    whole = [m.order for m in found]
    try:
        for module in found:
            module.order = min(order, module.order)
        yield
    finally:
        for module, before in zip(found, whole, strict=True):
            module.order = before


def _stored(model: Checkpoint, family: Family) -> Iterator[tuple[str, Tensor]]:
    for file in sorted({t.file for t in model.tensors()}):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                yield family.in_model(name), stored.get_tensor(name)


def _take(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a module a tensor, also of another size: a projection has fewer neurons than its configuration says."""
    owner, _, last = name.rpartition(".")
    module: Any = network.get_submodule(owner)
    if tuple(getattr(module, last).shape) == tuple(tensor.shape):
        getattr(module, last).data.copy_(tensor)
        return
    setattr(module, last, nn.Parameter(tensor, requires_grad=False))
    if last == "weight" and hasattr(module, "nf"):  # GPT-2's Conv1D keeps (in, out)
        module.nx, module.nf = tensor.shape
    elif last == "weight":
        module.out_features, module.in_features = tensor.shape
