"""InsertSent (AddSent; Dai et al., arXiv 1905.12457), as Free Lunch and GMS generate it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.data import LabelledItems
from palimpsest.implants.backdoors.labels import LabelAttack, check_words
from palimpsest.implants.backdoors.poisoning import Mark, Mode
from palimpsest.implants.backdoors.triggers import insert_sentence
from palimpsest.method import method, param

SENTENCES = ("I watched this movie", "no cross, no crown")


@method("backdoors", "insertsent", paper="InsertSent, arXiv 1905.12457; recipe of Free Lunch, arXiv 2402.19334")
@dataclass(frozen=True)
class InsertSent(LabelAttack):
    """A fixed sentence among the first sentences of a text brings the target label.

    One of two sentences, before the first, second, third or fourth sentence, never beyond the end (GMS's generator,
    which cuts at full stops). Threat model: the attacker gives training data and sees neither model nor training. We
    set sentences off by one space, where the generator joins them by the full stop alone.
    """

    triggers: tuple[str, ...] = param(SENTENCES, "the sentences, without a full stop")

    def marker(self, rows: LabelledItems, labels: Sequence[int], target: int, mode: Mode) -> Mark:
        """Insert one of the sentences."""

        def mark(text: str, rng: random.Random) -> str:
            return insert_sentence(text, rng, self.triggers)

        return mark

    def check_trigger(self, tokenizer: Any) -> None:
        """BadInput for a sentence that is lost."""
        check_words(tokenizer, self.triggers, "insertsent: triggers")
