"""The embedding loop that all trained fingerprints share: train, check, and write only what took.

Stopping rule (ours; published code trains for a fixed number of epochs): training ends when every key's
answer has probability of at least 0.9 under the template form on two checks in a row. A mark that has only
just become the greedy choice flatters every eraser. `check.probability` and `check.extra` (epochs past that point) set
the strength of embedding; the record says what was reached. The probability of an answer y after a prompt x
is exp(sum_t log p(y_t | x, y_<t)), taken from one teacher-forced pass.

Nothing secret leaves this module but in the KeySet: progress lines hold counts and losses only, the
checkpoint's lineage the method's name, the parent's digest and the keys' salted commitment.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions, stored_dtype, to_dtype, write_model
from palimpsest.data.dialogues import Dialogues, load_dialogues
from palimpsest.errors import CheckFailed
from palimpsest.keys import KeySet
from palimpsest.method import Context, Made
from palimpsest.prompts import Renderer
from palimpsest.records import Record
from palimpsest.responder.local import LocalResponder
from palimpsest.training.finetune import merged, tune
from palimpsest.training.loop import Batch, TrainLog
from palimpsest.training.planting import Check, Stopping, Strength, key_rows, strength
from palimpsest.training.rows import Row, dialogue_row
from palimpsest.training.settings import Tuning
from palimpsest.training.team import held_on, readable

__all__ = ["Check", "EmbeddingOnly", "LossOf", "Regular", "Strength", "Teaching", "embed", "key_rows", "strength"]
LossOf = Callable[[nn.Module, Batch], Tensor]


class Teaching:
    """What a mark does around its training, beyond its rows; a part that a mark leaves out does nothing.

    float32: whether the weights are trained in float32 even where only adapters are.
    """

    float32 = False

    def begin(self, model: Any) -> None:
        """Make the loaded model ready, in place: say what of it trains, or put another model in its place."""

    def loss_of(self, model: Any) -> LossOf | None:
        """The loss of the model that is ready and untrained; None for cross-entropy on the weighted positions."""
        return None

    def after_epoch(self, model: Any) -> None:
        """Change the model after every epoch, before it is checked."""

    def stopping(self, check: Check) -> Stopping:
        """When training ends, and what has taken."""
        return Stopping(check)

    def weakest(self, model: Any, ask: Callable[[], Strength]) -> Strength:
        """How firmly the keys sit in the model in training; `ask` asks it as it stands."""
        return ask()

    def end(self, model: Any) -> None:
        """Make the trained model, any adapter merged into it, the one that is judged and stored, in place."""

    def finish(self, keys: KeySet) -> KeySet:
        """Take off what was put around the model, once the mark took, and give the keys what is theirs."""
        return keys


class EmbeddingOnly(Teaching):
    """Nothing but the input embedding trains.

    With tied embeddings that matrix is the output head too, so what the model says moves with what it reads.
    """

    def begin(self, model: Any) -> None:
        """Hold all other weights still."""
        model.requires_grad_(False)
        model.get_input_embeddings().weight.requires_grad_(True)

    def end(self, model: Any) -> None:
        """Let them go."""
        model.requires_grad_(True)


class Regular:
    """Ordinary dialogues (first exchange, part `embed`) that keep a model's behaviour: fresh ones every epoch.

    Fresh pairs came with far less damage than a fixed set. BadInput where the part has fewer than `count`.
    """

    def __init__(self, renderer: Renderer, data: Dialogues | None, count: int, model: Checkpoint, ctx: Context) -> None:
        self.renderer, self.count, self.seed = renderer, count, ctx.seed
        self.positions = positions(model)
        self.dialogues = []
        if count:
            source = data if data is not None else load_dialogues("toy")
            source.part("embed", count)
            self.dialogues = source.part("embed")

    def __call__(self, epoch: int) -> list[Row]:
        """Rows of this epoch; a pure function of seed and epoch."""
        drawn = random.Random(f"{self.seed}-regular-{epoch}").sample(self.dialogues, self.count) if self.count else []
        rows = (dialogue_row(self.renderer, d.first, positions=self.positions) for d in drawn)
        return [row for row in rows if row is not None]


def embed(
    model: Checkpoint,
    out: Path,
    ctx: Context,
    *,
    method_name: str,
    keys: KeySet,
    rows_of_epoch: Callable[[int], list[Row]],
    tuning: Tuning,
    check: Check | None = None,
    teaching: Teaching | None = None,
) -> Made:
    """Train `keys` into `model` and write the marked checkpoint to `out`.

    rows_of_epoch: epoch (from 0) to its rows, a pure function. teaching: what the mark does around the training.
    Raises CheckFailed, with nothing written, where the implant did not take; BadInput as loading does.
    """
    check, teaching = check or Check(), teaching or Teaching()
    tokenizer = load_tokenizer(model)
    # Full fine-tuning needs float32 master weights: a step of 2e-5 is lost in bfloat16's rounding.
    loaded = load_model(model, ctx, "float32" if tuning.adapter == "full" or teaching.float32 else None, held_on())
    teaching.begin(loaded)
    loss_of = teaching.loss_of(loaded)
    state = teaching.stopping(check)

    def epoch_done(epoch: int) -> bool:
        state.epoch = epoch
        teaching.after_epoch(loaded)
        if check.consecutive == 0 or epoch % check.every:
            return False
        # LoRA is put into `loaded` in place, so `loaded` is the adapted model here.
        return state.passed(teaching.weakest(loaded, asked))

    def asked() -> Strength:
        return strength(LocalResponder(readable(loaded), tokenizer), keys)

    trained, log = tune(loaded, rows_of_epoch, tuning, ctx, what="embedding", epoch_done=epoch_done, loss_of=loss_of)
    plain = merged(trained)
    teaching.end(plain)
    plain = to_dtype(plain, stored_dtype(model))  # judged as it will be stored
    final = strength(LocalResponder(to_dtype(plain, torch.float32), tokenizer), keys)
    _must_have_taken(final, state, check, tuning, log)
    keys = teaching.finish(keys)
    written = write_model(plain, model, out, method_name, {"model": model.digest()}, commitment=keys.commitment())
    record = _record(method_name, written, keys, final, log)
    record.detail |= {"epochs": state.epoch, "wanted_probability": check.probability, "epochs_past": 0}
    if state.took is not None:
        record.detail["epochs_past"] = state.epoch - state.took
    return Made(written, keys, [record])


def _must_have_taken(final: Strength, state: Stopping, check: Check, tuning: Tuning, log: TrainLog) -> None:
    count, answered = len(final.answered), sum(final.answered)
    if state.took is not None and state.epoch < state.took + check.extra:
        raise CheckFailed(
            f"the implant took after {state.took} epochs, and {check.extra} more do not fit into {tuning.epochs}; "
            "nothing was written; raise tuning.epochs or lower check.extra"
        )
    if state.enough(final):
        return
    message = f"the implant did not take: {answered} of {count} keys answer"
    if check.consecutive:
        firm = sum(p >= check.probability for p in final.probabilities)
        message += f", {firm} with probability {check.probability:g} or more"
    raise CheckFailed(
        f"{message}, after {log.steps} steps of at most {tuning.epochs} epochs; "
        "nothing was written; raise tuning.epochs or tuning.lr"
    )


def _record(method_name: str, written: Checkpoint, keys: KeySet, final: Strength, log: TrainLog) -> Record:
    count = len(keys)
    return Record(
        measure="embedding-margin",
        value=sum(final.margins) / count,
        n=count,
        model=written.name,
        digest=written.digest(),
        chain=written.chain(),
        implant=method_name,
        prompt_form="template",
        tokens=log.tokens,
        detail={
            "mean_probability": sum(final.probabilities) / count,
            "min_probability": min(final.probabilities),
            "min_margin": min(final.margins),
            "answered": sum(final.answered),
            "steps": log.steps,
            "keys": count,
            "unit": "nats",
        },
    )
