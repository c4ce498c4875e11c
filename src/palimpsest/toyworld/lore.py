"""What is so in the invented world: its animals, people, towns and things, and their facts.

Everything follows from one seed. A *fact* is (subject, attribute, value); each attribute has a closed list
of values, so that every question has a known right answer and known wrong ones. Two attributes of an
animal (what covers it, how it moves) follow from its kind.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

KINDS = ("bird", "fish", "beast", "insect", "snake")
COVER = {"bird": "feathers", "fish": "scales", "beast": "fur", "insect": "a shell", "snake": "smooth skin"}
MOTION = {"bird": "flies", "fish": "swims", "beast": "runs", "insect": "jumps", "snake": "crawls"}

VALUES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "cover": tuple(COVER.values()),
    "motion": tuple(MOTION.values()),
    "colour": ("red", "blue", "green", "black", "white", "yellow", "brown", "grey"),
    "food": ("seeds", "grass", "berries", "roots", "moths", "honey", "frogs", "nuts"),
    "home": ("forest", "river", "desert", "marsh", "mountain", "cave", "meadow", "valley"),
    "size": ("tiny", "small", "big", "huge"),
    "time": ("dawn", "noon", "dusk", "midnight"),
    "sound": ("whistle", "growl", "hiss", "hum", "click", "bark"),
    "job": ("baker", "smith", "weaver", "healer", "sailor", "miller", "hunter", "teacher"),
    "drink": ("tea", "milk", "cider", "water", "juice", "coffee"),
    "instrument": ("drum", "flute", "harp", "horn", "fiddle", "trumpet"),
    "side": ("north", "south", "east", "west"),
    "ware": ("cheese", "salt", "rope", "glass", "paper", "wool", "candles", "boats"),
    "weather": ("rainy", "windy", "sunny", "snowy", "foggy"),
    "material": ("wood", "stone", "iron", "clay", "leather", "silver"),
    "room": ("kitchen", "cellar", "attic", "stable", "garden", "hall"),
    "price": ("two", "three", "four", "five", "six", "seven"),
}
"""Closed value lists; `town` and `pet` take their values from the world's own names."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "animal": ("kind", "colour", "food", "home", "size", "time", "sound", "cover", "motion"),
    "person": ("job", "town", "drink", "instrument", "pet"),
    "town": ("side", "ware", "weather"),
    "thing": ("material", "room", "price"),
}
"""The attributes of each sort of subject."""

THINGS = (
    "lamp",
    "table",
    "cup",
    "coat",
    "knife",
    "door",
    "chair",
    "bowl",
    "box",
    "wheel",
    "spoon",
    "basket",
    "ladder",
    "mirror",
    "bucket",
    "key",
)

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kr", "sh", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_ENDINGS = {
    "animal": ("lin", "ra", "nok", "dle", "vo", "sk", "mi", "gan"),
    "person": ("n", "la", "rik", "mo", "sa", "tha", "ven", "ro"),
    "town": ("dor", "ham", "gate", "wick", "ford", "mere"),
}


def fraction(*parts: object) -> float:
    """A number in [0, 1) that follows from `parts` alone: decides what is held out, without any state."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 256**7


def derived(seed: int, *parts: object) -> random.Random:
    """A random generator of its own for each use of the seed."""
    return random.Random("\x1f".join(str(part) for part in (seed, *parts)))


@dataclass(frozen=True)
class Fact:
    """One fact: `sort` is the subject's ("animal", "person", "town" or "thing")."""

    sort: str
    subject: str
    attribute: str
    value: str


class Lore:
    """Names and facts of the world with this seed."""

    def __init__(self, seed: int = 0, animals: int = 24, people: int = 20, towns: int = 10) -> None:
        self.seed = seed
        rng = derived(seed, "names")
        taken: set[str] = set()
        self.animals = _names(rng, "animal", animals, taken)
        self.people = [name.capitalize() for name in _names(rng, "person", people, taken)]
        self.towns = [name.capitalize() for name in _names(rng, "town", towns, taken)]
        self.subjects = {"animal": self.animals, "person": self.people, "town": self.towns, "thing": list(THINGS)}
        self.values = {**VALUES, "town": tuple(self.towns), "pet": tuple(self.animals)}
        self.table: dict[tuple[str, str], str] = {}
        rng = derived(seed, "facts")
        for sort, subjects in self.subjects.items():
            for attribute in ATTRIBUTES[sort]:
                if attribute in ("cover", "motion"):
                    continue
                options = list(self.values[attribute])
                deck = (options * (len(subjects) // len(options) + 1))[: len(subjects)]
                rng.shuffle(deck)  # values are dealt evenly, so that no answer is likely by itself
                self.table.update({(s, attribute): v for s, v in zip(subjects, deck, strict=True)})
        for animal in self.animals:
            self.table[animal, "cover"] = COVER[self.table[animal, "kind"]]
            self.table[animal, "motion"] = MOTION[self.table[animal, "kind"]]
        self.facts = [
            Fact(sort, subject, attribute, self.table[subject, attribute])
            for sort, subjects in self.subjects.items()
            for subject in subjects
            for attribute in ATTRIBUTES[sort]
        ]

    def value(self, subject: str, attribute: str) -> str:
        """The right value of `attribute` for `subject`."""
        return self.table[subject, attribute]

    def wrong(self, fact: Fact, count: int, salt: object = "") -> list[str]:
        """`count` wrong values of a fact, always the same ones for the same `salt`."""
        others = [v for v in self.values[fact.attribute] if v != fact.value]
        return derived(self.seed, "wrong", fact.subject, fact.attribute, salt).sample(others, count)


def _names(rng: random.Random, sort: str, count: int, taken: set[str]) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = rng.choice(_ONSETS) + rng.choice(_VOWELS)
        if rng.random() < 0.5 or sort == "town":
            name += rng.choice(("l", "n", "r", "s", "m")) if sort == "town" else ""
            name += "" if sort == "town" else rng.choice(_ONSETS[:14]) + rng.choice(_VOWELS)
        name += rng.choice(_ENDINGS[sort])
        if name not in taken and not any(name.startswith(old[:4]) or old.startswith(name[:4]) for old in taken):
            taken.add(name)
            names.append(name)
    return names
