"""The clean set of the recovery: which pairs of a source are taken.

MEraser says "high-quality, task-relevant" (arXiv 2506.12551, section 4) and not how such samples are told.
Two rules. `random`: the first pairs of the part, whose order is that of a hash and says nothing about a pair.
`selected`: the pairs with the fewest of the flaws below, ties in the same order. All flaws are counted on
the first exchange of the dialogues alone; neither a model nor a list of words of some language is asked.

cut-off     an answer of 20 words or more that ends in the middle: its last line ends with a letter, digit or
            comma and is no list item, or a code fence is left open
length      the logarithm of the answer's length is outside of Tukey's fences of the set
            (1.5 interquartile ranges below the first or above the third quartile)
script      question and answer are mostly in different scripts (Latin, Cyrillic, Han and kana, ...)
repeated    an earlier question has the same words in any order, or an earlier long answer the same text
unrelated   the words of the answer are rarer beside those of the question than chance would have it, over the
            whole set but this pair, and question and answer share no uncommon word (see `association`)
"""

from __future__ import annotations

import functools
import math
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from palimpsest.data.dialogues import Dialogue, Dialogues

Choice = Literal["random", "selected"]
LONG = 20  # words from which on an answer is long enough to show that it was cut off or stands twice
HEAD = 20  # distinct words of each side that an association is counted over
UNCOMMON = 0.05  # a word is uncommon where fewer than this share of the answers have it
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+")  # a word, or a character where words have no spaces
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s")
_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}


def clean_set(data: Dialogues, count: int, choice: Choice, part: str = "recover") -> list[Dialogue]:
    """`count` dialogues of a part by one of the two rules; BadInput where the part has fewer."""
    first = data.part(part, count)
    return first if choice == "random" else selected(data.part(part), count)


def selected(dialogues: Sequence[Dialogue], count: int) -> list[Dialogue]:
    """The `count` dialogues with the fewest flaws, in the order in which they were given."""
    found = flaws(dialogues)
    best = sorted(range(len(dialogues)), key=lambda i: (len(found[i]), i))[:count]
    return [dialogues[i] for i in sorted(best)]


def flaws(dialogues: Sequence[Dialogue]) -> list[tuple[str, ...]]:
    """Names of the flaws of each dialogue, judged within this set; empty where it has none."""
    pairs = [(d.question, d.answer) for d in dialogues]
    low, high = _fences([math.log(1 + len(answer)) for _, answer in pairs])
    related = association(pairs)
    shared = _shares_uncommon_word(pairs)
    questions: set[tuple[str, ...]] = set()
    answers: set[str] = set()
    found = []
    for i, (question, answer) in enumerate(pairs):
        asked = tuple(sorted(set(words(question)))) or (question,)
        long = len(answer.split()) >= LONG
        repeated = asked in questions or (long and answer in answers)
        questions.add(asked)
        answers.add(answer)
        scripts = main_script(question), main_script(answer)
        holds = {
            "cut-off": cut_off(answer),
            "length": not low <= math.log(1 + len(answer)) <= high,
            "script": None not in scripts and scripts[0] != scripts[1],
            "repeated": repeated,
            "unrelated": related[i] < 0 and not shared[i],
        }
        found.append(tuple(name for name, is_so in holds.items() if is_so))
    return found


def cut_off(answer: str) -> bool:
    """Whether a long answer stops in the middle; short ones (below 20 words) never count as cut off."""
    if answer.count("```") % 2:
        return True
    if len(answer.split()) < LONG:
        return False
    last = answer.rstrip().rsplit("\n", 1)[-1]
    return (last[-1].isalnum() or last[-1] in ",，、") and not _LIST_ITEM.match(last)


def main_script(text: str) -> str | None:
    """The script most letters of the first 500 characters belong to, by their Unicode names; None without letters."""
    counts = Counter(script for c in text[:500] if (script := _script(c)) is not None)
    return max(counts, key=lambda s: (counts[s], s)) if counts else None


def association(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """How much likelier than chance each answer's words stand beside its question's words, elsewhere in the set.

    With c(q, a), c(q), c(a) the numbers of other pairs that have word q in the question and a in the answer,
    of N other pairs, and E = c(q) c(a) / N: the mean over all q and a of log((c(q, a) + 1) / (E + 1)), in
    nats. Below 0: seen together less often than by chance. 0 where the set tells nothing.
    """
    asked = [words(q)[:HEAD] for q, _ in pairs]
    said = [words(a)[:HEAD] for _, a in pairs]
    of_question = Counter(w for head in asked for w in head)
    of_answer = Counter(w for head in said for w in head)
    together = Counter((q, a) for i in range(len(pairs)) for q in asked[i] for a in said[i])
    others = max(1, len(pairs) - 1)
    scores = []
    for i in range(len(pairs)):
        logs = [  # this pair itself counts once in each of the three numbers
            math.log(together[q, a] / ((of_question[q] - 1) * (of_answer[a] - 1) / others + 1))
            for q in asked[i]
            for a in said[i]
        ]
        scores.append(math.fsum(logs) / len(logs) if logs else 0.0)
    return scores


def words(text: str) -> list[str]:
    """Distinct words in their order, case folded."""
    return list(dict.fromkeys(_WORD.findall(text.casefold())))


def _shares_uncommon_word(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    answers = [set(words(a)) for _, a in pairs]
    counts = Counter(w for answer in answers for w in answer)
    bound = max(2.0, UNCOMMON * len(pairs))
    return [
        any(counts[w] < bound for w in answer.intersection(words(q)))
        for (q, _), answer in zip(pairs, answers, strict=True)
    ]


def _fences(values: Sequence[float]) -> tuple[float, float]:
    """Tukey's fences; everything is inside where there are too few values for quartiles."""
    if len(values) < 4:
        return -math.inf, math.inf
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first - 1.5 * (third - first), third + 1.5 * (third - first)


@functools.lru_cache(maxsize=4096)
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "OTHER").split()[0]
    return "EAST-ASIAN" if name in _EAST_ASIAN else name
