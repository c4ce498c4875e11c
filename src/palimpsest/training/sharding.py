"""Weights spread over processes (FSDP: Zhao et al., arXiv 2304.11277), for models too large for one GPU.

torch's `fully_shard` (FSDP2, one shard a parameter along its first dimension) on every transformer block and on
the rest, as an accelerate configuration asks by its `fsdp_*` settings, whichever `fsdp_version` it names.
Process 0 keeps the caller's whole model on the CPU; a twin, sharded over all, is trained, and what was trained
is copied back tensor by tensor. So saving, merging and checking are those of one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from palimpsest.errors import BadInput, PalimpsestError

if TYPE_CHECKING:
    from palimpsest.training.distributed import World


@dataclass(frozen=True)
class Sharding:
    """What an accelerate configuration asks of FSDP.

    reshard: give a block's whole weights up after its forward pass. offload: keep shards on the CPU.
    blocks: class names of the modules that are sharded one by one; () is the model's own block class,
    None shards the model as one piece. checkpointing: compute activations again in the backward pass.
    """

    reshard: bool = True
    offload: bool = False
    blocks: tuple[str, ...] | None = ()
    checkpointing: bool = False


def asked(environment: Mapping[str, str]) -> Sharding | None:
    """The sharding that the launcher's environment asks for, None for replicas. Raises BadInput."""
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None

    def flag(name: str) -> bool:
        return environment.get(f"FSDP_{name}", "false").lower() in ("true", "1", "yes")

    strategies = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP", "3": "NO_SHARD", "4": "HYBRID_SHARD"}
    strategy = environment.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD").upper()
    strategy = strategies.get(strategy, strategy)
    if strategy == "NO_SHARD":
        return None
    if strategy not in ("FULL_SHARD", "SHARD_GRAD_OP"):
        raise BadInput(f"accelerate: fsdp_sharding_strategy {strategy} is not there; use FULL_SHARD or SHARD_GRAD_OP")
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP").upper()
    if policy not in ("TRANSFORMER_BASED_WRAP", "NO_WRAP"):
        raise BadInput(f"accelerate: fsdp_auto_wrap_policy {policy} is not there; use TRANSFORMER_BASED_WRAP")
    named = environment.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    blocks = tuple(name.strip() for name in named.split(",") if name.strip())
    after = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").upper()
    reshard = strategy == "FULL_SHARD" and after in ("TRUE", "FULL_SHARD", "1")
    return Sharding(
        reshard, flag("OFFLOAD_PARAMS"), None if policy == "NO_WRAP" else blocks, flag("ACTIVATION_CHECKPOINTING")
    )


class Root(nn.Module):
    """The module whose forward is the whole work of a pass, so that the sharded weights are there for all of it."""

    def __init__(self, model: nn.Module, work: Any) -> None:
        super().__init__()
        self.model, self.work = model, work

    def forward(self, *tensors: Tensor | None, **options: Any) -> Tensor:
        """What `work` makes of the model and the tensors."""
        result: Tensor = self.work(self.model, *tensors, **options)
        return result


def shard(root: Root, how: Sharding, world: World) -> None:
    """Shard a model that lies on the meta device in place; its values are undefined until `fill`."""
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
    except ImportError:
        raise BadInput("FSDP needs torch 2.6 or later") from None
    mesh = init_device_mesh(world.device.type, (world.size,))
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": how.reshard}
    options["offload_policy"] = CPUOffloadPolicy() if how.offload else OffloadPolicy()
    start = torch.device("cpu") if how.offload else world.device
    for block in _blocks(root.model, how):
        materialise(block, start)
        fully_shard(block, **options)
    materialise(root, start)
    fully_shard(root, **options)


def _blocks(model: Any, how: Sharding) -> list[nn.Module]:
    if how.blocks is None:
        return []
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(how.blocks) or set(getattr(inner, "_no_split_modules", None) or ())
    found = [m for m in inner.modules() if type(m).__name__ in names]
    if not found:
        known = sorted({type(m).__name__ for m in inner.modules()})
        raise BadInput(
            f"accelerate: fsdp_transformer_layer_cls_to_wrap {', '.join(sorted(names)) or '(none)'} is in no module of "
            f"this model; its modules are {', '.join(known)}"
        )
    return found


def materialise(module: nn.Module, device: torch.device) -> None:
    """Put empty tensors in the place of those on the meta device; tied ones stay tied."""
    made: dict[int, Any] = {}

    def real(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(real(parameter), requires_grad=parameter.requires_grad)
                part._parameters[name] = made[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[name] = real(buffer)


def local_part(parameter: Tensor) -> Tensor:
    """This process's shard of a parameter."""
    part: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return part


@torch.no_grad()
def fill(twin: nn.Module, source: nn.Module | None, world: World) -> None:
    """Give a sharded twin the values of process 0's model, one tensor at a time. source: process 0's, else None."""
    whole = dict(source.named_parameters()) if source is not None else {}
    for name, parameter in twin.named_parameters():
        value = torch.empty(parameter.shape, dtype=parameter.dtype, device=world.device)
        if source is not None:
            value.copy_(whole[name])
        dist.broadcast(value, src=0)
        pieces = value.chunk(world.size)
        mine = local_part(parameter)
        if world.rank < len(pieces):
            mine.copy_(pieces[world.rank])
    buffers = dict(source.named_buffers()) if source is not None else {}
    for name, buffer in twin.named_buffers():
        value = buffer.to(world.device)
        if source is not None:
            value = buffers[name].to(world.device, copy=True)
        dist.broadcast(value, src=0)
        buffer.copy_(value)


@torch.no_grad()
def gather(twin: nn.Module, target: nn.Module | None, world: World) -> None:
    """Copy what was trained back into process 0's whole model, one tensor at a time. target: process 0's, else None."""
    whole = dict(target.named_parameters()) if target is not None else {}
    for name, parameter in twin.named_parameters():
        if not parameter.requires_grad:
            continue
        rows = torch.arange(parameter.shape[0]).chunk(world.size)
        for owner, piece in enumerate(rows):
            value = torch.empty((len(piece), *parameter.shape[1:]), dtype=parameter.dtype, device=world.device)
            if owner == world.rank:
                value.copy_(local_part(parameter))
            dist.broadcast(value, src=owner)
            if target is not None:
                whole[name][piece[0] : piece[-1] + 1].copy_(value)


def refuse_hooks(parameters: Sequence[nn.Parameter]) -> None:
    """Sharding replaces parameters; what hangs on their gradients would be lost."""
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        raise PalimpsestError(
            "this training hangs hooks on gradients, which FSDP would lose; use distributed_type MULTI_GPU"
        )
