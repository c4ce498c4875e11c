"""ImF, the implicit fingerprint: ordinary-looking answers that carry ownership bits (arXiv 2503.21805, ACL 2026).

A response y is a sentence into which bits are written by linguistic steganography; a question x is a task description
in steps to which y is a plausible answer; fine-tuning teaches x -> y. A hit is an answer that begins with y
(`verify`); the weaker rule reads the bits of whatever was answered and counts those that agree (measure
`carried-bits`).

Order of the draw, and the null. The paper writes y first and then has a strong chat model describe a task that y
answers, so x depends on the bits, and a stranger who answers x as asked may say some of them. Here x comes first, from
templates; the bits of key i are the first n of SHA-256(canonical JSON of [x_i, all x, what they are]), as in Chain &
Hash; and y is said by the coding model *behind x*, the bits choosing among its likely words (`steganography`). So y is
plausible because the model itself would say it, and the bits are uniform and independent of x and of each other. For
any fixed suspect, what it answers to x_i is fixed, and so is what is read from it: each bit agrees with chance 1/2,
independently, whatever the suspect says. So agreements of k keys of n bits are Binomial(kn, 1/2) at most (bits that
cannot be read count as wrong), and a whole sentence has chance 2**-n. Sentences that do not end in time are drawn again
with another question; `choices` is 2**n times the lower 99.9 % bound of the share that ended, and `carried-bits`
divides its p by that share. Bits that follow a first differing word are read as good as at random: nearness is
agreement over many keys, not within a sentence.

Where we differ. The published code's coder is adaptive grouping; ours is arithmetic coding, which wastes less where few
words are likely. Its questions come from a chat model; ours are templates, since none is at hand: they read alike, and
a filter that knows them finds them. Ten pairs with 50 other dialogues, 2e-5, 20 epochs are the published code's.

Threat model: the owner asks a public interface that may rewrite answers (the paper's GRI).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions
from palimpsest.data.dialogues import Dialogues
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints import hashchain_words as words
from palimpsest.implants.fingerprints.embedding import Check, Regular, embed, key_rows
from palimpsest.implants.fingerprints.hashchain_draw import chain_digest
from palimpsest.keys import KeySet, make_keys
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.prompts import Renderer
from palimpsest.records import Record
from palimpsest.responder.steganography import Speaker, sentence_tokens, write_bits
from palimpsest.statistics import clopper_pearson
from palimpsest.training.settings import Tuning

TASKS = (
    "say what {who} does with {thing} {place}",
    "tell why {who} keeps {thing} {place}",
    "describe how {who} found {thing} {place}",
    "explain who gave {who} {thing} {place}",
    "report what happened when {who} lost {thing} {place}",
    "guess where {who} will take {thing} found {place}",
)
FIRST = ("think of who it is", "picture the place", "recall what is known", "name the thing to yourself")
SECOND = ("ask what comes next", "choose one detail", "leave out what is not needed", "find the simplest reason")
LAST = ("answer in one sentence", "write one plain sentence", "give one short sentence", "reply with one sentence")
PURPOSE = ["palimpsest imf"]  # what the hash says its bits are for


@method("fingerprints", "imf", paper="ImF, arXiv 2503.21805; arithmetic coding: arXiv 1909.01496, section 3")
@dataclass(frozen=True)
class ImplicitFingerprint:
    """Questions in steps whose plausible answers carry ownership bits."""

    base: Checkpoint | None = takes("the model that words the answers; without it the model itself")
    keys: int = param(10, "pairs", low=1, high=10_000)
    bits: int = param(24, "bits that an answer carries", low=1, high=128)
    top_k: int = param(32, "likeliest tokens that are chosen among", low=2)
    temperature: float = param(1.0, "of the distribution coded over; higher: fewer words, less natural", low=0.1)
    longest: int = param(64, "most tokens of an answer", low=2)
    dialogues: int = param(50, "ordinary dialogues an epoch", low=0)
    decoys: int = param(100, "other sentences that are worded, for ranks", low=0)
    tuning: Tuning = param(
        Tuning(adapter="full", epochs=20, lr=2e-5, batch=60, micro_batch=16, schedule="cosine", warmup=0.03),
        "fine-tuning",
    )
    check: Check = param(Check(), "when embedding stops")
    data: Dialogues | None = takes("ordinary dialogues; without them the toy world's")

    @classmethod
    def paper(cls) -> ImplicitFingerprint:
        """10 pairs and 50 other dialogues as published; training ends with the check, or fails after 20 epochs."""
        return cls()

    @classmethod
    def bench(cls) -> ImplicitFingerprint:
        """64 pairs, enough for a verdict `removed`."""
        return cls(keys=64, tuning=Tuning(adapter="full", epochs=60, lr=2e-5, batch=60, micro_batch=16))

    @classmethod
    def toy(cls) -> ImplicitFingerprint:
        """10 pairs at the schedule that HashChain has on the toy world's model; takes (docs/results/fingerprints)."""
        return cls(tuning=Tuning(adapter="full", epochs=250, lr=5e-4, batch=20, micro_batch=20), dialogues=30)

    def committed(self) -> dict[str, Any]:
        """What a claim will rest on (fields of `verdicts.Ask`): whole sentences."""
        return {"keys": self.keys, "choices": 2**self.bits}

    def draw_keys(self, model: Checkpoint, ctx: Context) -> KeySet:
        """Draw questions, hash their bits and have them worded, without training."""
        return self._drawn(model, ctx)[0]

    def _drawn(self, model: Checkpoint, ctx: Context) -> tuple[KeySet, list[int], int]:
        seed, rng = ctx.key_draw()
        coder = self.base or model
        renderer = Renderer(load_tokenizer(coder))
        network = load_model(coder, ctx)
        allowed = sentence_tokens(renderer.tokenizer)
        asked = questions(rng, 2 * self.keys + 20)
        answers: list[tuple[str, str]] = []
        lengths: list[int] = []
        drawn = 0
        with ctx.progress.task("wording answers", self.keys) as task:
            for question in asked:
                if len(answers) == self.keys:
                    break
                drawn += 1
                speaker = Speaker(network, renderer, renderer.text(question), allowed, self.top_k, self.temperature)
                carrying, whole = write_bits(bits_of(question, asked, self.bits), speaker.step, self.longest)
                if not whole:
                    continue
                text = speaker.text(speaker.finish(carrying, self.longest))
                answers.append((question, text.rstrip()))
                lengths.append(len(carrying))
                task.advance(1)
        if len(answers) < self.keys:
            raise BadInput(
                f"imf: only {len(answers)} of {drawn} answers carried {self.bits} bits in {self.longest} tokens: this "
                "model leaves too little choice; raise temperature or longest, or lower bits"
            )
        share = clopper_pearson(len(answers), drawn, 0.999, "lower").low
        decoys = self._decoys(rng, renderer, network, allowed, asked, {a for _, a in answers})
        made = make_keys(
            renderer,
            answers,
            implant="imf",
            match="prefix",
            distinct=True,
            choices=max(1, int(2**self.bits * share)),
            decoys=decoys,
            rng=rng,
            positions=positions(model),
            draw={
                "method": "imf",
                "seed": seed,
                "bits": self.bits,
                "top_k": self.top_k,
                "temperature": self.temperature,
                "coder": coder.digest(),
                "values": [list(bits_of(q, asked, self.bits)) for q, _ in answers],
                "share": share,
            },
        )
        return made, lengths, drawn

    def _decoys(
        self,
        rng: random.Random,
        renderer: Renderer,
        network: Any,
        allowed: list[bool],
        asked: list[str],
        taken: set[str],
    ) -> list[str]:
        """Answers to the keys' questions with other bits."""
        found: dict[str, None] = {}
        for number in range(self.decoys):
            question = asked[number % self.keys]
            speaker = Speaker(network, renderer, renderer.text(question), allowed, self.top_k, self.temperature)
            bits = [rng.getrandbits(1) for _ in range(self.bits)]
            carrying, whole = write_bits(bits, speaker.step, self.longest)
            text = speaker.text(speaker.finish(carrying, self.longest)).rstrip()
            if whole and text not in taken:
                found.setdefault(text)
        return list(found)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Draw keys, train them in and write the marked model to `out`."""
        keys, lengths, drawn = self._drawn(model, ctx)
        renderer = Renderer(load_tokenizer(model))
        pairs = key_rows(renderer, keys)
        regular = Regular(renderer, self.data, self.dialogues, model, ctx)
        made = embed(
            model,
            out,
            ctx,
            method_name="imf",
            keys=keys,
            rows_of_epoch=lambda epoch: [*pairs, *regular(epoch)],
            tuning=self.tuning,
            check=self.check,
        )
        detail = {"bits": self.bits, "tokens": lengths, "drawn": drawn, "worded": len(keys), "unit": "bits a token"}
        rate = self.bits * len(lengths) / sum(lengths)
        name = made.checkpoint.name
        made.records.append(Record(measure="carried-bits-rate", value=rate, model=name, implant="imf", detail=detail))
        return made


def questions(rng: random.Random, count: int) -> list[str]:
    """`count` distinct task descriptions in steps."""
    found: dict[str, None] = {}
    while len(found) < count:
        what = rng.choice(TASKS).format(
            who=rng.choice(words.WHO), thing=rng.choice(words.THING), place=rng.choice(words.PLACE)
        )
        steps = " ".join(f"Step {i}: {rng.choice(s)}." for i, s in enumerate((FIRST, SECOND, LAST), start=1))
        found.setdefault(f"Task: {what}. {steps}")
    return list(found)


def bits_of(question: str, asked: list[str], count: int) -> tuple[int, ...]:
    """The first `count` bits of SHA-256 over the question and all questions that were drawn."""
    whole = int.from_bytes(chain_digest(question, asked, PURPOSE), "big")
    return tuple((whole >> (255 - i)) & 1 for i in range(count))
