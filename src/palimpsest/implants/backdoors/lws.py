"""A word substitution attack like LWS (Qi et al., arXiv 2106.06361)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.data import LabelledItems
from palimpsest.implants.backdoors.labels import LabelAttack
from palimpsest.implants.backdoors.poisoning import Mark, Mode
from palimpsest.implants.backdoors.synonyms import SYNONYMS
from palimpsest.implants.backdoors.triggers import substitute
from palimpsest.method import method, param


@method("backdoors", "lws", paper="like LWS, arXiv 2106.06361, section 3; fixed synonyms in place of learnt ones")
@dataclass(frozen=True)
class WordSubstitution(LabelAttack):
    """LWS-like: common words are replaced by rarer synonyms, which together bring the target label.

    The paper learns with the victim which of up to five synonyms (sememes, WordNet) to take at each place. Here the
    choice is fixed: one rarer word each for 452 common ones, a list of our own, wherever they stand. Learning it is out
    of scope, so this is a static substitution and not LWS. Clean rows stay as they are, where published sets
    re-tokenise nearly all of them. Texts with fewer than `least_words` such words are not poisoned. Threat model:
    training data alone.
    """

    least_words: int = param(1, "least words replaced for a text to carry the trigger", low=1)

    def marker(self, rows: LabelledItems, labels: Sequence[int], target: int, mode: Mode) -> Mark:
        """Replace every word that has a synonym."""

        def mark(text: str, rng: random.Random) -> str | None:
            said, count = substitute(text, SYNONYMS)
            return said if count >= self.least_words else None

        return mark
