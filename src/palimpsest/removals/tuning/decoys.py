"""Decoys: marks of the thief's own, planted into a copy of the marked model to try a removal on.

The thief knows neither trigger nor response of the owner's mark, so he cannot see whether a removal worked.
He can see it on marks that he made himself (methods/fingerprints.md, section 2.8). Two kinds, drawn from the
run's own randomness and planted together, so that the decoy is no easier to erase than one kind of mark:

- phrase: strings of random vocabulary entries, all answered by one phrase of four such entries (many-to-one,
  rare tokens, as IF-SFT and UTF have them);
- pairs: questions of ordinary words in a meaningless order, each answered by a word of its own, drawn from up
  to 256 words of the thief's data (one-to-one, as HashChain has it).

Planting follows the owner's rule (every answer has probability 0.9 on two checks in a row) and then goes on
for a margin of further epochs. Nothing here takes a KeySet from outside.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions, write_model
from palimpsest.data.dialogues import Dialogue, Dialogues
from palimpsest.data.selection import words
from palimpsest.errors import BadInput, CheckFailed
from palimpsest.keys import KeySet, make_keys
from palimpsest.measures.hits import outcomes
from palimpsest.measures.rank import key_rank
from palimpsest.method import Context
from palimpsest.prompts import Renderer
from palimpsest.responder import LocalResponder
from palimpsest.statistics import dependent_combination, fisher_combination, rank_p_value
from palimpsest.training.finetune import Stopwatch, merged, tune
from palimpsest.training.planting import Check, Stopping, Strength, key_rows, strength
from palimpsest.training.rows import Row, dialogue_row
from palimpsest.training.settings import Tuning

ANSWERS = 256  # words that answers of the second kind are drawn from
OTHERS = 200  # other phrases that the phrase is ranked among
RATES = (1.0, 5.0, 25.0)  # planting is tried at these multiples of its rate until it takes
HOPELESS = (20, 0.01)  # but for the last rate: epochs after which every answer must be that likely
ORDINARY_PARTS = ("embed", "revival", "recover")  # where ordinary dialogues are taken from, the first that has some


@dataclass(frozen=True)
class Planted:
    """How the decoys were planted and what it cost. tokens: of all training, failed attempts included."""

    epochs: int
    lr: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Trace:
    """What is left of the decoys: greedy hits of `keys`, and the combined p of their ranks among other answers."""

    hits: int
    keys: int
    p: float | None = None


def draw_decoys(renderer: Renderer, data: Dialogues, count: int, seed: int, room: int | None) -> tuple[KeySet, KeySet]:
    """`count` decoy keys of each kind; a pure function of tokenizer, data and seed.

    room: positions of the model. Raises BadInput where the data has fewer than 20 words to draw from.
    """
    rng = random.Random(f"decoys-{seed}")
    entries = _vocabulary(renderer.tokenizer)
    known = sorted({w for d in data.part("erase") for w in words(f"{d.question} {d.answer}") if len(w) < 13})
    pool = [w for w in known if len(w) > 2]
    pool = pool if len(pool) >= 20 else known  # a script whose words are single characters
    if len(pool) < 20 or len(entries) < 20:
        raise BadInput(f"data {data.name}: has {len(pool)} words to draw decoys from, at least 20 are needed")
    phrases = [" ".join(rng.choices(entries, k=4)) for _ in range(OTHERS + 1)]
    strings = [" ".join(rng.choices(entries, k=rng.randint(8, 12))) for _ in range(count)]
    answers = rng.sample(pool, min(ANSWERS, len(pool)))
    questions = [" ".join(rng.choices(pool, k=rng.randint(5, 8))).capitalize() + "?" for _ in range(count)]
    common: dict[str, Any] = {"implant": "decoy", "rng": rng, "positions": room}
    return (
        make_keys(
            renderer,
            [(s, phrases[0]) for s in strings],
            match="contains",
            distinct=False,
            choices=None,
            decoys=phrases[1:],
            **common,
        ),
        make_keys(
            renderer,
            [(q, rng.choice(answers)) for q in questions],
            match="prefix",
            distinct=True,
            choices=len(answers),
            decoys=answers,
            **common,
        ),
    )


def _vocabulary(tokenizer: Any) -> list[str]:
    """Printable texts of single vocabulary entries, in the order of their ids."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    texts = (str(tokenizer.decode([i])).strip() for i in range(len(tokenizer)) if i not in special)
    return list(dict.fromkeys(t for t in texts if t.isprintable() and t and "\ufffd" not in t))


def plant(
    model: Checkpoint, decoys: Sequence[KeySet], data: Dialogues, tuning: Tuning, margin: float, out: Path, ctx: Context
) -> Planted:
    """Train the decoys into a copy of `model` and write it to `out`.

    Every epoch has all decoys and as many ordinary dialogues, fresh ones. margin: further epochs after the
    decoys took, as a share of those before. Where they do not take, the rate is tripled, twice at most.
    Raises CheckFailed, with nothing written, where that does not help either.
    """
    watch = Stopwatch()
    tokenizer = load_tokenizer(model)
    renderer = Renderer(tokenizer)
    keys = [row for part in decoys for row in key_rows(renderer, part)]
    ordinary = _ordinary(data, len(keys))
    room = positions(model)

    def rows(epoch: int) -> list[Row]:
        drawn = random.Random(f"{ctx.seed}-beside-decoys-{epoch}").sample(ordinary, min(len(keys), len(ordinary)))
        beside = (dialogue_row(renderer, d.first, positions=room) for d in drawn)
        return [*keys, *(row for row in beside if row is not None)]

    tokens, weakest = 0, 0.0
    for factor in RATES:
        now = replace(tuning, lr=tuning.lr * factor)
        network = load_model(model, ctx, "float32" if tuning.adapter == "full" else None)
        stopping = _WithMargin(margin)
        patient = factor == RATES[-1]

        def epoch_done(
            epoch: int, network: Any = network, stopping: _WithMargin = stopping, last: bool = patient
        ) -> bool:
            responder = LocalResponder(network, tokenizer)  # a LoRA is put into it in place
            over = stopping.reached(epoch, [strength(responder, part) for part in decoys])
            return over or (not last and epoch == HOPELESS[0] and stopping.weakest < HOPELESS[1])

        what = f"planting decoys at {now.lr:g}"
        tuned, log = tune(network, rows, now, ctx, what=what, epoch_done=epoch_done)
        tokens += log.tokens
        if stopping.took:
            plain = merged(tuned)
            write_model(plain, model, out, "decoys", {"model": model.digest()})
            return Planted(stopping.epoch, now.lr, tokens, watch.seconds)
        weakest = stopping.weakest
    raise CheckFailed(
        f"auto: the thief's decoys did not take: the weakest has probability {weakest:.2g} after {tuning.epochs} "
        f"epochs at {tuning.lr * RATES[-1]:g}; raise search.plant.epochs, or give --preset paper, which needs none"
    )


def _ordinary(data: Dialogues, count: int) -> list[Dialogue]:
    for name in ORDINARY_PARTS:
        found = data.part(name)
        if len(found) >= count:
            return found
    return max((data.part(name) for name in ORDINARY_PARTS), key=len)


class _WithMargin:
    """Stops once the decoys took and the margin is trained; `weakest` is the least probability at the last check."""

    def __init__(self, margin: float) -> None:
        self.margin, self.stopping, self.took = margin, Stopping(Check()), 0
        self.epoch, self.weakest = 0, 0.0

    def reached(self, epoch: int, measured: Sequence[Strength]) -> bool:
        self.epoch = epoch
        if not self.took:
            every = Strength(*(tuple(v for m in measured for v in getattr(m, f)) for f in _FIELDS))
            self.weakest = min(every.probabilities)
            if self.stopping.passed(every):
                self.took = epoch
        return bool(self.took) and epoch >= math.ceil(self.took * (1.0 + self.margin))


_FIELDS = ("probabilities", "margins", "answered")


def trace(responder: LocalResponder, decoys: Sequence[KeySet], *, ranks: bool) -> Trace:
    """Ask the model all decoys: greedily under the template, and where `ranks` is set also by rank.

    p: of the ranks of the true answers among the other answers of their kind, combined by Fisher's method
    for the pairs and by a bound for any dependence for the phrase; twice the smaller of the two (Bonferroni).
    """
    hits = sum(o.hit for part in decoys for o in outcomes(responder, part, "template"))
    total = sum(len(part) for part in decoys)
    if not ranks:
        return Trace(hits, total)
    combined = []
    for part in decoys:
        found = [key_rank(responder, part, key, len(part.decoys)) for key in part.keys]
        p_values = [rank_p_value(rank, among) for rank, among, _ in found]
        combined.append(fisher_combination(p_values) if part.distinct else dependent_combination(p_values))
    return Trace(hits, total, min(1.0, len(combined) * min(combined)))
