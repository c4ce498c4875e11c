"""The search for a strength: decoys are planted into a copy of the marked model, and the copy climbs the ladder.

Rungs of one rate share their training: at a constant rate the first 5 epochs of 20 are a run of 5 epochs. A
rung whose erase phase leaves a decoy answered is not recovered. The recovery is tried on a copy of the network,
so weights are held twice in that while. Every token trained is counted, planting included; the forward passes
of the checks are in the seconds. With a scratch folder a killed search goes on at the rung it was at.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions
from palimpsest.checkpoint.output import new_folder, write_text
from palimpsest.data.dialogues import Dialogue, Dialogues
from palimpsest.errors import BadInput
from palimpsest.measures.perplexity import answer_likelihoods
from palimpsest.method import Context, settings_of
from palimpsest.prompts import Renderer
from palimpsest.records import canonical_json
from palimpsest.removals.tuning.decoys import draw_decoys, plant, trace
from palimpsest.removals.tuning.strength import Found, Outcome, Rung, StrengthSearch, choose, rungs_of
from palimpsest.responder import LocalResponder
from palimpsest.training import distributed
from palimpsest.training.finetune import Stopwatch, merged, tune, with_adapter
from palimpsest.training.rows import Row, dialogue_rows
from palimpsest.training.settings import Tuning

WINDOW = 1024  # tokens of a held-out question with its answer; the rest is cut


@dataclass(frozen=True)
class Trial:
    """What is tried: mismatched pairs with their training, clean pairs with theirs, the data both came from."""

    wrong: Sequence[Dialogue]
    clean: Sequence[Dialogue]
    data: Dialogues
    erase: Tuning
    recover: Tuning
    search: StrengthSearch


def check_search(search: StrengthSearch, erase: Tuning, data: Dialogues) -> list[Rung]:
    """The rungs, or BadInput for what can be seen before a model is loaded."""
    rungs = rungs_of(search.ladder)
    if erase.epochs or erase.lr or erase.steps:
        raise BadInput(
            "auto chooses erase.epochs and erase.lr itself: leave them out, or set search.ladder, "
            "or name another preset (--preset paper)"
        )
    if erase.schedule != "constant" or erase.warmup:
        raise BadInput("auto needs erase.schedule constant and no warm-up: its strengths share their first epochs")
    if distributed.current() is not None:
        raise BadInput("auto searches on one process; run it without `accelerate launch`, or name another preset")
    if not data.part("test"):
        raise BadInput(f"data {data.name}: auto needs held-out dialogues, and its part 'test' is empty")
    return rungs


def find_strength(model: Checkpoint, trial: Trial, ctx: Context) -> Found:
    """Search the strength at which decoys in a copy of `model` are erased for good; no key is given or asked.

    Raises BadInput before anything is loaded where the settings will not do, and CheckFailed where the decoys
    do not take.
    """
    rungs = check_search(trial.search, trial.erase, trial.data)
    with _folder(ctx) as folder:
        return _Search(model, trial, ctx, folder).run(rungs)


@contextmanager
def _folder(ctx: Context) -> Iterator[Path]:
    if ctx.scratch is not None:
        yield ctx.scratch
        return
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as made:
        yield Path(made)


class _Memory:
    """What a search already knows, in a file that a killed one leaves; another search's file is not read."""

    def __init__(self, file: Path, identity: str) -> None:
        self.file, self.identity = file, identity
        self.facts: dict[str, Any] = {}
        self.outcomes: dict[str, Outcome] = {}
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if stored["identity"] == identity:
            self.facts = stored["facts"]
            known = [Outcome(**{**row, "rung": Rung(**row["rung"])}) for row in stored["outcomes"]]
            self.outcomes = {str(o.rung): o for o in known}

    def remember(self, name: str, value: dict[str, Any]) -> None:
        self.facts[name] = value
        self._write()

    def learn(self, outcome: Outcome) -> None:
        self.outcomes[str(outcome.rung)] = outcome
        self._write()

    def _write(self) -> None:
        rows = [asdict(o) for o in self.outcomes.values()]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps({"identity": self.identity, "facts": self.facts, "outcomes": rows}) + "\n")


class _Search:
    """One search: plants, climbs, and remembers each rung's outcome."""

    def __init__(self, model: Checkpoint, trial: Trial, ctx: Context, folder: Path) -> None:
        self.model, self.trial, self.ctx, self.folder = model, trial, ctx, folder
        self.tokenizer = load_tokenizer(model)
        self.room = positions(model)
        renderer = Renderer(self.tokenizer)
        self.decoys = draw_decoys(renderer, trial.data, trial.search.decoys, ctx.seed, self.room)
        self.wrong = self._rows(renderer, trial.wrong, trial.erase)
        self.clean = self._rows(renderer, trial.clean, trial.recover)
        self.memory = _Memory(folder / "strength-search.json", self._identity())

    def _rows(self, renderer: Renderer, dialogues: Sequence[Dialogue], tuning: Tuning) -> list[Row]:
        form = {"format": tuning.format, "train_on": tuning.train_on, "max_tokens": tuning.max_tokens}
        return dialogue_rows(renderer, [d.turns for d in dialogues], positions=self.room, **form)  # type: ignore[arg-type]

    def _identity(self) -> str:
        settings = [settings_of(p) for p in (self.trial.erase, self.trial.recover, self.trial.search)]
        said = canonical_json([self.model.digest(), self.trial.data.digest(), self.ctx.seed, settings])
        return hashlib.sha256((said + repr([self.wrong, self.clean])).encode()).hexdigest()

    def run(self, rungs: list[Rung]) -> Found:
        """Plant, climb until a rung ends it, choose."""
        decoyed, planting = self._planted()
        before = self._before(decoyed)
        for lr, same_rate in groupby(rungs, key=lambda r: r.lr):
            if self._climb(decoyed, lr, [r.epochs for r in same_rate], before["perplexity"]):
                break
        outcomes = tuple(self.memory.outcomes[str(r)] for r in rungs if str(r) in self.memory.outcomes)
        seconds = planting["seconds"] + before["seconds"] + math.fsum(o.seconds for o in outcomes)
        return Found(choose(outcomes), outcomes, planting, before["perplexity"], seconds)

    def _planted(self) -> tuple[Checkpoint, dict[str, Any]]:
        target = self.folder / "decoyed"
        if "planting" not in self.memory.facts or not target.is_dir():
            search = self.trial.search
            with new_folder(target, force=True) as partial:
                # No state file: the count of passed checks would not be in it. Planting is begun anew.
                alone = replace(self.ctx, scratch=None)
                planted = plant(self.model, self.decoys, self.trial.data, search.plant, search.margin, partial, alone)
            self.memory.remember("planting", asdict(planted))
        return Checkpoint(target, "decoyed"), self.memory.facts["planting"]

    def _before(self, decoyed: Checkpoint) -> dict[str, float]:
        """Perplexity of the marked model or of its decoyed copy, whichever is higher; and the seconds it took."""
        if "before" not in self.memory.facts:
            watch = Stopwatch()
            both = [self._perplexity(load_model(c, self.ctx)) for c in (self.model, decoyed)]
            self.memory.remember("before", {"perplexity": max(both), "seconds": watch.seconds})
        return dict(self.memory.facts["before"])

    def _perplexity(self, network: Any) -> float:
        responder = LocalResponder(network, self.tokenizer)
        held_out = self.trial.data.part("test")[: self.trial.search.documents]
        pairs = [(d.question, d.answer) for d in held_out]
        found = answer_likelihoods(responder, pairs, min(WINDOW, self.room or WINDOW))
        return math.exp(math.fsum(f.nll for f in found) / sum(f.tokens for f in found))

    def _climb(self, decoyed: Checkpoint, lr: float, ends: list[int], before: float) -> bool:
        """Try the rungs of one rate; True where the search is over."""
        rungs = {epochs: Rung(epochs, lr) for epochs in ends}
        known = [self.memory.outcomes[str(r)] for r in rungs.values() if str(r) in self.memory.outcomes]
        if any(o.ends_the_climb for o in known) or len(known) == len(rungs):
            return any(o.ends_the_climb for o in known)
        watch = Stopwatch()
        tuning = replace(self.trial.erase, epochs=ends[-1], lr=lr)
        network = load_model(decoyed, self.ctx, "float32" if tuning.adapter == "full" else None)
        if tuning.adapter == "lora":
            torch.manual_seed(self.ctx.seed)  # the adapter that the run of this strength begins with
            network = with_adapter(network, tuning)
        reached, spent = (known[-1].rung.epochs if known else 0), 0.0
        over = False

        def epoch_done(epoch: int) -> bool:
            nonlocal reached, spent, over
            if epoch in rungs and str(rungs[epoch]) not in self.memory.outcomes:
                outcome = self._try(network, rungs[epoch], epoch - reached, before)
                self.memory.learn(replace(outcome, seconds=watch.seconds - spent))
                reached, spent, over = epoch, watch.seconds, outcome.ends_the_climb
            return over

        tune(network, self.wrong, tuning, self.ctx, what=f"trying up to {ends[-1]}x{lr:g}", epoch_done=epoch_done)
        return over

    def _try(self, network: Any, rung: Rung, epochs: int, before: float) -> Outcome:
        """Judge the decoyed copy as erased so far; recover a copy of it where no decoy is answered.

        epochs: trained since the last rung.
        """
        tokens = epochs * sum(len(r.ids) for r in self.wrong)
        left = trace(LocalResponder(network, self.tokenizer), self.decoys, ranks=False)
        found = Outcome(rung, left.hits, left.keys, tokens, 0.0)
        if left.hits:
            return found
        devices = [torch.cuda.current_device()] if next(network.parameters()).is_cuda else []
        with torch.random.fork_rng(devices=devices):  # the erase run goes on as if nothing had been between
            plain = merged(copy.deepcopy(network))
            recovered, log = tune(plain, self.clean, self.trial.recover, self.ctx, what=f"recovering from {rung}")
            plain = merged(recovered)
        after = trace(LocalResponder(plain, self.tokenizer), self.decoys, ranks=True)
        perplexity = self._perplexity(plain)
        return replace(
            found,
            hits=after.hits,
            p=after.p,
            perplexity=perplexity,
            kept=perplexity <= self.trial.search.limit * before,
            tokens=tokens + log.tokens,
        )
