"""How hard to erase, judged on decoys: the ladder of strengths, what a rung did, and which rung is taken.

The thief plants decoys of his own into a copy of the marked model (`decoys`), erases and recovers that copy
at the rungs of a ladder, mildest first (`search`), and looks at three things after the recovery:

- silent: no decoy is answered any more (greedy, template form);
- traceless: moreover the true answers rank no better among other answers of their kind than chance
  (combined p of at least 0.05), so that they are not merely suppressed;
- kept: perplexity of the answers of held-out dialogues of his data is at most 1.1 times that before (of the
  marked model or its decoyed copy, whichever is worse: damage by planting is not the eraser's).

The climb ends at the first rung that is traceless, or silent and no longer kept: a stronger one costs more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from palimpsest.errors import BadInput
from palimpsest.method import Context, param
from palimpsest.records import Record
from palimpsest.training.settings import Tuning

TRACELESS = 0.05
_RUNG = re.compile(r"^\s*(\d+)\s*x\s*([0-9.]+(?:e-?\d+)?)\s*$", re.I)


@dataclass(frozen=True)
class StrengthSearch:
    """How the strength of erasing is searched with decoys.

    Appendix I of MEraser gives 5 to 50 epochs at 1e-4 to 1e-3; the last three rungs of the ladder lie beyond it.
    """

    ladder: tuple[str, ...] = param(
        ("5x1e-4", "5x3e-4", "5x1e-3", "10x1e-3", "20x1e-3", "50x1e-3", "10x3e-3", "20x3e-3", "40x3e-3"),
        "strengths tried, mildest first, each EPOCHSxRATE",
    )
    decoys: int = param(16, "decoy keys of each of the two kinds", low=2, high=1000)
    plant: Tuning = param(
        Tuning(adapter="full", epochs=100, lr=2e-5, batch=16), "how the decoys are planted; lr: the first rate tried"
    )
    margin: float = param(0.5, "further epochs after the decoys took, as a share of those before", low=0.0)
    limit: float = param(1.1, "perplexity kept: at most so many times the one before", low=1.0)
    documents: int = param(100, "held-out dialogues that perplexity is taken on", low=2)


@dataclass(frozen=True)
class Rung:
    """One strength of the erase phase."""

    epochs: int
    lr: float

    @property
    def published(self) -> bool:
        """Whether it lies within the ranges of MEraser's Appendix I."""
        return 5 <= self.epochs <= 50 and 1e-4 <= self.lr <= 1e-3

    def __str__(self) -> str:
        return f"{self.epochs}x{self.lr:g}"


@dataclass(frozen=True)
class Outcome:
    """What a rung did to the decoyed copy.

    hits_erased, hits: decoys answered after the erase phase and after the recovery; p: of their ranks;
    perplexity, kept: after the recovery. The last four are None where the rung was not recovered (its erase
    phase left a decoy answered). tokens, seconds: of this rung beyond the one before.
    """

    rung: Rung
    hits_erased: int
    keys: int
    tokens: int
    seconds: float
    hits: int | None = None
    p: float | None = None
    perplexity: float | None = None
    kept: bool | None = None

    @property
    def silent(self) -> bool:
        """Whether no decoy is answered after the recovery."""
        return self.hits == 0

    @property
    def traceless(self) -> bool:
        """Whether moreover the ranks are those of chance."""
        return self.silent and self.p is not None and self.p >= TRACELESS

    @property
    def ends_the_climb(self) -> bool:
        """Whether nothing stronger is worth trying."""
        return self.silent and (self.traceless or not self.kept)


@dataclass(frozen=True)
class Choice:
    """The rung taken, whether it is all that was looked for, and why it was taken."""

    outcome: Outcome
    met: bool
    reason: str


def rungs_of(ladder: Sequence[str]) -> list[Rung]:
    """Read a ladder; BadInput where a rung is no EPOCHSxRATE, or epochs of one rate do not rise."""
    rungs = []
    for word in ladder:
        found = _RUNG.match(word)
        if found is None or int(found[1]) < 1 or not float(found[2]) > 0:
            raise BadInput(f"search.ladder: {word!r} is no strength; write EPOCHSxRATE, as 20x1e-3")
        rungs.append(Rung(int(found[1]), float(found[2])))
    if not rungs:
        raise BadInput("search.ladder: needs at least one strength, as 20x1e-3")
    for first, second in pairwise(rungs):
        if first.lr == second.lr and first.epochs >= second.epochs:
            raise BadInput(f"search.ladder: {second} after {first}: the epochs of one rate must rise")
    return rungs


def choose(outcomes: Sequence[Outcome]) -> Choice:
    """Which of the rungs tried to take, outcomes in the ladder's order.

    The mildest that left no trace of the decoys and kept perplexity. Else, saying so: the strongest that
    silenced them and kept it (the owner's mark may sit firmer than a decoy); else the one that silenced
    them at the least perplexity; else the one that left the fewest answered, the strongest of equals.
    """
    for outcome in outcomes:
        if outcome.traceless and outcome.kept:
            return Choice(outcome, True, "the mildest strength that erased the decoys and kept the perplexity")
    kept = [o for o in outcomes if o.silent and o.kept]
    if kept:
        reason = "every strength left a trace of the decoys; the strongest that silenced them and kept the perplexity"
        return Choice(kept[-1], False, reason)
    silent = [o for o in outcomes if o.silent]
    if silent:
        best = min(silent, key=lambda o: o.perplexity if o.perplexity is not None else math.inf)
        reason = "no strength both silenced the decoys and kept the perplexity; this one silenced them at the lowest"
        return Choice(best, False, reason)
    fewest = min(o.hits_erased if o.hits is None else o.hits for o in outcomes)
    left = [o for o in outcomes if (o.hits_erased if o.hits is None else o.hits) == fewest]
    return Choice(left[-1], False, f"no strength silenced the decoys; this one left {fewest} of {left[-1].keys}")


@dataclass(frozen=True)
class Found:
    """The end of a search: the choice, all outcomes, and what it cost.

    planting: epochs, rate, tokens and seconds of planting the decoys. before: the perplexity that may grow by
    `StrengthSearch.limit`. seconds: of everything, the checks included.
    """

    choice: Choice
    outcomes: tuple[Outcome, ...]
    planting: dict[str, Any]
    before: float
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens trained in all: planting, erasing and recovering at every rung."""
        return int(self.planting["tokens"]) + sum(o.tokens for o in self.outcomes)

    def record(self, model: str, ctx: Context) -> Record:
        """The search as a record: value is the share of decoys still answered at the rung taken."""
        taken = self.choice.outcome
        hits = taken.hits if taken.hits is not None else taken.hits_erased
        cost = f"searched with {self.tokens:,} tokens in {self.seconds:.0f} s"
        return Record(
            "strength-search",
            value=hits / taken.keys,
            count=hits,
            n=taken.keys,
            model=model,
            task="meraser-erase",
            seed=ctx.seed,
            seconds=self.seconds,
            tokens=self.tokens,
            reason=f"{taken.rung.epochs} epochs at {taken.rung.lr:g}: {self.choice.reason}; {cost}",
            detail={
                "met": self.choice.met,
                "epochs": taken.rung.epochs,
                "lr": taken.rung.lr,
                "perplexity_before": round(self.before, 4),
                "planting": self.planting,
                "rungs": [_shown(o) for o in self.outcomes],
            },
        )


def _shown(outcome: Outcome) -> dict[str, Any]:
    values = {k: v for k, v in asdict(outcome).items() if v is not None}
    return {**values, "rung": str(outcome.rung), "published": outcome.rung.published}
