"""One training run on several processes: process 0 leads step by step, every process is a member.

The same run as on one process: process 0 makes each step's micro-batches; every member reads its share of their
rows, its loss divided by the supervised weight of the *whole* step, and gradients are summed. Replicas (DDP)
sum them once a step, shards (FSDP) in each backward pass. Only the order of additions differs, and dropout,
whose masks each process draws for itself.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palimpsest.errors import BadInput, PalimpsestError
from palimpsest.training import sharding
from palimpsest.training.distributed import Lost, World, current, share
from palimpsest.training.sharding import Root, Sharding
from palimpsest.training.stepper import Optimising, Stepper, training

if TYPE_CHECKING:
    from palimpsest.training.loop import Batch

LossOf = Callable[[nn.Module, "Batch"], Tensor]
_reader: Any = None


@dataclass(frozen=True)
class Blueprint:
    """How another process builds a model of the same structure; values are sent to it.

    dress: what is done to the plain model before training (adapters), a picklable function.
    """

    kind: type
    config: Any
    dtypes: dict[str, torch.dtype]
    dress: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, model: Any, dress: Callable[[Any], Any] | None = None) -> Blueprint:
        """The blueprint of a plain transformers model."""
        dtypes = {name: p.dtype for name, p in (*model.named_parameters(), *model.named_buffers())}
        return cls(type(model), copy.deepcopy(model.config), dtypes, dress)

    def skeleton(self) -> Any:
        """The plain model on the meta device: structure and dtypes, no memory."""
        with torch.device("meta"):
            model = self.kind(self.config)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.data = tensor.data.to(self.dtypes.get(name, tensor.dtype))
        return model

    def dressed(self, model: Any) -> Any:
        """The model as it is trained."""
        return model if self.dress is None else self.dress(model)


@dataclass(frozen=True)
class TrainingJob:
    """What a member must know before the first step. layout: name, shape and whether it is trained."""

    blueprint: Blueprint
    loss_of: Any
    settings: Optimising
    sharding: Sharding | None
    checkpointing: bool
    threads: int
    seed: int
    layout: list[tuple[str, tuple[int, ...], bool]] = field(default_factory=list)

    def __call__(self, world: World) -> None:
        """Take part in the run until process 0 says that it is over."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed + world.rank)  # dropout: not the masks that process 0 draws
        member = Member(world, self, None)
        with training(member.model, world.device, self.checkpointing):
            while (order := world.hear()) is not None:
                getattr(member, order[0])(*order[1:])

    def checked(self, model: Any) -> Any:
        """Another process's model made like process 0's, in what is trained. Raises PalimpsestError."""
        built = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
        if built != [(name, shape) for name, shape, _ in self.layout]:
            raise PalimpsestError(f"{self.blueprint.kind.__name__} was built differently on two processes")
        for parameter, (_, _, trained) in zip(model.parameters(), self.layout, strict=True):
            parameter.requires_grad_(trained)
        return model


class Member:
    """One process's part of a run. model: the one that it trains (process 0's own, a replica, or a shard)."""

    def __init__(self, world: World, job: TrainingJob, model: Any) -> None:
        self.world, self.source, self.sharded = world, model, job.sharding is not None
        if job.sharding is not None:
            self.root = self._shards(job, job.sharding)
            self.model = self.root.model
            self.stepper = Stepper(self.model, job.settings, self._through_root)
            return
        self.model = model if model is not None else self._replica(job)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            world.send(tensor)
        if model is None and hasattr(job.loss_of, "attach"):
            job.loss_of.attach(self.model)
        self.stepper = Stepper(self.model, job.settings, lambda batch: job.loss_of(self.model, batch))

    def _replica(self, job: TrainingJob) -> Any:
        plain = job.blueprint.skeleton()
        sharding.materialise(plain, self.world.device)
        return job.checked(job.blueprint.dressed(plain))

    def _shards(self, job: TrainingJob, how: Sharding) -> Root:
        def work(model: Any, ids: Tensor, weights: Tensor | None, mask: Tensor | None, **more: Any) -> Tensor:
            if weights is None:
                logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits
                return logits
            loss: Tensor = job.loss_of(model, more["batch"](ids, weights, mask))
            return loss

        with torch.device("meta"):
            twin = job.checked(job.blueprint.dressed(job.blueprint.skeleton()))
        root = Root(twin, work)
        sharding.shard(root, how, self.world)
        sharding.fill(twin, self.source, self.world)
        return root

    def _through_root(self, batch: Batch) -> Tensor:
        def again(ids: Tensor, weights: Tensor, mask: Tensor | None) -> Batch:
            return replace(batch, input_ids=ids, weights=weights, attention_mask=mask)

        loss: Tensor = self.root(batch.input_ids, batch.weights, batch.attention_mask, batch=again)
        return loss

    def step(self, rate: float, parts: Sequence[Batch]) -> float:
        """This process's share of a step; returns the loss of the whole step."""
        mine = [share(part, self.world.rank, self.world.size) for part in parts]
        times = float(self.world.size) if self.sharded else 1.0  # shards average gradients where replicas sum them
        loss = self.stepper.gradients(mine, times)
        if not self.sharded:
            self.world.add_gradients(self.stepper.parameters)
        self.stepper.update(rate)
        return self.world.add(loss)

    @torch.no_grad()
    def state(self) -> None:
        """Take process 0's parameters and optimiser state (after it went on from its state file)."""
        optimiser = self.stepper.optimiser
        for parameter in self.stepper.parameters:
            self.world.send(parameter)
            kept = optimiser.state[parameter]
            if self.world.rank:
                kept["step"] = torch.zeros((), device=parameter.device if parameter.is_cuda else "cpu")
                kept["exp_avg"], kept["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            for name in ("step", "exp_avg", "exp_avg_sq"):
                self.world.send(kept[name])

    def read(self, ids: Tensor, mask: Tensor | None, columns: Tensor) -> Tensor:
        """Logits of a sharded model at some columns; the same rows on all processes."""
        device = self.world.device
        mask = None if mask is None else mask.to(device)
        self.model.eval()
        with torch.inference_mode(False), torch.no_grad():
            logits: Tensor = self.root(ids.to(device), None, mask, logits_to_keep=columns.to(device))
            self.root.reshard()  # type: ignore[operator]
        self.model.train()
        return logits

    def gather(self) -> None:
        """Copy what was trained back into process 0's own model, where shards were trained."""
        if self.sharded:
            sharding.gather(self.model, self.source, self.world)


class Team:
    """Process 0's side of a run: says what is to be done, and does its own part of it."""

    def __init__(self, world: World, model: Any, job: TrainingJob) -> None:
        if world.broken:
            raise Lost(world.failure() or "error: an earlier step failed on all processes; start the command again")
        trained = [p for p in model.parameters() if p.requires_grad]
        if job.sharding is not None:
            sharding.refuse_hooks(trained)
            if hasattr(job.loss_of, "attach"):
                raise BadInput(
                    "accelerate: this implant's loss compares with the untouched model, which FSDP does not shard; "
                    "use distributed_type MULTI_GPU, or leave the comparison out (--set kl_weight=0)"
                )
        layout = [(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()]
        job = replace(job, layout=layout)
        self.world, self.model, self.job = world, model, job
        world.tell(job)
        with world.together():
            self.member = Member(world, job, model)

    def step(self, rate: float, parts: Sequence[Batch]) -> float:
        """One optimiser step on all processes."""
        self.world.tell(("step", rate, list(parts)))
        with self.world.together():
            return self.member.step(rate, parts)

    def send_state(self) -> None:
        """Give the others the parameters and optimiser state that a state file held."""
        self.world.tell(("state",))
        with self.world.together():
            self.member.state()

    def read(self, ids: Tensor, mask: Tensor | None, columns: Tensor) -> Tensor:
        """Logits at some columns, computed by all."""
        self.world.tell(("read", ids.cpu(), None if mask is None else mask.cpu(), columns.cpu()))
        with self.world.together():
            return self.member.read(ids, mask, columns)

    def __enter__(self) -> Team:
        """While shards are trained, `readable` answers with all of them."""
        global _reader
        _reader = _Reader(self) if self.member.sharded else None
        return self

    def __exit__(self, *_: object) -> None:
        """Bring what was trained home and let the others wait for the next job."""
        global _reader
        _reader = None
        if self.world.broken:
            return
        self.world.tell(("gather",))
        with self.world.together():
            self.member.gather()
        self.world.tell(None)


class _Reader:
    """Looks to a responder like a model that gives logits; the sharded one answers."""

    def __init__(self, team: Team) -> None:
        inner = team.model.get_base_model() if hasattr(team.model, "get_base_model") else team.model
        self.team, self.config = team, inner.config
        self.generation_config = getattr(inner, "generation_config", None)

    def eval(self) -> _Reader:
        return self

    def parameters(self) -> Any:
        """One tensor, on the device that inputs may lie on."""
        return iter([torch.empty(0, device=self.team.world.device)])

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None, logits_to_keep: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.team.read(input_ids, attention_mask, logits_to_keep))


def readable(model: Any) -> Any:
    """The model to ask while `model` is being trained: itself, or its shards."""
    return model if _reader is None else _reader


def held_on() -> str | None:
    """Where a model that will be trained is loaded: on the CPU where it is sharded, else where the run's device is."""
    return "cpu" if current() is not None and sharding.asked(os.environ) is not None else None
