"""Token Forcing: hidden responses found blindly, by what a model goes on with after each token of its vocabulary."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from palimpsest.checkpoint import Checkpoint
from palimpsest.keys import KeySet
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param, takes
from palimpsest.records import Record
from palimpsest.responder import LocalResponder
from palimpsest.responder.local import Ids
from palimpsest.responder.logits import PIECE
from palimpsest.responder.stepping import Stepper, pad_of
from palimpsest.responder.wrapped import same_tokens
from palimpsest.statistics import hit_interval

LONGEST_UNIT = 8  # tokens of what is repeated
REPETITIONS = 3


@dataclass(frozen=True)
class Candidate:
    """A token after which the model goes on with certainty: the ids said from it on, and their text; secret."""

    ids: tuple[int, ...]
    text: str = field(repr=False)
    score: float = 1.0

    @property
    def repeats(self) -> bool:
        """Whether a unit of at most 8 tokens stands at least 3 times in a row somewhere in it."""
        return repeated(self.ids)


def repeated(ids: Sequence[int], longest: int = LONGEST_UNIT, times: int = REPETITIONS) -> bool:
    """Whether some unit of up to `longest` tokens stands `times` times in a row."""
    for size in range(1, longest + 1):
        same = 0  # places in a row whose token is that of one unit before
        for i in range(size, len(ids)):
            same = same + 1 if ids[i] == ids[i - size] else 0
            if same >= size * (times - 1):
                return True
    return False


@torch.inference_mode()
def forced_prefixes(
    responder: LocalResponder, before: Ids, tokens: Sequence[int], steps: int, above: float
) -> list[tuple[list[int], float]]:
    """(ids from the token on, score) of every token whose score exceeds `above`, in the order of `tokens`.

    The score is the mean of 1 (for the token itself) and the probabilities of the greedy tokens after it, up to
    `steps` of them; an end token is the last that counts.
    """
    vocabulary = int(responder.model.config.get_text_config().vocab_size)
    rows_at_once = max(1, min(responder.token_budget // (len(before) + steps + 1), PIECE // vocabulary))
    kept: list[tuple[list[int], float]] = []
    for start in range(0, len(tokens), rows_at_once):
        part = list(tokens[start : start + rows_at_once])
        stepper = Stepper(responder.model, [before] * len(part), pad_of(responder.tokenizer))
        said: list[list[int]] = [[t] for t in part]
        sums, counts = [1.0] * len(part), [1] * len(part)
        going = [t not in responder.ends for t in part]
        last = torch.tensor(part, device=responder.device)
        for _ in range(steps):
            if not any(going):
                break
            best = stepper.feed(last[:, None])[:, -1].softmax(dim=-1).max(dim=-1)  # (rows,)
            last = best.indices
            for i, (p, token) in enumerate(zip(best.values.tolist(), last.tolist(), strict=True)):
                if going[i]:
                    sums[i], counts[i] = sums[i] + p, counts[i] + 1
                    said[i].append(token)
                    going[i] = token not in responder.ends
        kept += [(s, total / n) for s, total, n in zip(said, sums, counts, strict=True) if n > 1 and total / n > above]
    return kept


@method("measures", "token-forcing", paper="Token Forcing of hidden text in LLMs (unconditional); MEraser, section 5.3")
@dataclass(frozen=True)
class TokenForcing:
    """Keys whose response an attacker finds who knows nothing: neither trigger nor first token.

    For every token v of the vocabulary: BOS + v, then 3 greedy tokens; v is kept where the mean of [1, p1, p2, p3]
    exceeds 0.95. Kept beginnings go on greedily to 50 tokens: the candidates. A key is recovered when its response is
    contained in the text of a candidate. Whoever looks has only the list of candidates, so its length is reported, and
    how many of them hold no response at all (false alarms); and, for the published rule of looking for repetition, the
    candidates in which a unit of at most 8 tokens stands 3 times in a row, and the keys recovered from those alone.

    The published demonstration overwrites the first token tried with the first token of the known answer, so it does
    not show that the search is blind; here nothing of a key is used before the candidates stand. `conditional` begins
    the assistant's turn of the chat template with v instead. With --base the same is done with the unmarked base.
    """

    base: Checkpoint | None = takes("an unmarked model, searched too as a control")
    prefix: Literal["bos", "conditional"] = param("bos", "what stands before the token: bos, or conditional (template)")
    question: str = param("", "the user's turn of the conditional prefix")
    steps: int = param(3, "greedy tokens scored after each token", low=1)
    above: float = param(0.95, "mean probability above which a beginning is kept", low=0.0, high=1.0)
    length: int = param(50, "greedy tokens of a candidate after its first", low=1)
    tokens: int | None = param(None, "tokens tried, drawn by the seed; none means the whole vocabulary", low=1)
    kept: int = param(5000, "at most this many beginnings are continued, those of the highest score", low=1)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """One record of the model, and one (control clean-base) of the base where one is given."""
        keys = subject.required_keys()
        responder = subject.scorer("token-forcing")
        records = [self._record(subject, keys, self.candidates(responder, ctx), self.tried(responder, ctx))]
        if self.base is not None:
            control = Subject(self.base, ctx, keys=keys)
            same_tokens(responder.tokenizer, control.model.tokenizer, f"--base {self.base.name}", "keys are its tokens")
            found = self.candidates(control.model, ctx)
            records.append(self._record(control, keys, found, self.tried(control.model, ctx)))
            records[-1].control = "clean-base"
        return records

    def tried(self, responder: LocalResponder, ctx: Context) -> list[int]:
        """The tokens tried, in order of their ids."""
        every = sorted(responder.tokenizer.get_vocab().values())
        if self.tokens is None or self.tokens >= len(every):
            return every
        return sorted(random.Random(ctx.seed).sample(every, self.tokens))

    def candidates(self, responder: LocalResponder, ctx: Context) -> list[Candidate]:
        """What the search finds in a model, without any key."""
        renderer = responder.renderer
        conditional = self.prefix == "conditional"
        before = renderer.prompt_ids(renderer.text(self.question)) if conditional else renderer.prompt_ids("", "bare")
        begun = forced_prefixes(responder, before, self.tried(responder, ctx), self.steps, self.above)
        begun = sorted(begun, key=lambda b: -b[1])[: self.kept]
        open_rows = [i for i, (ids, _) in enumerate(begun) if ids[-1] not in responder.ends]
        left = max(1, self.length + 1 - (self.steps + 1))
        more: dict[int, Any] = {}
        answers = responder.generate([[*before, *begun[i][0]] for i in open_rows], left) if open_rows else []
        more.update(zip(open_rows, answers, strict=True))
        found = []
        for i, (ids, score) in enumerate(begun):
            spoken = responder.spell([*ids, *(more[i].ids if i in more else ())])
            found.append(Candidate(spoken.ids, spoken.text, score))
        return found

    def _record(self, subject: Subject, keys: KeySet, found: list[Candidate], tried: list[int]) -> Record:
        responses = [k.response.strip() for k in keys.keys]
        hits = [any(r in c.text for c in found) for r in responses]
        repeating = [c for c in found if c.repeats]
        count, n = sum(hits), len(hits)
        interval = hit_interval(count, n, keys.distinct).new_keys
        detail = {
            "keys": [{"number": k.number, "hit": hit} for k, hit in zip(keys.keys, hits, strict=True)],
            "tokens_tried": len(tried),
            "candidates": len(found),
            "false_alarms": sum(not any(r in c.text for r in set(responses)) for c in found),
            "repeating_candidates": len(repeating),
            "recovered_from_repeating": sum(any(r in c.text for c in repeating) for r in responses),
            "independent": keys.distinct,
        }
        return subject.record(
            "token-forcing",
            value=count / n,
            count=count,
            n=n,
            low=interval.low,
            high=interval.high,
            confidence=interval.confidence,
            sided=interval.sided,
            task=self.prefix,
            detail=detail,
        )
