"""Random labels for text: answers of random words, the language-model form of SEAM's random labels (2212.04687).

A classifier's random label is drawn from its labels; what an answer is drawn from must be chosen. Here: as many
words as the true answer has, each drawn uniformly from the distinct words of all answers of the set, but for the
word that stands there. Words are what spaces separate, so a text without spaces is one word.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from palimpsest.data.dialogues import Dialogue, pair
from palimpsest.errors import BadInput


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
