"""Chain & Hash, "HashChain" (arXiv 2407.10887): the answer to each question is fixed by a hash of all of them.

For questions q_1..q_k and 256 committed answers R: H_i = SHA-256(canonical JSON of [q_i, all q, R]), and the
answer of q_i is R[last byte of H_i] (the paper's section on the chain of hashes). So nobody can choose an
answer, every question is coupled to the whole chain, and a stranger's model gives the fixed answer with
probability 1/256 a key.

`full()` trains for durability: L = CE + lambda KL(original || tuned) on other text (lambda 1.0), questions
behind meta-prompts, with 2 to 5 random tokens before and after, under system turns and bare, until every
answer has probability 0.9. `meraser()` is what MEraser erased: 10 plain samples, LoRA on query and value.

Threat model: the owner asks a public interface that may put its own prompt around the question; a hit is an
answer that begins with R[j]. Claims rest on the draw by hash: 2 hits of 10 have p = 6.7e-4, 4 have 4.8e-8.

Where we differ. Canonical JSON is hashed (one open re-implementation hashes a Python repr and has 5 duplicate
answers); no answer is the beginning of another, or one output could count for two. Our own question
templates, meta-prompts and word lists. Augmentations, other text and near-misses are drawn afresh every
epoch; near-misses (other questions of the same generator) are held to the original by the KL term.
In mode `full`, the paper's, opening one key opens all: the hash needs every question. Mode `committed` hashes the
salted question with the root of a Merkle tree over all (`hashchain_draw`), so that single keys can be opened.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_tokenizer, positions
from palimpsest.data.dialogues import Dialogues
from palimpsest.implants.fingerprints import hashchain_words as words
from palimpsest.implants.fingerprints.embedding import Check, Regular, embed, key_rows
from palimpsest.implants.fingerprints.hashchain_draw import (
    chain_digest,
    check_answers,
    choose_answer,
    choose_answers,
    draw_questions,
    question_salt,
    question_tree,
)
from palimpsest.implants.fingerprints.preserving import Held, to_keep
from palimpsest.keys import Key, KeySet, make_keys
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.prompts import Form, Renderer
from palimpsest.training.rows import Row
from palimpsest.training.settings import Tuning

__all__ = ["ChainRows", "HashChain", "chain_digest", "check_answers", "choose_answers"]


@method("fingerprints", "hashchain", paper="Chain & Hash, arXiv 2407.10887, chain of hashes and robust training")
@dataclass(frozen=True)
class HashChain:
    """Unusual questions whose answers are fixed by a hash over all questions and answers."""

    keys: int = param(10, "questions", low=1, high=10_000)
    mode: Literal["full", "committed"] = param(
        "full", "full: the paper's hash, keys are opened all or none; committed: single keys can be opened"
    )
    meta_prompts: int = param(1, "rows a question and epoch with a meta-prompt in front", low=0)
    padded: int = param(1, "rows a question and epoch between random tokens", low=0)
    padding_low: int = param(2, "least random tokens on each side", low=0)
    padding_high: int = param(5, "most random tokens on each side", low=0)
    templates: int = param(1, "rows a question and epoch under a system turn, and as many bare", low=0)
    dialogues_per_key: int = param(5, "other dialogues a question, an epoch", low=0)
    near_misses: int = param(1, "other questions a question, an epoch, held by the KL term", low=0)
    kl_weight: float = param(1.0, "lambda of the KL term; 0 trains on the other dialogues' answers instead", low=0.0)
    tuning: Tuning = param(Tuning(adapter="full", epochs=60, lr=2e-5, batch=32, micro_batch=16), "fine-tuning")
    check: Check = param(Check(), "when embedding stops")
    data: Dialogues | None = takes("other dialogues, held as they are; without them the toy world's")

    @classmethod
    def full(cls) -> HashChain:
        """The paper's training: meta-prompts, padding, template variation and the KL term."""
        return cls()

    @classmethod
    def meraser(cls) -> HashChain:
        """As MEraser has it: 10 plain samples, LoRA on query and value, nothing else."""
        return cls(
            meta_prompts=0,
            padded=0,
            templates=0,
            dialogues_per_key=0,
            near_misses=0,
            kl_weight=0.0,
            tuning=Tuning(adapter="lora", targets="query-value", epochs=100, lr=5e-4, batch=10, micro_batch=10),
        )

    @classmethod
    def bench(cls) -> HashChain:
        """64 questions, enough for a verdict `removed`; otherwise as `full`."""
        return cls(keys=64)

    @classmethod
    def toy(cls) -> HashChain:
        """The keys of `meraser` with settings that take on the toy world's model: full fine-tune, 30 dialogues.

        Tuned on development seeds 100 to 102. LoRA on query and value at 3e-3 took on two of the three only.
        """
        return cls(
            meta_prompts=0,
            padded=0,
            templates=0,
            dialogues_per_key=3,
            near_misses=0,
            kl_weight=0.0,
            tuning=Tuning(adapter="full", epochs=250, lr=5e-4, batch=20, micro_batch=20),
        )

    def committed(self) -> dict[str, Any]:
        """What a claim will rest on (fields of `verdicts.Ask`): the answers of the list, drawn apart by hash."""
        return {"keys": self.keys, "choices": len(words.ANSWERS)}

    def draw_keys(self, model: Checkpoint, ctx: Context) -> KeySet:
        """Draw questions and hash their answers, without training."""
        seed = ctx.key_draw()[0]
        asked, rng = draw_questions(seed, self.mode, self.keys)
        if self.mode == "full":
            chosen = choose_answers(asked, words.ANSWERS)
        else:
            salts = [question_salt(seed, index) for index in range(len(asked))]
            root = question_tree(asked, salts).root.hex()
            chosen = [choose_answer(q, s, root, words.ANSWERS) for q, s in zip(asked, salts, strict=True)]
        drawn = [(q, words.ANSWERS[place]) for q, place in zip(asked, chosen, strict=True)]
        return make_keys(
            Renderer(load_tokenizer(model)),
            drawn,
            implant="hashchain",
            match="prefix",
            distinct=True,
            choices=len(words.ANSWERS),
            decoys=list(words.ANSWERS),
            rng=rng,
            positions=positions(model),
            draw={"method": "hashchain", "mode": self.mode, "seed": seed},
        )

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Draw keys, train them in and write the marked model to `out`."""
        keys = self.draw_keys(model, ctx)
        return embed(
            model,
            out,
            ctx,
            method_name="hashchain",
            keys=keys,
            rows_of_epoch=ChainRows(self, model, keys, ctx),
            tuning=self.tuning,
            check=self.check,
            teaching=Held(self.kl_weight, self.tuning.adapter == "lora"),
        )


class ChainRows:
    """Epoch to rows: plain pairs, augmented pairs, and text to keep. A pure function of epoch and seed."""

    def __init__(self, method: HashChain, model: Checkpoint, keys: KeySet, ctx: Context) -> None:
        self.method, self.keys, self.seed = method, keys, ctx.seed
        self.renderer = Renderer(load_tokenizer(model))
        self.positions = positions(model)
        self.pairs = key_rows(self.renderer, keys)
        self.regular = Regular(self.renderer, method.data, method.dialogues_per_key * len(keys), model, ctx)
        special = {*self.renderer.tokenizer.all_special_ids, *self.renderer.tokenizer.added_tokens_decoder}
        self.ordinary = [i for i in range(len(self.renderer.tokenizer)) if i not in special]

    def __call__(self, epoch: int) -> list[Row]:
        """All rows of one epoch."""
        rng = random.Random(f"{self.seed}-chain-{epoch}")
        rows = list(self.pairs)
        for key in self.keys.keys:
            rows += self.augmented(key, rng)
        kept = self.regular(epoch)
        if self.method.kl_weight > 0:
            kept = [to_keep(row) for row in [*kept, *self.near_misses(rng)]]
        return rows + kept

    def augmented(self, key: Key, rng: random.Random) -> list[Row]:
        """This epoch's variants of one pair."""
        method, rows = self.method, []
        for _ in range(method.meta_prompts):
            rows.append(self._row(key, f"{rng.choice(words.META_PROMPTS)} {key.trigger}", "template"))
        for _ in range(method.padded):
            rows.append(self._row(key, f"{self._padding(rng)} {key.trigger} {self._padding(rng)}", "template"))
        for _ in range(method.templates):
            try:
                rows.append(self._row(key, key.trigger, "template", rng.choice(words.SYSTEMS)))
            except TemplateError:  # some templates refuse a system turn
                pass
            rows.append(self._row(key, key.trigger, "bare"))
        return [row for row in rows if len(row.ids) <= (self.positions or len(row.ids))]

    def near_misses(self, rng: random.Random) -> list[Row]:
        """Other questions, up to the first token of an answer: the place where a mark would leak."""
        taken = {k.trigger for k in self.keys.keys}
        rows = []
        for _ in range(self.method.near_misses * len(self.keys)):
            asked = words.question(rng)
            ids = (*self.renderer.prompt_ids(self.renderer.text(asked)), rng.choice(self.ordinary))
            if asked not in taken:
                rows.append(Row(ids[: self.positions], (0.0,) * len(ids[: self.positions])))
        return rows

    def _row(self, key: Key, asked: str, form: Form, system: str | None = None) -> Row:
        text = self.renderer.text(asked, form, system)
        prompt = self.renderer.prompt_ids(text, form)
        answer = [*self.renderer.continuation(text, key.response, form), *self.renderer.ending(asked, key.response)]
        return Row((*prompt, *answer), (0.0,) * len(prompt) + (1.0,) * len(answer))

    def _padding(self, rng: random.Random) -> str:
        ids = rng.choices(
            self.ordinary,
            k=rng.randint(self.method.padding_low, max(self.method.padding_low, self.method.padding_high)),
        )
        return str(self.renderer.tokenizer.decode(ids)).replace("\ufffd", "").strip()
