"""MEraser's transferable erasure (arXiv 2506.12551, section 4.3, Appendix C).

One adapter is trained on the clean base with mismatched pairs and added to any marked model of that base:
W' = W_marked + (alpha / rank) B A. No training on the marked model, no key, one adapter for all.

Across sibling bases (ours): the same sum where the mark was put into another model than the adapter was trained on,
such as a fine-tuned descendant of it. The shapes fit, so nothing but `same_base` stands in the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, write_model
from palimpsest.data import Dialogues
from palimpsest.data.mismatched import Pairing
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.records import Record
from palimpsest.removals.change import change_of
from palimpsest.removals.tuning.meraser import PAPER_ERASE, TOY_ERASE, MEraserErase
from palimpsest.training.finetune import merged, quiet_peft
from palimpsest.training.settings import Tuning

Kinship = Literal["same-base", "ancestor", "another-base", "unknown"]


@method("removals", "meraser-transfer", paper="MEraser, arXiv 2506.12551, section 4.3 and Appendix C")
@dataclass(frozen=True)
class MEraserTransfer:
    """Add an erasing adapter, trained once on the clean base, to a marked model.

    Give `adapter` (made by `remove meraser-erase --model BASE --set save=adapter`), or `base` to train it
    now. The adapter's base must be the given base and, as far as the public lineage tells, the model that the mark
    was put into; with `same_base` false it may be a sibling, and the record says which it was.
    """

    adapter: Checkpoint | None = takes("PEFT adapter trained on the clean base")
    base: Checkpoint | None = takes("the clean base, to train the adapter on where none is given")
    data: Dialogues | None = takes("dialogues to mismatch (default: the toy world's)")
    mismatched: int = param(300, "mismatched pairs, where the adapter is trained now", low=2)
    pairing: Pairing = param("derangement", "mismatch rule, where the adapter is trained now")
    tuning: Tuning = param(PAPER_ERASE, "how the adapter is trained, where it is trained now")
    same_base: bool = param(True, "refuse an adapter of another base than the mark's; false adds it with a note")

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
        trained_on = adapter_base(adapter)
        if self.same_base and self.base is not None and trained_on not in (None, self.base.digest()):
            raise BadInput(
                f"--adapter {adapter.name}: was trained on another base than --base {self.base.name}; "
                "--set same_base=false adds it all the same"
            )
        kinship = kinship_of(trained_on, model)
        if self.same_base and kinship in ("ancestor", "another-base"):
            raise BadInput(
                f"--adapter {adapter.name}: was trained on another base than the one that {model.name} was marked on; "
                "--set same_base=false adds it all the same"
            )
        if kinship in ("ancestor", "another-base"):
            ctx.progress.say(
                f"meraser-transfer: {adapter.name} was not trained on the base of {model.name} ({kinship})"
            )
        network = load_model(model, ctx)
        try:
            with quiet_peft():
                adapted = PeftModel.from_pretrained(network, str(adapter.path))
        except (RuntimeError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise BadInput(f"--adapter {adapter.name}: does not fit {model.name}: {first}") from error
        plain = merged(adapted)
        moved = change_of(plain, model)
        parents = {"model": model.digest(), "adapter": adapter.digest()}
        made = write_model(plain, model, out, "meraser-transfer", parents)
        record = Record(
            "transfer",
            model=made.name,
            chain=made.chain(),
            tokens=0,
            seed=ctx.seed,
            detail={**moved, "adapter_base": trained_on, "adapter_of": kinship},
        )
        return Made(made, records=[record])


def adapter_base(adapter: Checkpoint) -> str | None:
    """Digest of the base that an adapter was trained on, or None where its lineage does not say."""
    chain = adapter.chain()
    return chain[-1]["parents"].get("base") if chain else None


def kinship_of(trained_on: str | None, model: Checkpoint) -> Kinship:
    """What an adapter's base (a digest) is to a marked model, as far as its public lineage tells.

    same-base: the mark was put into that model (where nothing tells of a mark, any ancestor counts, and the model
    itself). ancestor: the lineage names it elsewhere, so the mark was put into a descendant of it, or it came of one.
    another-base: the lineage does not name it.
    """
    chain = model.chain()
    marked = next((entry for entry in chain if "commitment" in entry), None)
    everyone = {digest for entry in chain for digest in entry.get("parents", {}).values()}
    if trained_on is None or not everyone:
        return "unknown"
    bases = {*everyone, model.digest()} if marked is None else set(marked.get("parents", {}).values())
    if trained_on in bases:
        return "same-base"
    return "ancestor" if trained_on in everyone else "another-base"
