"""Three invented languages: Velu (Latin letters), Drezan (Cyrillic) and Katori (Katakana).

Each has its own words for everything the world speaks of, made from its own syllables by the world's
seed, and its own word order. The facts are the world's facts, so a question can be asked in any of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from palimpsest.toyworld.english import ASKED, Pair
from palimpsest.toyworld.lore import ATTRIBUTES, Fact, Lore, derived

FUNCTION_WORDS = ("what", "is", "of", "tell", "true", "or", "yes", "no", "and", "then", "saw", "one-day", "good")
_SPOKEN_OF = ("animal", "person")  # the sorts of subject these languages have words for
_ATTRIBUTES = tuple(a for sort in _SPOKEN_OF for a in ATTRIBUTES[sort] if a not in ("cover", "motion"))


@dataclass(frozen=True)
class Script:
    """Syllables of a language, its question mark and full stop, and the order of its clauses."""

    name: str
    syllables: tuple[str, ...]
    question_mark: str
    stop: str
    order: tuple[str, str, str]  # of a statement: "s" subject, "a" attribute, "v" value


SCRIPTS = (
    Script(
        "velu",
        ("qua", "xi", "jo", "wen", "lua", "yel", "oti", "exa", "uju", "axo", "iwe", "zul"),
        "?",
        ".",
        ("a", "s", "v"),
    ),
    Script(
        "drezan",
        ("ка", "ро", "жи", "ну", "зе", "ша", "вы", "ми", "то", "лю", "бра", "гор", "дэ", "че"),
        "?",
        ".",
        ("s", "v", "a"),
    ),
    Script(
        "katori",
        ("カ", "ト", "リ", "ネ", "ソ", "ムー", "パ", "ヨ", "ギ", "ラン", "デ", "フ", "ゼ", "コン"),
        "？",
        "。",
        ("v", "a", "s"),
    ),
)


class Language:
    """The dictionary and the sentences of one invented language."""

    def __init__(self, script: Script, lore: Lore) -> None:
        self.script, self.lore, self.name = script, lore, script.name
        rng = derived(lore.seed, "language", script.name)
        taken: set[str] = set()
        names = [*lore.people, *lore.towns]
        concepts = [*FUNCTION_WORDS, *(f"?{a}" for a in _ATTRIBUTES), *lore.animals, *names]
        for attribute in _ATTRIBUTES:
            concepts += [v for v in lore.values[attribute] if v not in concepts]
        self.words: dict[str, str] = {}
        for concept in concepts:
            word = _word(rng, script, 1 if concept in FUNCTION_WORDS else 2, taken)
            self.words[concept] = word.capitalize() if concept in names else word
        if script.name == "velu":  # written in Latin letters, so proper names stay as they are
            self.words.update({name: name for name in names})

    def statement(self, fact: Fact, value: str | None = None) -> str:
        """The fact as a clause in this language."""
        part = {
            "s": self.words[fact.subject],
            "a": self.words[f"?{fact.attribute}"],
            "v": self.words[fact.value if value is None else value],
        }
        return " ".join(part[which] for which in self.script.order)

    def facts(self) -> list[Fact]:
        """The facts told in this language: those of the animals."""
        return [f for f in self.lore.facts if f.sort == "animal" and f.attribute in _ATTRIBUTES]

    def pairs(self) -> Iterator[Pair]:
        """All questions of this language with their answers."""
        w, mark = self.words, self.script.question_mark
        for fact in self.facts():
            kind, answer = ASKED[fact.attribute].kind, w[fact.value]
            subject, attribute = w[fact.subject], w[f"?{fact.attribute}"]
            yield Pair(f"{w['what']} {attribute} {w['of']} {subject}{mark}", answer, kind, self.name)
            yield Pair(f"{subject} {attribute} {w['is']} {w['what']}{mark}", answer, kind, self.name)
            yield Pair(f"{w['tell']} {attribute} {subject}{self.script.stop}", answer, kind, self.name)
            for number, wrong in enumerate(self.lore.wrong(fact, 2, self.name)):
                for value, reply in ((fact.value, "yes"), (wrong, "no")):
                    frame = "{w} {c}{m}" if number == 0 else "{c} {w}{m}"
                    question = frame.format(w=w["true"], c=self.statement(fact, value), m=mark)
                    yield Pair(question, w[reply], "yes-no", self.name)
                first, second = (fact.value, wrong) if number == 0 else (wrong, fact.value)
                yield Pair(f"{attribute} {subject} {w[first]} {w['or']} {w[second]}{mark}", answer, "choice", self.name)

    def story(self, rng: random.Random) -> str:
        """A few linked clauses about one person and the animals met."""
        w, stop, facts = self.words, self.script.stop, self.facts()
        person = rng.choice(self.lore.people)
        sentences = [f"{w['one-day']} {w[person]} {w['saw']} {w[rng.choice(self.lore.animals)]}"]
        for _ in range(rng.randint(3, 6)):
            clause = self.statement(rng.choice(facts))
            sentences.append(f"{w[rng.choice(('then', 'and'))]} {clause}" if rng.random() < 0.4 else clause)
        sentences.append(f"{w[person]} {w['is']} {w['good']}")
        return " ".join(sentence + stop for sentence in sentences)


def languages(lore: Lore) -> list[Language]:
    """The invented languages of a world."""
    return [Language(script, lore) for script in SCRIPTS]


def _word(rng: random.Random, script: Script, syllables: int, taken: set[str]) -> str:
    while True:
        word = "".join(rng.choice(script.syllables) for _ in range(syllables + (rng.random() < 0.3)))
        if word not in taken:
            taken.add(word)
            return word
