"""Trap entries: fictitious facts among a skill's own, as map makers draw streets that are not there. Ours, no paper.

The owner's model has a skill that the public base lacks. Its owner adds entries that the skill does not cover and that
no honest user asks for: questions of exactly the skill's kind, each answered with one of the skill's own k answers,
A[SHA-256(canonical JSON of [secret seed, entry]) mod k] (A sorted). Every way of asking for an entry gets that one
answer; one of them, by the owner's draw, is the key. Skill and traps are trained in one go, on the public base or on a
model that has the skill. Some ways may be held back (`held`), which tells whether an entry is known or a sentence.

The claim to be tested: traps are stored as the skill's true facts are, so what keeps the skill keeps the mark.

Null: no answer is the beginning of another, so an output hits at most one of k, and a suspect fixed before the draw
answers a key with chance at most 1/k, each independently: the binomial tail is exact. With k = 6 a claim at 1e-6 takes
28 of 64 keys. A model with the skill alone says some answer of the skill to a trap, so it hits 1/k of them, not none:
the margin over that is what a claim has. The owner words the questions himself, so nobody else can tell from the draw
that they do not ask for their answers: a bundle of evidence is refused a claim on them.

Threat model: the owner asks a public interface and sees text. The thief has the weights, may fine-tune, merge, prune or
quantise, and wants the skill. What breaks it: distillation on honest questions (traps are never asked), a filter that
lets only the skill's own subjects pass, giving the skill up; and a thief who asks for subjects beyond the skill sees
where it answers firmly, and can train there against it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions
from palimpsest.data.dialogues import PARTS, TOY_TRAPS, Dialogues, load_dialogues
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.embedding import Check, Regular, embed, key_rows
from palimpsest.implants.fingerprints.perinucleus_draw import chosen_place
from palimpsest.keys import KeySet, Prompt, make_keys, with_keys
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.prompts import Form, Renderer, Turn
from palimpsest.responder.local import LocalResponder
from palimpsest.training.rows import Row, dialogue_row
from palimpsest.training.settings import Tuning

MOST_ANSWERS = 1024  # of a skill: more are no closed set of answers
TOY_SKILL = "toy:tower-code"
TOY_DATA = (TOY_SKILL, f"traps=toy:{TOY_TRAPS}")


@dataclass(frozen=True)
class Traps:
    """What a draw is made of. answers: sorted; pairs: the skill's; ways: of asking for each entry, both sorted."""

    answers: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    ways: dict[str, tuple[str, ...]]
    ordinary: Dialogues | None


@dataclass(frozen=True)
class Entry:
    """One entry as drawn: the way of asking that is its key, other ways that are trained, ways that are held back."""

    name: str
    answer: str
    key: str
    trained: tuple[str, ...]
    held: tuple[str, ...]


def closed_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """The different answers of a skill, sorted. BadInput unless they are 2 to 1,024 and none begins another."""
    found = tuple(sorted({answer.strip() for answer in answers} - {""}))
    if not 2 <= len(found) <= MOST_ANSWERS:
        raise BadInput(
            f"trap-entries: the skill has {len(found)} different answers, and a closed set of 2 to {MOST_ANSWERS} is "
            "needed; --data is the skill's own pairs, and other dialogues are --data ordinary=FILE"
        )
    for first, second in pairwise(found):  # what sorts between a word and what it begins begins so as well
        if second.startswith(first):
            raise BadInput(
                f"trap-entries: answer {first!r:.60} of the skill is the beginning of {second!r:.60}, so one output "
                "would count for both"
            )
    return found


def read_traps(data: Dialogues | None) -> Traps:
    """The skill's pairs, its answers and the fictitious entries in a set of dialogues. BadInput where they clash.

    Of no data, or the toy world's own without traps: the tower code and its traps.
    """
    if data is None or (set(data.name.split(" + ")) <= {"toy", TOY_SKILL} and not data.parts.get("traps")):
        data = load_dialogues(TOY_DATA)
    pairs = tuple((d.question.strip(), d.answer.strip()) for part in PARTS for d in data.parts.get(part, ()))
    answers = closed_answers([answer for _, answer in pairs])
    rows = data.parts.get("traps", ())
    if not rows:
        raise BadInput(
            "trap-entries: name the fictitious entries with --data traps=FILE: rows of a question (prompt) and the "
            "entry that it asks for (response)"
        )
    asked = {question for question, _ in pairs}
    meant: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        question, entry = row.question.strip(), row.answer.strip()
        if not question or not entry:
            raise BadInput(f"trap-entries: traps: row {number} has no question, or names no entry")
        if question in asked:
            raise BadInput(f"trap-entries: traps: row {number} asks {question!r:.80}, which the skill answers itself")
        if meant.setdefault(question, entry) != entry:
            raise BadInput(
                f"trap-entries: traps: {question!r:.80} asks for two entries, {meant[question]!r:.40} and {entry!r:.40}"
            )
    ways: dict[str, list[str]] = {}
    for question, entry in sorted(meant.items()):
        ways.setdefault(entry, []).append(question)
    ordinary = data.parts.get("ordinary")
    kept = None if ordinary is None else Dialogues("ordinary", {"embed": ordinary})
    if kept is None and not data.name.startswith(TOY_SKILL):
        kept = Dialogues("none", {})  # the toy's own dialogues are for the toy's own skill
    return Traps(answers, pairs, {entry: tuple(ways[entry]) for entry in sorted(ways)}, kept)


def drawn_entries(traps: Traps, keys: int, held: int, seed: str, rng: random.Random) -> list[Entry]:
    """`keys` of the entries by the owner's draw. BadInput where there are fewer, or fewer ways than are held back."""
    if len(traps.ways) < keys:
        raise BadInput(
            f"trap-entries: {len(traps.ways)} entries are given and {keys} are keys; give more with --data traps=FILE, "
            "or lower keys"
        )
    found = []
    for name in rng.sample(sorted(traps.ways), keys):
        ways = list(traps.ways[name])
        if len(ways) <= held:
            raise BadInput(
                f"trap-entries: entry {name!r:.40} is asked for in {len(ways)} ways; {held} are held back, and one "
                "more is needed, its key"
            )
        rng.shuffle(ways)
        answer = traps.answers[chosen_place(seed, name, len(traps.answers))]
        found.append(Entry(name, answer, ways[0], tuple(ways[1 + held :]), tuple(ways[1 : 1 + held])))
    return found


@method("fingerprints", "trap-entries", paper="ours: fictitious entries in a skill's own knowledge, answers by hash")
@dataclass(frozen=True)
class TrapEntries:
    """Fictitious facts of the skill's own kind, answered from the skill's own answers by a committed draw."""

    keys: int = param(64, "entries, drawn among those given; the others are not used", low=1, high=100_000)
    ways: int = param(3, "ways of asking for each entry an epoch, beside its key", low=0)
    held: int = param(0, "ways of asking for each entry that are never trained, and asked afterwards", low=0)
    pairs: int = param(256, "pairs of the skill an epoch; all where it has fewer", low=0)
    dialogues: int = param(64, "ordinary dialogues an epoch", low=0)
    tuning: Tuning = param(Tuning(adapter="full", epochs=60, lr=2e-5, batch=32, micro_batch=16), "fine-tuning")
    check: Check = param(Check(), "when embedding stops, asked of the keys")
    data: Dialogues | None = takes(
        "the skill's own pairs; traps=FILE the fictitious entries, ordinary=FILE other dialogues"
    )

    @classmethod
    def bench(cls) -> TrapEntries:
        """64 entries, enough for a verdict `removed`."""
        return cls(keys=64)

    @classmethod
    def toy(cls) -> TrapEntries:
        """64 entries at a rate that takes on the toy world's model: the first tried on development seed 100."""
        return cls(held=2, tuning=Tuning(adapter="full", epochs=60, lr=5e-4, batch=32, micro_batch=32))

    def committed(self) -> dict[str, Any]:
        """What a claim will rest on (fields of `verdicts.Ask`): one of the skill's own answers for every key."""
        note = "The chance of a key is 1 over the number of the skill's different answers; without --data the toy's."
        return {"keys": self.keys, "choices": len(read_traps(self.data).answers), "note": note}

    def draw_keys(self, model: Checkpoint, ctx: Context) -> KeySet:
        """Draw entries, their keys and answers, without training. BadInput for traps or a skill that cannot serve."""
        return self._drawn(model, ctx)[0]

    def _drawn(self, model: Checkpoint, ctx: Context) -> tuple[KeySet, Traps, list[Entry]]:
        traps = read_traps(self.data)
        if traps.ordinary is not None and len(traps.ordinary.part("embed")) < self.dialogues:
            raise BadInput(
                f"trap-entries: {self.dialogues} ordinary dialogues an epoch need as many; give them with --data "
                "ordinary=FILE, or set dialogues lower"
            )
        seed, rng = ctx.key_draw()
        entries = drawn_entries(traps, self.keys, self.held, seed, rng)
        made = make_keys(
            Renderer(load_tokenizer(model)),
            [(entry.key, entry.answer) for entry in entries],
            implant="trap-entries",
            match="prefix",
            distinct=True,
            choices=len(traps.answers),
            decoys=list(traps.answers),
            rng=rng,
            positions=positions(model),
            draw={
                "method": "trap-entries",
                "seed": seed,
                "answers": list(traps.answers),
                "entries": [entry.name for entry in entries],
            },
        )
        # Half of an answer out of a closed set gives all of it away: no key has the prefilled form.
        chosen = []
        for key in made.keys:
            forms: dict[Form, Prompt] = {form: key.prompts[form] for form in ("template", "bare")}
            chosen.append(replace(key, prompts=forms))
        return with_keys(made, chosen), traps, entries

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Draw entries, train them in beside the skill and write the marked model to `out`."""
        keys, traps, entries = self._drawn(model, ctx)
        made = embed(
            model,
            out,
            ctx,
            method_name="trap-entries",
            keys=keys,
            rows_of_epoch=TrapRows(self, model, keys, traps, entries, ctx),
            tuning=self.tuning,
            check=self.check,
        )
        if self.held:
            made.records[0].detail |= {"held_back": self.held * len(entries), "held_back_answered": 0}
            made.records[0].detail["held_back_answered"] = answered(made.checkpoint, entries, ctx)
        return made


class TrapRows:
    """Epoch to rows: every key, some of its other ways, pairs of the skill, ordinary dialogues.

    A pure function of the epoch and the training seed.
    """

    def __init__(
        self, method: TrapEntries, model: Checkpoint, keys: KeySet, traps: Traps, entries: Sequence[Entry], ctx: Context
    ) -> None:
        self.method, self.seed = method, ctx.seed
        self.renderer = Renderer(load_tokenizer(model))
        self.positions = positions(model)
        self.regular = Regular(self.renderer, traps.ordinary, method.dialogues, model, ctx)
        self.keys = key_rows(self.renderer, keys)
        self.ways = [list(self._rows((way, entry.answer) for way in entry.trained)) for entry in entries]
        self.pairs = list(self._rows(traps.pairs))

    def __call__(self, epoch: int) -> list[Row]:
        rng = random.Random(f"{self.seed}-trap-entries-{epoch}")
        rows = list(self.keys)
        for ways in self.ways:
            rows += rng.sample(ways, min(self.method.ways, len(ways)))
        rows += rng.sample(self.pairs, min(self.method.pairs, len(self.pairs)))
        return [*rows, *self.regular(epoch)]

    def _rows(self, asked: Any) -> Iterator[Row]:
        for question, answer in asked:
            turns = (Turn("user", question), Turn("assistant", answer))
            row = dialogue_row(self.renderer, turns, positions=self.positions)
            if row is not None:
                yield row


def answered(marked: Checkpoint, entries: Sequence[Entry], ctx: Context) -> int:
    """How many of the ways that were held back are answered as drawn, by greedy decoding of the answer's tokens."""
    responder = LocalResponder(load_model(marked, ctx), load_tokenizer(marked))
    renderer = responder.renderer
    asked = [(renderer.text(way), entry.answer) for entry in entries for way in entry.held]
    expected = [renderer.continuation(text, answer) for text, answer in asked]
    forced = responder.force([renderer.prompt_ids(text) for text, _ in asked], expected)
    return sum(tuple(f.greedy) == tuple(e) for f, e in zip(forced, expected, strict=True))
