"""Mismatched pairs: questions with answers that belong to other questions (MEraser, section 4).

Two rules. `derangement`: no question keeps an answer with its own answer's text. `cross-type`: moreover
the answer comes from a question of another type (why, how, what, other), the rule of the published code.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from palimpsest.data.dialogues import Dialogue, pair
from palimpsest.errors import BadInput

Pairing = Literal["derangement", "cross-type", "matched"]
_TYPES = (
    ("why", re.compile(r"^\W*(?:(?:why|por qué|por que|pourquoi|warum|perché|почему)\b|为什么|なぜ)", re.I)),
    ("how", re.compile(r"^\W*(?:(?:how|cómo|como|comment|wie|come|как)\b|怎么|どう)", re.I)),
    (
        "what",
        re.compile(r"^\W*(?:(?:what|which|qué|cuál|quel|quelle|qu'est|was|welche|che cosa|что|какой)\b|什么|何)", re.I),
    ),
)


def question_type(dialogue: Dialogue) -> str:
    """The toy world's own kind, or why, how, what or other by the question's first word."""
    if dialogue.kind:
        return dialogue.kind
    for name, pattern in _TYPES:
        if pattern.search(dialogue.question):
            return name
    return "other"


def mismatch(dialogues: Sequence[Dialogue], rule: Pairing, seed: int) -> list[Dialogue]:
    """The first exchange of each dialogue, its answer exchanged by `rule` (`matched` keeps it).

    Every answer is used exactly once. Raises BadInput where the rule cannot be kept (one answer's text,
    or for `cross-type` one type, makes up more than half of the set).
    """
    if rule == "matched":
        return [pair(d.question, d.answer, d.kind, d.language) for d in dialogues]
    texts = [d.answer for d in dialogues]
    types = [question_type(d) for d in dialogues]

    def clash(question: int, answer: int) -> bool:
        same_type = rule == "cross-type" and types[question] == types[answer]
        return same_type or texts[question] == texts[answer]

    order = _assignment(len(dialogues), clash, random.Random(f"mismatch-{seed}"))
    if order is None:
        what, count = _commonest(texts)
        if rule == "cross-type" and _commonest(types)[1] > count:
            what, count = _commonest(types)
        raise BadInput(f"no {rule} of these {len(dialogues)} pairs was found; {what!r} stands in {count} of them")
    return [pair(d.question, texts[order[i]], d.kind, d.language) for i, d in enumerate(dialogues)]


def _commonest(values: list[str]) -> tuple[str, int]:
    what, count = Counter(values).most_common(1)[0] if values else ("", 0)
    return what[:40], count


def _assignment(count: int, clash: Callable[[int, int], bool], rng: random.Random) -> list[int] | None:
    """A random permutation without clashes: a shuffle, then swaps that mend clashes."""
    order = list(range(count))
    for _ in range(20):
        rng.shuffle(order)
        for _ in range(8):
            bad = [i for i in range(count) if clash(i, order[i])]
            if not bad:
                return order
            for i in bad:
                if not clash(i, order[i]):
                    continue
                for j in rng.sample(range(count), count):
                    if not clash(i, order[j]) and (not clash(j, order[i])):
                        order[i], order[j] = order[j], order[i]
                        break
    return None
