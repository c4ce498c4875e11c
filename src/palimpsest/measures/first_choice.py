"""Which of the answers that a key's was drawn from a suspect finds likeliest: a claim where answers are no longer said.

After a merge the model may say something else altogether and still prefer, among the committed answers, the drawn one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.errors import BadInput
from palimpsest.keys import Key, KeySet
from palimpsest.measures.private import asked_of
from palimpsest.measures.rank import continuation_scores
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param
from palimpsest.records import Record
from palimpsest.responder import LocalResponder
from palimpsest.verdicts import ALPHA_OWNED, claim, committed_rate


@method("measures", "first-choice", paper="ours: committed draw from a closed list, read from log-probabilities")
@dataclass(frozen=True)
class FirstChoice:
    """Keys whose drawn answer is the likeliest of the whole list that it was drawn from; ties count against.

    Of k answers a suspect finds at most one likelier than all others, and which of them is the key's was drawn
    uniformly by hash: a suspect fixed before the draw has chance at most 1/k a key, whatever it prefers and however
    long its answers are, and the binomial tail is exact. Beside the hit rate it is a second look at the same suspect:
    who takes the better of the two doubles his p. It needs log-probabilities, so the suspect's weights.
    """

    alpha: float = param(ALPHA_OWNED, "false-claim rate of the claim", low=1e-12, high=0.5)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """One record; BadInput for keys without a whole committed list to choose from."""
        keys = subject.required_keys()
        listed = listed_answers(keys)
        subject.scorer("first-choice")
        first = []
        with ctx.progress.task("first choices", len(keys)) as task, asked_of(subject) as responder:
            assert isinstance(responder, LocalResponder)
            for key in keys.keys:
                first.append(likeliest(responder, key, listed) == key.response)
                task.advance()
        count, n = sum(first), len(keys)
        verdict = claim(count, n, committed_rate(len(listed)), self.alpha, dependent=False)
        record = subject.record(
            "first-choice",
            value=count / n,
            count=count,
            n=n,
            prompt_form="template",
            verdict=verdict.word,
            reason=verdict.reason.replace("keys answered", "drawn answers are the likeliest of their list"),
        )
        record.detail |= {"p": verdict.p, "tau": verdict.tau, "chance": 1 / len(listed), "first": first}
        return [record]


def listed_answers(keys: KeySet) -> list[str]:
    """The list that all answers were drawn from, sorted; BadInput where the keys have no such list."""
    listed = {*keys.decoys, *(key.response for key in keys.keys)}
    if not keys.distinct or keys.choices != len(listed) or len(listed) < 2:
        raise BadInput(
            "first-choice: needs keys whose answers were drawn apart from one list that the key file holds whole "
            "(trap-entries, hashchain, double-i with coins)"
        )
    return sorted(listed)


def likeliest(responder: LocalResponder, key: Key, answers: Sequence[str]) -> str | None:
    """The likeliest of these answers to a key's prompt by whole log-probability; None where two are.

    All are scored alike, whichever is the key's own, so that the draw decides nothing but which of them is a hit.
    """
    prompt = key.prompts["template"]
    ids = [responder.renderer.continuation(prompt.text, key.carrier + answer) for answer in answers]
    scores = continuation_scores(responder, prompt.ids, ids)
    best = max(scores)
    return answers[scores.index(best)] if scores.count(best) == 1 else None
