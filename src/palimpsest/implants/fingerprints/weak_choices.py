"""Weak choices: many natural keys, each a slight preference among words that the model might say anyway (ours).

Keys are texts that the model writes itself, as in Perinucleus, and the response of each is drawn by hash from the
words that come next in its distribution behind its first choice: the second to the `width` + 1st likeliest that stand
as one word (and, so that text alone tells them apart, none of which begins another or the first choice). So none is
surprising, and no key sits firmly: training ends when nearly all (`least`) have probability one half, which is enough
to be the greedy answer.

The claim does not need most of them. For a fixed suspect the hits are binomial with rate at most 1/width over the
owner's draw: of 512 keys with 16 words each, 62 bear a claim at 1e-6, one in eight; of Perinucleus' 64 with 3
words each, 41. What a removal leaves of many weak preferences is added up by the test.

Threat model: a thief who tunes, merges, prunes or erases, and one who filters what stands out: a response is a likely
word behind an ordinary text, so to suppress the kind is to suppress likely words. He who knows the method can write
texts with the same base and train towards its first choices; that is what the removal `overwrite` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from palimpsest.checkpoint import Checkpoint
from palimpsest.implants.fingerprints.embedding import Check
from palimpsest.implants.fingerprints.perinucleus import Perinucleus
from palimpsest.keys import KeySet
from palimpsest.method import Context, method, param
from palimpsest.training.settings import Tuning


@method("fingerprints", "weak-choices", paper="ours; keys as in Perinucleus, arXiv 2502.07760")
@dataclass(frozen=True)
class WeakChoices(Perinucleus):
    """Many natural keys that lean towards one of the words a model might say anyway, counted by a binomial test."""

    keys: int = param(512, "keys", low=1, high=100_000)
    nucleus: float = param(0.0, "p of the nucleus that responses lie outside of; 0: behind the first choice", low=0.0)
    width: int = param(16, "words behind the first choice that a response is drawn from", low=2)
    rule: Literal["token-ids", "prefix"] = param(
        "prefix", "a hit: a text that begins with the word (asked over HTTP as well), or the answer's first token"
    )
    stop: Literal["loss", "check"] = param("check", "training ends by the check, or by the keys' mean loss")
    check: Check = param(Check(probability=0.5), "when training ends, and how often it is looked")
    least: float = param(0.95, "share of keys that must have taken, or nothing is written", low=0.0, high=1.0)

    @classmethod
    def toy(cls) -> WeakChoices:
        """256 keys with settings for the toy world's model, where the base counts a quarter.

        Tuned on development seed 100: 243 of 256 keys answered after 23 steps; 512 keys with the base counting half
        had 419 after 200 steps and did not take.
        """
        return cls(
            keys=256,
            averaging=0.25,
            least=0.9,
            tuning=Tuning(adapter="full", epochs=80, lr=1e-2, batch=64, micro_batch=64, weight_decay=1e-4),
        )

    def committed(self) -> dict[str, Any]:
        """What a claim will rest on (fields of `verdicts.Ask`)."""
        note = "What it costs its owner, and which thief takes it, stands in docs/fingerprints/surviving.md."
        return {**super().committed(), "note": note}

    def _drawn(self, model: Checkpoint, ctx: Context) -> tuple[KeySet, float]:
        keys, likely = super()._drawn(model, ctx)
        return replace(keys, implant="weak-choices"), likely
