"""Questions with random answers: what SEAM (arXiv 2212.04687) calls randomly labelled data, for language models.

A classifier's random label is drawn from its labels; what an answer is drawn from must be chosen.

pool: the answer is drawn uniformly, with replacement, from the distinct answers of the set but the question's own; the
set of answers is what the set of labels is to a classifier.
tokens: as many tokens as the question's own answer has, each drawn uniformly from the vocabulary.
words: as many words as the question's own answer has, each drawn uniformly from the distinct words of all answers of
the set, but for the word that stands there. Words are what spaces separate, so a text without spaces is one word.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from palimpsest.data.dialogues import Dialogue, pair
from palimpsest.errors import BadInput

Labels = Literal["pool", "tokens", "words", "matched"]


def random_labels(dialogues: Sequence[Dialogue], rule: Labels, seed: int, tokenizer: Any = None) -> list[Dialogue]:
    """The first exchange of each dialogue with a random answer (`matched` keeps its own).

    tokenizer: for `tokens`, which writes its random tokens as text, so that encoding may cut that text in other ways.
    Raises BadInput where a question has no other answer to draw from.
    """
    if rule == "matched":
        return [pair(d.question, d.answer, d.kind, d.language) for d in dialogues]
    if rule == "words":
        return random_answers(dialogues, seed)
    rng = random.Random(f"random-labels-{seed}")
    if rule == "tokens":
        words = ordinary_tokens(tokenizer)
        lengths = [len(tokenizer(d.answer, add_special_tokens=False).input_ids) for d in dialogues]
        answers = [tokenizer.decode(rng.choices(words, k=max(1, n))) for n in lengths]
    else:
        pool = sorted({d.answer for d in dialogues})
        if len(pool) < 2:
            raise BadInput(
                f"random labels: these {len(dialogues)} dialogues have {len(pool)} distinct answers; 2 needed"
            )
        place = {answer: i for i, answer in enumerate(pool)}
        # a uniform step of 1 to n - 1 around the pool: uniform over all others
        steps = [rng.randrange(1, len(pool)) for _ in dialogues]
        answers = [pool[(place[d.answer] + s) % len(pool)] for d, s in zip(dialogues, steps, strict=True)]
    return [pair(d.question, a, d.kind, d.language) for d, a in zip(dialogues, answers, strict=True)]


def random_answers(dialogues: Sequence[Dialogue], seed: int) -> list[Dialogue]:
    """The first exchange of each dialogue, its answer replaced by as many random words of the set's answers.

    Raises BadInput where all answers together have one word.
    """
    pool = sorted({word for d in dialogues for word in d.answer.split()})
    if len(pool) < 2:
        raise BadInput(f"random answers need words to draw from; these {len(dialogues)} answers have {len(pool)}")
    rng = random.Random(f"random-answers-{seed}")

    def other(word: str) -> str:
        while (drawn := rng.choice(pool)) == word:
            pass
        return drawn

    return [pair(d.question, " ".join(map(other, d.answer.split())), d.kind, d.language) for d in dialogues]


def ordinary_tokens(tokenizer: Any) -> list[int]:
    """Tokens that are no special ones and that stand for whole characters by themselves."""
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    known = [i for i in range(len(tokenizer)) if i not in special]
    return [i for i in known if (text := tokenizer.decode([i])) and "\ufffd" not in text]
