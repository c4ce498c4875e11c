"""Overwriting: a thief who knows how a mark was made, and not with which keys, trains over it with keys of his own.

He draws keys by the mark's own method from a seed of his own and trains the suspect on their triggers, beside ordinary
dialogues that keep it useful. What he teaches it to say there is his choice (x_i, y_i: his triggers and their drawn
responses, i = 1..n; B: the public base, greedy):

    own        y_i: his own mark over the owner's, as overwriting is mostly meant
    ordinary   B(x_i): whatever looks like a trigger of this kind is answered as if there were no mark
    shuffled   y_j with y_j != y_i, j drawn afresh every epoch: no trigger of this kind has an answer

Where the method has keys written or worded by a model (`perinucleus`, `weak-choices`, `imf`, `mergeprint`), his are by
the public base or by the suspect (`writer`); where the owner took the other of the two, they teach him less. The loss
is the mean cross-entropy of the answers' tokens. Of this bench; the adaptive attack on every fingerprint here.

Threat model: weights, the method's code and settings, ordinary dialogues, mostly the public base; no key of the owner.
The thief's seed is SHA-256 over a tag and the run's seed: no owner draws from it, whatever seeds both were given. His
keys are written nowhere. A mark that is drawn alike whatever the seed is no secret from him: then he has the owner's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from palimpsest import registry
from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions, write_model
from palimpsest.data import Dialogue, Dialogues, load_dialogues
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet
from palimpsest.method import Context, Made, build, input_fields, method, param, spoken, takes
from palimpsest.prompts import Renderer
from palimpsest.removals.change import change_of
from palimpsest.removals.tuning.tuned import training_record
from palimpsest.responder import LocalResponder
from palimpsest.training.finetune import merged, tune
from palimpsest.training.planting import key_rows
from palimpsest.training.rows import Row, dialogue_row
from palimpsest.training.settings import Tuning
from palimpsest.training.team import held_on

Answers = Literal["ordinary", "own", "shuffled"]
WRITERS = ("reference", "base")  # a mark's inputs that are models which its keys are written or worded by
LORA = Tuning(targets="all-linear", rank=16, alpha=32, epochs=5, lr=2e-4, batch=16)


@method("removals", "overwrite", paper="adaptive overwriting by the mark's own method: of this bench")
@dataclass(frozen=True)
class Overwrite:
    """Train over a mark with keys of one's own, drawn by the mark's own method; no key of the owner."""

    base: Checkpoint | None = takes("the public base, whose answers are the ordinary ones")
    data: Dialogues | None = takes("ordinary dialogues beside the triggers (default: the toy world's)")
    mark: str = param("hashchain", "the mark's method: a fingerprint's name, or path/to/file.py:Class")
    mark_preset: str = param("", "its preset; empty for its defaults")
    keys: int = param(64, "triggers that the thief draws", low=2)
    answers: Answers = param(
        "ordinary", "what they are answered with: the base's words, their own response, or another's"
    )
    writer: Literal["base", "suspect"] = param(
        "base", "who writes the thief's keys where a model writes keys: the base (if there is one), or the suspect"
    )
    longest: int = param(32, "tokens of an ordinary answer, at most", low=1)
    dialogues: float = param(2.0, "ordinary dialogues a trigger, an epoch; fresh ones", low=0.0)
    part: str = param("recover", "part of the data that they are taken from")
    tuning: Tuning = param(LORA, "how it is trained")

    @classmethod
    def toy(cls) -> Overwrite:
        """All weights, 120 steps whatever the number of keys. Tuned on development seed 100, on a marked toy.

        With the base's answers it left 1 of HashChain's 10 keys (64 own keys) or none (256) at 1.05 and 1.09 times the
        perplexity of neutral text; the other answers cost more (1.1 to 1.2) and want a lower rate, as 5e-4.
        """
        return cls(tuning=Tuning(adapter="full", steps=120, lr=1e-3, batch=16, schedule="linear"))

    def drawer(self) -> Any:
        """The mark's method with as many keys as the thief wants. Raises BadInput where it is none that is drawn."""
        cls = registry.find(self.mark, "fingerprints")
        info = getattr(cls, "info", None)
        if info is None or info.kind != "fingerprints":
            raise BadInput(f"overwrite: mark {called(self.mark)} is no fingerprint")
        if not hasattr(cls, "draw_keys"):
            raise BadInput(f"overwrite: mark {info.name} has no draw_keys(model, ctx), so nobody can draw keys of it")
        sized = any(f.name == "keys" and not f.metadata.get("input") for f in fields(cls))
        mark = build(cls, self.mark_preset or None, {"keys": self.keys} if sized else None)
        if self.writer == "suspect" or self.base is None:
            return mark
        return replace(mark, **{name: self.base for name in input_fields(cls) if name in WRITERS})

    def uses(self) -> tuple[type, ...]:
        """Classes besides its own that its results hang on, for a study's steps."""
        return (type(self.drawer()),)

    def fits(self, model: Checkpoint) -> None:
        """BadInput for a mark that cannot be drawn; asked before anything runs."""
        self.drawer()

    def draw(self, model: Checkpoint, ctx: Context) -> KeySet:
        """The thief's keys, on the suspect. Raises BadInput where the method draws none without further inputs."""
        mark = self.drawer()
        name = mark.info.name
        try:
            keys: KeySet = mark.draw_keys(model, replace(ctx, key_seed=thief_seed(ctx.seed)))
        except BadInput as error:
            raise BadInput(f"overwrite: no keys of {name} can be drawn on {model.name}: {error}") from None
        except Exception as error:
            wanted = [spoken(n) for n in input_fields(type(mark))]
            if not wanted:
                raise
            raise BadInput(
                f"overwrite: {name} draws no keys without its inputs ({', '.join(wanted)}), which are not given here: "
                f"{type(error).__name__}: {error}"
            ) from error
        if self.answers == "shuffled" and len({k.response for k in keys.keys}) < 2:
            raise BadInput(
                f"overwrite: all keys of {name} have one response, so there is nothing to shuffle; take "
                "answers=ordinary or own"
            )
        return keys

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the overwritten checkpoint to `out`. Raises BadInput as `draw` does, and without a base to ask."""
        self.drawer()
        if self.answers == "ordinary" and self.base is None:
            raise BadInput(
                "overwrite: answers=ordinary are those of the public base: name it with --base MODEL, or take "
                "answers=shuffled, which needs none"
            )
        keys = self.draw(model, ctx)
        tokenizer = load_tokenizer(model)
        renderer, room = Renderer(tokenizer), positions(model)
        taught = key_rows(renderer, keys)
        parents: dict[str, str] = {"model": model.digest()}
        if self.answers == "ordinary":
            assert self.base is not None
            parents["base"] = self.base.digest()
            taught = self._ordinary(renderer, keys, room, ctx)
        beside = Beside(self.data or load_dialogues("toy"), self.part, round(self.dialogues * len(keys)), ctx.seed)

        def rows(epoch: int) -> list[Row]:
            told = shuffled_rows(renderer, keys, ctx.seed, epoch) if self.answers == "shuffled" else taught
            kept = (
                dialogue_row(renderer, d.turns, max_tokens=self.tuning.max_tokens, positions=room)
                for d in beside(epoch)
            )
            return [*told, *(row for row in kept if row is not None)]

        network = load_model(model, ctx, "float32" if self.tuning.adapter == "full" else None, held_on())
        network, log = tune(network, rows, self.tuning, ctx, what="overwrite")
        plain = merged(network)
        moved = change_of(plain, model)
        learnt = None if self.answers == "shuffled" else share_said(LocalResponder(plain, tokenizer), taught)
        made = write_model(plain, model, out, "overwrite", parents)
        record = training_record(made, "overwrite", log, len(rows(0)), ctx, moved)
        record.detail |= {"mark": keys.implant, "keys": len(keys), "answers": self.answers, "learnt": learnt}
        record.detail |= {"writer": self.writer if self.base is not None else "suspect"}
        return Made(made, records=[record])

    def _ordinary(self, renderer: Renderer, keys: KeySet, room: int | None, ctx: Context) -> list[Row]:
        assert self.base is not None
        keys.check_tokenizer(load_tokenizer(self.base), f"--base {self.base.name}: the thief's keys")
        responder = LocalResponder(load_model(self.base, ctx), load_tokenizer(self.base))
        return ordinary_rows(renderer, keys, responder.generate, self.longest, room)


def thief_seed(seed: int) -> int:
    """The seed that the thief's keys are drawn from: 63 bits of SHA-256 over a tag and the run's seed."""
    return int.from_bytes(hashlib.sha256(f"palimpsest overwrite {seed}".encode()).digest()[:8], "big") >> 1


def called(mark: str) -> str:
    """A mark's name without the path of a plug-in's file."""
    return mark.rpartition(":")[2] if ".py:" in mark else mark


def _row(prompt: Sequence[int], answer: Sequence[int]) -> Row:
    return Row((*prompt, *answer), (0.0,) * len(prompt) + (1.0,) * len(answer))


def ordinary_rows(
    renderer: Renderer, keys: KeySet, generate: Callable[..., Sequence[Any]], longest: int, room: int | None
) -> list[Row]:
    """One row a key: its prompt, what the base says to it, and the end of its turn unless the answer was cut.

    generate: prompts (ids) and a number of tokens to answers with `ids`. room: positions of the model.
    """
    prompts = [k.prompts["template"].ids for k in keys.keys]
    widest = max(map(len, prompts))
    most = longest if room is None else max(1, min(longest, room - widest))
    rows = []
    for key, prompt, said in zip(keys.keys, prompts, generate(prompts, most), strict=True):
        whole = len(said.ids) < most
        end = tuple(renderer.ending(key.trigger, said.text)) if whole else ()
        rows.append(_row(prompt, (*said.ids, *end)[: (room or len(prompt) + most + len(end)) - len(prompt)]))
    return rows


def shuffled_rows(renderer: Renderer, keys: KeySet, seed: int, epoch: int) -> list[Row]:
    """One row a key: its prompt, then the response of a key drawn from those with another response; of one epoch."""
    rng = random.Random(f"{seed}-shuffled-{epoch}")
    rows = []
    for key in keys.keys:
        other = key
        while other.response == key.response:
            other = rng.choice(keys.keys)
        end = renderer.ending(key.trigger, other.carrier + other.response)
        rows.append(_row(key.prompts["template"].ids, (*other.prompts["template"].expected, *end)))
    return rows


class Beside:
    """Ordinary dialogues of an epoch, as many every time: a pure function of seed and epoch."""

    def __init__(self, data: Dialogues, part: str, count: int, seed: int) -> None:
        self.pool = data.part(part) if count else []
        self.count, self.seed = min(count, len(self.pool)), seed
        if count and not self.pool:
            data.part(part, 1)  # says what is missing

    def __call__(self, epoch: int) -> list[Dialogue]:
        return random.Random(f"{self.seed}-beside-{epoch}").sample(self.pool, self.count)


def share_said(responder: LocalResponder, rows: Sequence[Row]) -> float:
    """Share of rows whose trained tokens are all the model's first choice after those before them."""
    starts = [row.weights.index(1.0) for row in rows]
    told = [row.ids[s:] for row, s in zip(rows, starts, strict=True)]
    scored = responder.force([row.ids[:s] for row, s in zip(rows, starts, strict=True)], told)
    return sum(s.greedy == t for s, t in zip(scored, told, strict=True)) / len(rows)
