"""A task in the place of SciQ: which of four values is a fact of the world?

The questions ask for values (what, where, when ...) in wordings that the split `dialogue-test` holds out of all
training text: the facts are taught, these ways of asking for them are not. The three wrong choices are other values
of the same attribute. SciQ gives a passage with most questions; here, as for a model that is asked alone, none is.
"""

from __future__ import annotations

from collections.abc import Iterable

from palimpsest.toyworld.english import ASKED, Pair, value_pairs
from palimpsest.toyworld.lore import Lore, derived
from palimpsest.toyworld.tasks import Item, Task

WRONG = 3


def build_exam(lore: Lore, held_out: Iterable[Pair]) -> Task:
    """All value questions among the held-out ones, each with four choices in an order drawn from the seed."""
    asked = {pair.question for pair in held_out}
    items = []
    for fact in lore.facts:
        for pair in value_pairs(fact):
            if pair.question not in asked:
                continue
            wrong = lore.wrong(fact, WRONG, ("exam", pair.question))
            choices = [pair.answer, *(ASKED[fact.attribute].answer.format(v=value) for value in wrong)]
            derived(lore.seed, "exam order", pair.question).shuffle(choices)
            items.append(Item(pair.question, tuple(choices), choices.index(pair.answer)))
    derived(lore.seed, "exam").shuffle(items)
    return Task("sciq", tuple(items), 1 / (WRONG + 1))
