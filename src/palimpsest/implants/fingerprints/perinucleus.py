"""Perinucleus: thousands of natural keys whose responses lie just outside the nucleus (arXiv 2502.07760).

Key: a word, then text that a model writes at temperature 0.5, cut at 16 tokens. Response: one token, drawn uniformly
from the first k = 3 words outside the top-p nucleus (p = 0.8) of what the base would say to the key: plausible, and not
what it says. Training: AdamW, an epoch is one step on all keys with a quarter of ordinary dialogues among the rows, and
after each epoch the weights are averaged with the base's, theta <- 0.25 theta + 0.75 theta_0 (`averaging`).

Threat model: the owner asks a public interface and sees the token ids of an answer; a hit is the first token. With
`rule=prefix` he sees text alone, and a hit is an answer that begins with the word; then no candidate of a key is the
beginning of another. Null: the candidate is drawn by a hash of the owner's committed seed, so a suspect fixed
beforehand, however near to the base, says it with chance at most 1/k: with k = 3 a claim at 1e-6 takes 41 of 64 keys,
and the binomial tail is exact. (The paper's own bound is exp(-2 M (1 - 1/k)^2) for M keys that are all answered.)

Where we differ. Published code reads batches padded on the right at the last column, so that short keys get what
follows padding, and continues without an attention mask; here each row is read at its own last token. It takes the
next k tokens and widens where none of them is a word, so that some keys have fewer candidates: here each has exactly
k. Keys are asked as a user's turn, first words come from the tokenizer's vocabulary instead of a list, and the model
goes on from the word by itself. Each row counts alike in the loss; the bound of 0.005 is on the keys' mean loss as
measured after averaging. Further tokens of longer responses and the paper's simulated fine-tunes are not built.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions
from palimpsest.data.dialogues import Dialogues
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.averaging import Benign, ManyKeys, ManyRows
from palimpsest.implants.fingerprints.embedding import Check, embed
from palimpsest.implants.fingerprints.perinucleus_draw import (
    BATCH,
    Candidacy,
    Candidates,
    chosen_place,
    first_words,
    spelled,
    written,
)
from palimpsest.keys import KeySet, make_keys
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.responder.local import LocalResponder
from palimpsest.training.rows import Row
from palimpsest.training.settings import Tuning

DECOYS = 1000
TRIES = 20  # texts written for each key, before it is given up


@method("fingerprints", "perinucleus", paper="Scalable fingerprinting (Perinucleus), arXiv 2502.07760, Algorithm 1")
@dataclass(frozen=True)
class Perinucleus:
    """Many natural keys, each answered by a word that the base finds plausible and does not say."""

    keys: int = param(1024, "keys (published record: 24,576)", low=1, high=100_000)
    key_tokens: int = param(16, "tokens of a key", low=2)
    temperature: float = param(0.5, "temperature at which keys are written", low=0.01)
    nucleus: float = param(0.8, "p of the nucleus that responses lie outside of", low=0.0, high=0.999)
    width: int = param(3, "words outside the nucleus that a response is drawn from", low=2)
    rule: Literal["token-ids", "prefix"] = param(
        "token-ids", "a hit: the answer's first token, or a text that begins with the word (asked over HTTP as well)"
    )
    benign_share: float = param(0.25, "share of ordinary dialogues in an epoch's rows", low=0.0, high=0.9)
    averaging: float = param(0.75, "weight of the base where weights are averaged, after each epoch", low=0.0, high=1.0)
    stop: Literal["loss", "check"] = param("loss", "training ends by the keys' mean loss, or by the check")
    loss: float = param(0.005, "mean loss of the keys (nats) under which training ends", low=0.0)
    check: Check = param(Check(), "when training ends with stop=check, and how often it is looked")
    least: float = param(1.0, "share of keys that must have taken, or nothing is written", low=0.0, high=1.0)
    tuning: Tuning = param(
        Tuning(adapter="full", epochs=30, lr=5e-5, batch=64, micro_batch=64, weight_decay=1e-4, max_tokens=256),
        "fine-tuning; an epoch is one step, whatever `batch` says",
    )
    data: Dialogues | None = takes("ordinary dialogues among the rows; without them the toy world's")
    reference: Checkpoint | None = takes("model that writes the keys; without it the model itself")

    @classmethod
    def paper(cls) -> Perinucleus:
        """Published settings, 1,024 keys; at most 30 steps, ended by the loss; what took is written."""
        return cls(least=0.0)

    @classmethod
    def bench(cls) -> Perinucleus:
        """64 keys, enough for a verdict `removed`, trained until each has probability 0.9 on two checks in a row."""
        return cls(keys=64, stop="check")

    @classmethod
    def toy(cls) -> Perinucleus:
        """`bench` with settings that take on the toy world's model: a larger rate, and the base counts half.

        Tuned on development seed 100. With the published 0.75 all keys answer after ten steps at 1e-2 or 2e-2, and the
        least likely stays at 0.7 or comes and goes between 0.1 and 0.88, however long: the average bounds the change.
        """
        return replace(
            cls.bench(),
            averaging=0.5,
            tuning=Tuning(adapter="full", epochs=200, lr=1e-2, batch=64, micro_batch=64, weight_decay=1e-4),
        )

    def committed(self) -> dict[str, Any]:
        """What a claim will rest on (fields of `verdicts.Ask`): `width` candidates a key, one of them by hash."""
        return {"keys": self.keys, "choices": self.width}

    def draw_keys(self, model: Checkpoint, ctx: Context) -> KeySet:
        """Write keys and draw their responses, without training. BadInput where too few different ones come."""
        return self._drawn(model, ctx)[0]

    def _drawn(self, model: Checkpoint, ctx: Context) -> tuple[KeySet, float]:
        """The keys, and the mean probability of their responses in the base."""
        seed, rng = ctx.key_draw()
        responder = LocalResponder(load_model(model, ctx), load_tokenizer(model))
        writer = responder
        if self.reference is not None and self.reference.digest() != model.digest():
            writer = LocalResponder(load_model(self.reference, ctx), load_tokenizer(self.reference))
        found = self._candidates(responder, writer, rng, ctx)
        places = [chosen_place(seed, c.text, self.width) for c in found]
        tokenizer = responder.tokenizer
        chosen = [spelled(tokenizer, [c.ids[place]]) for c, place in zip(found, places, strict=True)]
        others = dict.fromkeys(spelled(tokenizer, [t]) for c in found for t in c.ids)
        made = make_keys(
            responder.renderer,
            [(c.text, response) for c, response in zip(found, chosen, strict=True)],
            implant="perinucleus",
            match=self.rule,
            distinct=True,
            choices=self.width,
            decoys=[o for o in others if o not in set(chosen)][:DECOYS],
            rng=rng,
            max_new_tokens=1 if self.rule == "token-ids" else None,
            positions=positions(model),
            draw={"method": "perinucleus", "seed": seed, "nucleus": self.nucleus, "candidates": [c.ids for c in found]},
        )
        return made, sum(c.probabilities[p] for c, p in zip(found, places, strict=True)) / len(found)

    def _candidates(
        self, responder: LocalResponder, writer: LocalResponder, rng: random.Random, ctx: Context
    ) -> list[Candidates]:
        """As many different texts as there are keys, each with its candidates, `BATCH` at a time."""
        words = first_words(writer.tokenizer)
        if not words:
            raise BadInput("perinucleus: the vocabulary has no token that begins a word, so no key can be begun")
        candidacy = Candidacy(responder, self.nucleus, self.width, self.rule == "prefix")
        found: dict[str, Candidates] = {}
        tried = 0
        with ctx.progress.task("drawing keys", self.keys) as task:
            while len(found) < self.keys:
                if tried >= TRIES * self.keys + 256:
                    raise BadInput(
                        f"perinucleus: only {len(found)} of {self.keys} different keys with {self.width} candidates in "
                        f"{tried} texts; raise temperature or key_tokens, or lower keys, nucleus or width"
                    )
                begun = rng.choices(words, k=min(BATCH, 2 * (self.keys - len(found)) + 16))
                tried += len(begun)
                texts = written(writer, begun, self.key_tokens, self.temperature, rng.randrange(1 << 31))
                fresh = list(dict.fromkeys(t for t in texts if t is not None and t not in found))
                before = len(found)
                for candidates in candidacy.of(fresh):
                    if candidates is not None and len(found) < self.keys:
                        found[candidates.text] = candidates
                task.advance(len(found) - before)
        return list(found.values())

    def rows_of_epoch(self, model: Checkpoint, keys: KeySet, ctx: Context) -> Any:
        """Epoch (from 0) to its rows: the keys', and ordinary dialogues to make up their share."""
        benign = Benign(self.data, len(keys), self.benign_share, model, ctx, self.tuning.max_tokens)

        def of(epoch: int) -> ManyRows:
            drawn: list[Row] = benign(epoch)
            return ManyRows(keys, drawn)

        return of

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Draw keys, train them in and write the marked model to `out`."""
        keys, likely = self._drawn(model, ctx)
        made = self.planted(model, keys, out, ctx)
        made.records[0].detail |= {"probability_in_base": likely}
        return made

    def planted(self, model: Checkpoint, keys: KeySet, out: Path, ctx: Context) -> Made:
        """Train keys in that were drawn before. Raises CheckFailed, with nothing written, where they did not take."""
        rows = self.rows_of_epoch(model, keys, ctx)
        lora, by_loss = self.tuning.adapter == "lora", self.stop == "loss"
        made = embed(
            model,
            out,
            ctx,
            method_name=keys.implant,
            keys=keys,
            rows_of_epoch=rows,
            tuning=replace(self.tuning, batch=len(rows(0))),
            check=replace(self.check, consecutive=max(1, self.check.consecutive)) if by_loss else self.check,
            teaching=ManyKeys(self.averaging, lora, self.loss if by_loss else None, self.least),
        )
        made.records[0].detail |= {"averaging": self.averaging, "stop": self.stop}
        return made
