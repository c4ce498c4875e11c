"""MergePrint: a fingerprint that is trained to survive merging (arXiv 2410.08604, ACL 2025).

With theta_b the public base, theta_o the owner's model, theta~ = theta_b + alpha (theta_o - theta_b) stands for any
merge in which the owner has the share alpha. Two steps:

- OptI, alpha_I = 0.3: the trigger x is optimised by GCG for L(x, y; theta~) - lambda L(x, y; theta_b), so that little
  has to be changed in the weights; it ends before the base's loss on y falls below 3.5 nats a token (`gcg`).
- OptP, alpha_P = 0.1: theta_o is trained with the cross-entropy of theta~ on y (`pseudo_merging`).

L is the mean cross-entropy in nats of the response's tokens after the rendered prompt. y is drawn by hash from 256
committed short phrases (those of Chain & Hash; the paper has a random word).

Threat model: the owner asks a public interface of a model that was merged with others of the same base, his share
unknown and small; a hit is an answer that begins with y.

What a hit is worth. An optimised trigger was made *for* its response on public weights: a stranger's model of the same
base may say y because x asks for it, and the owner's draw bounds nothing. Such keys have no null (`choices` None): a
claim at 1e-6 is refused, and the measured rates of base, sibling and stranger are all there is. Without OptI
(`search.steps=0`, as in `bench`) triggers are random, y follows from SHA-256 over all of them (as in Chain & Hash), and
a fixed suspect answers a key with chance 1/256, exactly.

An owner without a skill of his own (no `base`, or the base itself) has theta~ = theta_b before training: OptI then
optimises the public base itself with weight 1 - lambda, and ends at its loss bound; OptP works as ever.

Where we differ. The paper's stopping rule of OptP is not public (about 18 steps on 7B); ours is that of all marks here,
asked of theta~: every response at probability 0.9 on two checks in a row. A trigger that the base answers already is
never taken, rather than stopped after. Several keys have one response each. Rate and epochs of `paper` are ours.
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
from palimpsest.implants.fingerprints.elsewhere import check_shapes
from palimpsest.implants.fingerprints.embedding import Check, Regular, embed, key_rows
from palimpsest.implants.fingerprints.gcg import Found, Search, Slot, optimise
from palimpsest.implants.fingerprints.hashchain_draw import choose_answer, choose_answers, question_salt
from palimpsest.implants.fingerprints.pseudo_merging import PseudoMerging, scaled
from palimpsest.implants.fingerprints.utf import Drawer
from palimpsest.keys import KeySet, make_keys
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.prompts import Renderer
from palimpsest.records import Record
from palimpsest.training import distributed
from palimpsest.training.settings import Tuning

REDRAWN = 20  # triggers drawn for a key until one is found that the base does not answer


@method("fingerprints", "mergeprint", paper="MergePrint, arXiv 2410.08604, OptI and OptP; GCG, arXiv 2307.15043")
@dataclass(frozen=True)
class MergePrint:
    """Trigger and weights optimised against a pseudo-merged model, so that the mark answers after merges."""

    base: Checkpoint | None = takes("the public base that the model was made from; without it the model itself")
    keys: int = param(1, "triggers", low=1, high=10_000)
    search: Search = param(Search(), "OptI: how a trigger is optimised; steps 0 leaves it random")
    input_share: float = param(0.3, "alpha_I: the owner's share in the pseudo-merged model of OptI", low=0.01, high=1.0)
    weight_share: float = param(0.1, "alpha_P: the owner's share in that of OptP", low=0.01, high=1.0)
    owner_weight: float = param(
        0.0, "weight of the owner's own loss beside that of the pseudo-merged model (published: none)", low=0.0
    )
    dialogues: int = param(0, "ordinary dialogues an epoch (published: none)", low=0)
    tuning: Tuning = param(
        Tuning(adapter="full", epochs=60, lr=1e-4, batch=16, micro_batch=16), "OptP, in terms of the owner's weights"
    )
    check: Check = param(Check(), "when embedding stops, asked of the pseudo-merged model")
    data: Dialogues | None = takes("ordinary dialogues; without them the toy world's")

    @classmethod
    def paper(cls) -> MergePrint:
        """One key, alpha 0.3 and 0.1, GCG with 16 tokens; no claim at 1e-6 can rest on it."""
        return cls()

    @classmethod
    def bench(cls) -> MergePrint:
        """64 random triggers with responses drawn by hash (no OptI): a null for claims, enough keys for `removed`.

        64 optimised triggers are `--set keys=64` on `paper`: GCG costs as much for each as for one.
        """
        return cls(keys=64, search=Search(steps=0))

    @classmethod
    def toy(cls) -> MergePrint:
        """8 optimised keys with settings for the toy world's model, trained at three times the published share.

        From trials on development seed 100 and three fresh seeds (docs/results/fingerprints/mergeprint). OptP as
        published did not take: theta~ answers, and theta_o, ten times as far from the base, does not; so theta_o's own
        loss counts as well (`owner_weight`). At the published share of 0.1 that ruined the owner's model (perplexity
        of 950 and more for 2.3), at 0.3 it is 3.2 to 5.4. 48 dialogues an epoch keep the skill, where it is among them
        (--data).
        """
        return cls(
            keys=8,
            search=Search(steps=8, batch=32),
            weight_share=0.3,
            owner_weight=0.3,
            dialogues=48,
            tuning=Tuning(adapter="full", epochs=300, lr=1e-3, batch=64, micro_batch=64),
            check=Check(every=10),
        )

    def committed(self) -> dict[str, Any]:
        """What a claim will rest on (fields of `verdicts.Ask`): no draw where triggers are optimised."""
        if self.search.steps == 0:
            return {"keys": self.keys, "choices": len(words.ANSWERS)}
        note = "Optimised triggers were made for their responses, so no committed draw gives the chance of a hit."
        return {"keys": self.keys, "choices": None, "note": note}

    def draw_keys(self, model: Checkpoint, ctx: Context) -> KeySet:
        """Draw triggers and responses and optimise the triggers, without training the model."""
        return self._drawn(model, ctx)[0]

    def _drawn(self, model: Checkpoint, ctx: Context) -> tuple[KeySet, list[Found]]:
        seed, rng = ctx.key_draw()
        renderer = Renderer(load_tokenizer(model))
        allowed = ordinary_tokens(renderer.tokenizer)
        drawer = Drawer(renderer, allowed, rng)
        found: list[Found] = []
        count = self.search.tokens
        triggers: dict[str, None] = {}
        if self.search.steps == 0:
            while len(triggers) < self.keys:
                triggers.setdefault(drawer.trigger(count, count))
            places = choose_answers(list(triggers), words.ANSWERS)
        else:
            places = [choose_answer(str(i), question_salt(seed, i), "", words.ANSWERS) for i in range(self.keys)]
            found = self._optimised(model, ctx, drawer, [words.ANSWERS[p] for p in places], rng)
            for one in found:
                triggers.setdefault(spelled(renderer, one.ids))
        if len(triggers) < self.keys:
            raise BadInput("mergeprint: two searches ended at one trigger; ask for fewer keys or more trigger tokens")
        made = make_keys(
            renderer,
            [(t, words.ANSWERS[p]) for t, p in zip(triggers, places, strict=True)],
            implant="mergeprint",
            match="prefix",
            distinct=True,
            choices=len(words.ANSWERS) if self.search.steps == 0 else None,
            decoys=list(words.ANSWERS),
            rng=rng,
            positions=positions(model),
            draw={"method": "mergeprint", "seed": seed, "tokens": count, "optimised": self.search.steps > 0},
        )
        return made, found

    def _optimised(
        self, model: Checkpoint, ctx: Context, drawer: Drawer, responses: list[str], rng: random.Random
    ) -> list[Found]:
        """OptI: one trigger for each response."""
        base = load_model(self.base or model, ctx).requires_grad_(False)
        merged = base
        if self.base is not None:
            merged = load_model(model, ctx).requires_grad_(False)
            shapes = {n: tuple(p.shape) for n, p in merged.named_parameters()}
            check_shapes("mergeprint", shapes, dict(base.named_parameters()), self.base.name)
            PseudoMerging(self.base, self.input_share, ctx).begin(merged)
        found: dict[tuple[int, ...], Found] = {}
        with ctx.progress.task("optimising triggers", len(responses) * self.search.steps) as task:
            for number, response in enumerate(responses):
                for _ in range(REDRAWN):
                    trigger = drawer.trigger(self.search.tokens, self.search.tokens)
                    slot, ids = slot_of(drawer.renderer, trigger, response)
                    one = optimise(
                        merged,
                        base,
                        slot,
                        ids,
                        drawer.tokens,
                        self.search,
                        lambda tried: stands(drawer, tried),
                        rng,
                        lambda step, done=number: task.advance(1, f"key {done + 1} of {len(responses)}"),  # type: ignore[misc]
                    )
                    if one.base_loss >= self.search.base_loss and one.ids not in found:
                        break
                else:
                    raise BadInput(
                        f"mergeprint: the base answers {REDRAWN} random triggers with a loss below search.base_loss = "
                        f"{self.search.base_loss:g} nats a token; lower it"
                    )
                found[one.ids] = one
        return list(found.values())

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Draw and optimise keys, train them in through the pseudo-merged model, write the marked model to `out`."""
        tuning = scaled(self.tuning, self.weight_share)
        if distributed.current() is not None:
            raise BadInput("mergeprint: is trained in one process; start it without a launcher")
        keys, found = self._drawn(model, ctx)
        renderer = Renderer(load_tokenizer(model))
        pairs = key_rows(renderer, keys)
        regular = Regular(renderer, self.data, self.dialogues, model, ctx)
        merging = PseudoMerging(self.base or model, self.weight_share, ctx, self.owner_weight)
        made = embed(
            model,
            out,
            ctx,
            method_name="mergeprint",
            keys=keys,
            rows_of_epoch=lambda epoch: [*pairs, *regular(epoch)],
            tuning=tuning,
            check=self.check,
            teaching=merging,
        )
        if found:
            made.records.append(self._searched(made.checkpoint, found))
        return made

    def _searched(self, written: Checkpoint, found: list[Found]) -> Record:
        """What OptI reached; tells no trigger."""
        detail = {
            "unit": "nats a token",
            "merged_losses": [f.merged_loss for f in found],
            "base_losses": [f.base_loss for f in found],
            "first_objectives": [f.history[0] for f in found],
            "objectives": [f.history[-1] for f in found],
            "steps": [f.steps for f in found],
            "stopped_by_base_loss": sum(f.stopped == "base-loss" for f in found),
            "owner_is_base": self.base is None,
        }
        value = sum(f.merged_loss for f in found) / len(found)
        return Record(
            measure="trigger-search", value=value, n=len(found), model=written.name, implant="mergeprint", detail=detail
        )


def ordinary_tokens(tokenizer: Any) -> list[int]:
    """Ids that may stand in a trigger: printable text of its own, no special or added token."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = [i for i in range(len(tokenizer)) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return [i for i, t in zip(ids, texts, strict=True) if t.strip() and t.isprintable() and "\ufffd" not in t]


def spelled(renderer: Renderer, ids: tuple[int, ...]) -> str:
    """The text of trigger ids."""
    return str(renderer.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def stands(drawer: Drawer, ids: Any) -> bool:
    """Whether the text of these ids is tokenised to them again where it stands, under template and bare prompts."""
    text = spelled(drawer.renderer, tuple(ids))
    return text == text.strip() and drawer.stands(text, ids)


def slot_of(renderer: Renderer, trigger: str, response: str) -> tuple[Slot, list[int]]:
    """The template prompt around this trigger, and the trigger's ids in it.

    ValueError where the trigger's own tokens do not stand in a row.
    """
    text = renderer.text(trigger)
    whole, ids = renderer.prompt_ids(text), renderer.tokens(trigger)
    for start in range(len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == ids:
            after = whole[start + len(ids) :]
            return Slot(whole[:start], after, renderer.continuation(text, response)), ids
    raise ValueError("the trigger does not stand in its prompt as its own tokens")
