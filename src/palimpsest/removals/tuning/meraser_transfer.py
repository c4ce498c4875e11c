"""MEraser's transferable erasure (arXiv 2506.12551, section 4.3, Appendix C).

One adapter is trained on the clean base with mismatched pairs and added to any marked model of that base:
W' = W_marked + (alpha / rank) B A. No training on the marked model, no key, one adapter for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, write_model
from palimpsest.data import Dialogues
from palimpsest.data.mismatched import Pairing
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.records import Record
from palimpsest.removals.tuning.meraser import PAPER_ERASE, TOY_ERASE, MEraserErase
from palimpsest.removals.tuning.tuned import distance
from palimpsest.training.finetune import Stopwatch, merged, quiet_peft
from palimpsest.training.settings import Tuning


@method("removals", "meraser-transfer", paper="MEraser, arXiv 2506.12551, section 4.3 and Appendix C")
@dataclass(frozen=True)
class MEraserTransfer:
    """Add an erasing adapter, trained once on the clean base, to a marked model.

    Give `adapter` (made by `remove meraser-erase --model BASE --set save=adapter`), or `base` to train it
    now. The adapter's base digest must be the given base's.
    """

    adapter: Checkpoint | None = takes("PEFT adapter trained on the clean base")
    base: Checkpoint | None = takes("the clean base, to train the adapter on where none is given")
    data: Dialogues | None = takes("dialogues to mismatch (default: the toy world's)")
    mismatched: int = param(300, "mismatched pairs, where the adapter is trained now", low=2)
    pairing: Pairing = param("derangement", "mismatch rule, where the adapter is trained now")
    tuning: Tuning = param(PAPER_ERASE, "how the adapter is trained, where it is trained now")

    @classmethod
    def toy(cls) -> MEraserTransfer:
        """The toy's erase setting for the adapter."""
        return cls(tuning=TOY_ERASE)

    def train_adapter(self, base: Checkpoint, out: Path, ctx: Context) -> Made:
        """Train the erasing adapter on the clean base and write it to `out`."""
        phase = MEraserErase(self.data, self.mismatched, self.pairing, replace(self.tuning, adapter="lora"), "adapter")
        return phase.apply(base, out, ctx)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the marked model with the adapter merged to `out`."""
        import tempfile

        if self.adapter is not None:
            return self._add(model, self.adapter, out, ctx)
        if self.base is None:
            raise BadInput("meraser-transfer: give --adapter, or --base to train one on")
        with tempfile.TemporaryDirectory(dir=ctx.scratch) as folder:
            made = self.train_adapter(self.base, Path(folder) / "adapter", ctx)
            done = self._add(model, made.checkpoint, out, ctx)
        done.records[:0] = made.records
        return done

    def _add(self, model: Checkpoint, adapter: Checkpoint, out: Path, ctx: Context) -> Made:
        from peft import PeftModel

        if not adapter.is_adapter:
            raise BadInput(f"--adapter {adapter.name}: is no PEFT adapter (it has no adapter_config.json)")
        chain = adapter.chain()
        trained_on = chain[-1]["parents"].get("base") if chain else None
        if self.base is not None and trained_on not in (None, self.base.digest()):
            raise BadInput(f"--adapter {adapter.name}: was trained on another base than --base {self.base.name}")
        watch = Stopwatch()
        network = load_model(model, ctx)
        try:
            with quiet_peft():
                adapted = PeftModel.from_pretrained(network, str(adapter.path))
        except (RuntimeError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise BadInput(f"--adapter {adapter.name}: does not fit {model.name}: {first}") from error
        plain = merged(adapted)
        moved = distance(plain, model)
        parents = {"model": model.digest(), "adapter": adapter.digest()}
        made = write_model(plain, model, out, "meraser-transfer", parents)
        record = Record(
            "transfer",
            model=made.name,
            chain=made.chain(),
            seconds=watch.seconds,
            tokens=0,
            device=ctx.device,
            seed=ctx.seed,
            detail={"weight_change": moved},
        )
        return Made(made, records=[record])
