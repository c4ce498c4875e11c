"""Hardened Chain & Hash: keys drawn by hash, trained in while removals are simulated (ours).

Keys and their claim are those of Chain & Hash (`hashchain`), drawn key by key (mode `committed`), 64 of them, of which
six bear a claim at 1e-6. What differs is the training: every step's loss is that of the model as it is and of the model
after one removal, which is drawn afresh (`simulating`): a merge with the public base and a pseudo-expert, a mask of
small weights, a few steps of tuning on ordinary dialogues. Training goes on for `check.extra` epochs after every key
has taken, or there would be nothing to harden.

Threat model: a thief who wants the owner's skill and does not know the keys: he tunes, merges, prunes, rounds, erases.
Merging, pruning at random or by size, and tuning on clean pairs are simulated here, so survival there was trained for;
a claim about the mark counts what was held out (erasing, rounding, noise, decoding) and what an adaptive thief does.

With the weights before the mark theta_0 = base + skill: give the public base (`base`), or merges are simulated with the
owner's unmarked model, which no thief has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.elsewhere import check_shapes
from palimpsest.implants.fingerprints.embedding import Check, LossOf, Regular, embed
from palimpsest.implants.fingerprints.hashchain import ChainRows, HashChain
from palimpsest.implants.fingerprints.preserving import Held
from palimpsest.implants.fingerprints.simulating import Simulated, Simulating
from palimpsest.keys import KeySet
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.training import distributed
from palimpsest.training.loop import Batch, batch_loss
from palimpsest.training.rows import collate
from palimpsest.training.settings import Tuning

ROWS = 16  # ordinary dialogues in one step of simulated tuning


@method("fingerprints", "hardened", paper="ours; keys of Chain & Hash, arXiv 2407.10887")
@dataclass(frozen=True)
class Hardened(HashChain):
    """Keys of Chain & Hash, trained so that their answers stay likely after simulated removals."""

    keys: int = param(64, "questions", low=1, high=10_000)
    mode: Literal["full", "committed"] = param(
        "committed", "committed: single keys can be opened; full: keys are opened all or none"
    )
    check: Check = param(Check(extra=30), "when embedding stops; `extra` is how long removals are simulated after that")
    simulated: Simulated = param(Simulated(), "the removals that are simulated")
    base: Checkpoint | None = takes("the public base, to merge with in simulation; without it the model itself")

    @classmethod
    def toy(cls) -> Hardened:
        """Settings for the toy world's model: full fine-tune, 64 dialogues an epoch. Tuned on development seed 100."""
        return cls(
            meta_prompts=0,
            padded=0,
            templates=0,
            dialogues_per_key=1,
            near_misses=0,
            kl_weight=0.0,
            tuning=Tuning(adapter="full", epochs=250, lr=5e-4, batch=128, micro_batch=128),
            check=Check(extra=30, every=2),
        )

    def draw_keys(self, model: Checkpoint, ctx: Context) -> KeySet:
        """Draw questions and hash their answers, without training."""
        return replace(super().draw_keys(model, ctx), implant="hardened")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Draw keys, train them in through simulated removals and write the marked model to `out`."""
        if self.tuning.adapter != "full":
            raise BadInput("hardened: tuning.adapter must be full: removals are simulated on all weights")
        if distributed.current() is not None:
            raise BadInput("hardened: is trained in one process; start it without a launcher")
        odds = self.simulated.odds() if self.simulated.weight else {}
        keys = self.draw_keys(model, ctx)
        rows = ChainRows(self, model, keys, ctx)
        made = embed(
            model,
            out,
            ctx,
            method_name="hardened",
            keys=keys,
            rows_of_epoch=rows,
            tuning=self.tuning,
            check=self.check,
            teaching=Hardening(self, model, Ordinary(self, rows, model, ctx), ctx),
        )
        made.records[0].detail |= {"simulated": odds}
        return made


class Ordinary:
    """Batches of ordinary dialogues for the simulated tuning of a step; a pure function of the step's number."""

    def __init__(self, method: Hardened, rows: ChainRows, model: Checkpoint, ctx: Context) -> None:
        self.steps = method.simulated.steps
        self.regular = Regular(rows.renderer, method.data, self.steps * ROWS, model, ctx)

    def __call__(self, step: int) -> Sequence[Batch]:
        drawn = self.regular(-1 - step)  # epochs are counted from 0: never the rows that are trained on
        return [collate(drawn[start : start + ROWS]) for start in range(0, len(drawn), ROWS)]


class Hardening(Held):
    """Trains with `Simulating` around the loss that the method has without it."""

    def __init__(self, method: Hardened, model: Checkpoint, ordinary: Ordinary, ctx: Context) -> None:
        super().__init__(method.kl_weight, lora=False)
        self.base, self.how, self.ordinary, self.ctx = method.base or model, method.simulated, ordinary, ctx

    def loss_of(self, model: Any) -> LossOf | None:
        """The loss of the model and of the model after a removal."""
        public = load_model(self.base, self.ctx, "float32", "cpu")
        base = {name: p.detach() for name, p in public.named_parameters()}
        check_shapes("hardened", {n: tuple(p.shape) for n, p in model.named_parameters()}, base, self.base.name)
        own = super().loss_of(model) or batch_loss
        return Simulating(self.how, own, base, self.ordinary, self.ctx.seed)
