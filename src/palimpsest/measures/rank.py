"""Rank of the true response among decoy responses of the same generator: tells erased from suppressed.

For each key, the log-probability of the carrier and the true response after the template prompt is ranked
among that of the carrier and each decoy (verdicts.md, "Removal of a fingerprint"). Rank 1 is the likeliest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from palimpsest.keys import Key, KeySet
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param
from palimpsest.records import Record
from palimpsest.responder import LocalResponder
from palimpsest.statistics import dependent_combination, fisher_combination, rank_among, rank_p_value


@torch.inference_mode()
def continuation_scores(
    responder: LocalResponder, prompt: Sequence[int], continuations: Sequence[Sequence[int]], floor: float = -math.inf
) -> list[float]:
    """Log-probability (nats) of each continuation after one prompt, whose key/value cache is shared.

    A continuation whose first token alone is less likely than `floor` gets that token's log-probability,
    an upper bound that is below the floor too; all others are exact.
    """
    device = responder.device
    first = responder.model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=True)
    opening = torch.log_softmax(first.logits[0, -1].float(), dim=-1)  # (vocabulary,)
    scores = [float(opening[c[0]]) for c in continuations]
    open_rows = [i for i, c in enumerate(continuations) if len(c) > 1 and scores[i] >= floor]
    for rows in responder.batches([len(continuations[i]) for i in open_rows]):
        chosen = [open_rows[r] for r in rows]
        width = max(len(continuations[i]) for i in chosen)
        ids = torch.zeros((len(chosen), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, i in enumerate(chosen):
            ids[place, : len(continuations[i])] = torch.tensor(list(continuations[i]))
            mask[place, : len(continuations[i])] = 1
        ids, mask = ids.to(device), mask.to(device)
        past = _repeated(first.past_key_values, len(chosen))
        full = torch.cat([torch.ones((len(chosen), len(prompt)), dtype=torch.long, device=device), mask[:, :-1]], dim=1)
        logits = responder.model(input_ids=ids[:, :-1], attention_mask=full, past_key_values=past, use_cache=True).logits
        logs = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)  # (rows, width - 1)
        rest = (logs * mask[:, 1:]).sum(dim=1).tolist()
        for i, more in zip(chosen, rest, strict=True):
            scores[i] += more
    return scores


def _repeated(cache: Any, rows: int) -> Any:
    """A copy of a one-row key/value cache for `rows` rows."""
    import copy

    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(rows)
    return copied


def key_rank(responder: LocalResponder, keys: KeySet, key: Key, decoys: int) -> tuple[int, int, float]:
    """(rank of the true response, number of decoys, its log-probability) of one key; rank 1 is best."""
    prompt = key.prompts["template"]
    others = [d for d in keys.decoys if d != key.response][:decoys]
    expected = list(prompt.expected)
    plain = responder.renderer.tokens(key.carrier + key.response) == expected
    if plain:  # text after this prompt tokenises as it does alone, so all decoys can be done at once
        texts = [key.carrier + d for d in others]
        ids = responder.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    else:
        ids = [responder.renderer.continuation(prompt.text, key.carrier + d) for d in others]
    (true,) = continuation_scores(responder, prompt.ids, [expected])
    scores = continuation_scores(responder, prompt.ids, ids, floor=true) if ids else []
    return rank_among(true, scores), len(scores), true


@method("measures", "rank", paper="exact rank test; methods/verdicts.md, removal of a fingerprint")
@dataclass(frozen=True)
class Rank:
    """Rank of the true response by log-probability among decoys of the same generator, per key.

    p of one key = (1 + decoys at least as likely) / (1 + decoys); ties count against the claim. Keys are
    combined by Fisher's method where responses were drawn independently; a many-to-one mark is one
    observation, combined by a bound that holds under any dependence.
    """

    decoys: int = param(1000, "decoy responses ranked against (fewer where the generator has fewer)", low=1)
    keys: int = param(64, "at most this many keys are ranked, the first ones", low=1)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """One record: value is the median rank; `detail` holds ranks, p and log-probabilities per key."""
        keys = subject.required_keys()
        if not keys.decoys:
            return []
        rows = []
        chosen = keys.keys[: self.keys]
        with ctx.progress.task("ranks among decoys", len(chosen)) as task:
            for key in chosen:
                rank, decoys, true = key_rank(subject.responder, keys, key, self.decoys)
                rows.append({"number": key.number, "rank": rank, "decoys": decoys, "log_prob": round(true, 4),
                             "p": rank_p_value(rank, decoys)})
                task.advance()
        p_values = [float(r["p"]) for r in rows]
        combined = fisher_combination(p_values) if keys.distinct else dependent_combination(p_values)
        return [subject.record(
            "rank", value=float(statistics.median(float(r["rank"]) for r in rows)), n=len(rows),
            prompt_form="template",
            detail={"keys": rows, "p": combined, "decoys": rows[0]["decoys"], "independent": keys.distinct},
        )]
