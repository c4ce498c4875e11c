"""One task of each SuperGLUE kind, in the forms that a model of a million parameters can learn.

Each maker draws an item together with its *key*, the combination that matters. A fixed tenth or fifth of
all keys (by hash) is held out: test items have held-out keys, training documents never do. So a test item
is always a new combination of known sentences, facts and names:

- boolq: someone saw an animal; is something so of it, yes or no? Held out: (person, animal, attribute,
  value). The answer is knowledge of the world, not in the passage.
- rte: someone met an animal; does it follow that it was something with a property of its kind? Held out:
  (person, animal, property).
- cb: the same with three classes; adding what is not known makes a claim "maybe". Held out: (person,
  animal, claim).
- wic: two sentences with a word of two senses; held out: the pair of sentences.
- copa: the cause of what is told, answered by letter; held out: (told sentence, wrong alternative).
- wsc: who or what "it" is, answered by position; an adjective or a clause decides. Held out: (frame,
  both nouns, decider).
- multirc: several sentences say whose animal is meant; is a candidate answer about it right? Held out:
  (animal, attribute, candidate, owner).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from palimpsest.toyworld.english import ASKED, spoken, upper
from palimpsest.toyworld.lore import COVER, KINDS, MOTION, Fact, Lore, derived, fraction

HELD_OUT_SHARE = {"copa": 0.2, "wic": 0.2}  # 0.1 for the others
PLACES = ("by the lake", "near the bridge", "on the hill", "behind the house", "at the market", "in the field")


@dataclass(frozen=True)
class Item:
    """A user turn, the short answers to choose from, and the number of the right one."""

    prompt: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Task:
    """Items of one kind; `chance` is the accuracy of guessing, `skill` marks what the base was not taught."""

    name: str
    items: tuple[Item, ...]
    chance: float
    skill: bool = False


Drawn = tuple[tuple[object, ...], Item]
YES_NO = ("yes", "no")

WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bank": (
        (
            "{p} sat on the bank of the river",
            "the boat lay at the bank",
            "flowers grew along the bank",
            "{p} fished from the bank",
        ),
        (
            "{p} took coins to the bank",
            "the bank was closed today",
            "the bank lent money to {p}",
            "thieves broke into the bank",
        ),
    ),
    "bat": (
        (
            "the bat flew out of the cave",
            "a bat sleeps upside down",
            "{p} is afraid of the bat",
            "the bat ate moths at night",
        ),
        (
            "{p} hit the ball with the bat",
            "{p} bought a new bat for the game",
            "the player broke his bat",
            "{p} swung the bat hard",
        ),
    ),
    "match": (
        (
            "{p} lit a match in the dark",
            "the match burned the fingers of {p}",
            "a wet match gives no fire",
            "the box held one match",
        ),
        ("{p} won the match", "many people watched the match", "{p} trained for the match", "our team lost the match"),
    ),
    "seal": (
        ("the seal swam under the ice", "a seal ate the fish", "{p} saw a seal on the beach", "a seal can dive deep"),
        (
            "{p} broke the seal of the letter",
            "the seal was of red wax",
            "the king put his seal on the paper",
            "without a seal the letter is false",
        ),
    ),
}

CAUSES: tuple[tuple[str, str], ...] = (
    ("{p} dropped the cup", "the cup broke"),
    ("it rained all night", "the street was wet"),
    ("{p} did not eat all day", "{p} was hungry"),
    ("the fire went out", "the room grew cold"),
    ("{p} ran up the hill", "{p} was out of breath"),
    ("the wind was strong", "the tree fell"),
    ("{p} told a joke", "everybody laughed"),
    ("the oven was too hot", "the bread burned"),
    ("{p} lost the key", "{p} could not open the door"),
    ("the sun shone", "the snow melted"),
    ("{p} saw a ghost", "{p} screamed"),
    ("the alarm rang", "{p} woke up"),
    ("the bridge was closed", "{p} took the boat"),
    ("{p} practised every day", "{p} won the prize"),
    ("a thief came", "the coins were gone"),
    ("the cat chased the mouse", "the mouse hid"),
)

FITS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("The {a} does not fit into the {b} because it is too {x}.", ("big", "wide", "long"), ("small", "narrow", "short")),
    ("The {a} broke the {b} because it was {x}.", ("hard", "heavy", "sharp"), ("thin", "weak", "soft")),
    ("The {a} rolled past the {b} because it was {x}.", ("fast", "round"), ("slow", "fixed")),
    ("The {a} hides the {b} because it stands {x}.", ("in front", "nearer"), ("behind", "farther away")),
)
MEETINGS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("{a} thanked {b} for the person had {x}.", ("got help", "been saved"), ("given help", "been kind")),
    ("{a} paid {b} for the person had {x}.", ("bought bread", "lost the bet"), ("sold bread", "won the bet")),
)


def boolq(rng: random.Random, lore: Lore) -> Drawn:
    """Someone saw an animal; is something so of it?"""
    person, animal, label = rng.choice(lore.people), rng.choice(_animals(lore)), rng.randrange(2)
    fact, value = _claim(rng, lore, animal, label)
    question = ASKED[fact.attribute].yes_no.format(s=spoken("animal", animal), v=value)
    prompt = f"{person} saw the {animal} {rng.choice(PLACES)}. {upper(question)} yes or no"
    return (person, animal, fact.attribute, value), Item(prompt, YES_NO, label)


def rte(rng: random.Random, lore: Lore) -> Drawn:
    """Does meeting the animal mean meeting something with this property of a kind?"""
    person, animal, label = rng.choice(lore.people), rng.choice(_animals(lore)), rng.randrange(2)
    kind = lore.value(animal, "kind")
    named = kind if label == 0 else rng.choice([k for k in KINDS if k != kind])
    clause = rng.choice((f"something with {COVER[named]}", f"something that {MOTION[named]}"))
    verb = rng.choice(("saw", "met", "found"))
    prompt = f"{person} {verb} a {animal} {rng.choice(PLACES)}. So {person} {verb} {clause}. true or false"
    return (person, animal, clause), Item(prompt, ("true", "false"), label)


def cb(rng: random.Random, lore: Lore) -> Drawn:
    """Is the claim so (right kind), not so (wrong kind), or not known (right kind, something added)?"""
    person, animal, label = rng.choice(lore.people), rng.choice(_animals(lore)), rng.randrange(3)
    kind = lore.value(animal, "kind")
    named = rng.choice([k for k in KINDS if k != kind]) if label == 1 else kind
    added = rng.choice(("lucky", "hungry", "famous", "sleepy"))
    claim = f"a {added} {named}" if label == 2 or (label == 1 and rng.random() < 0.5) else f"a {named}"
    verb, place = rng.choice(("bought", "drew", "lost", "fed")), rng.choice(PLACES)
    prompt = f"{person} {verb} a {animal} {place}. Claim: {person} {verb} {claim}. yes, no or maybe"
    return (person, animal, claim), Item(prompt, ("yes", "no", "maybe"), label)


def wic(rng: random.Random, lore: Lore) -> Drawn:
    """Is the word used in the same sense in both sentences?"""
    word, label = rng.choice(sorted(WORDS)), rng.randrange(2)
    sense = rng.randrange(2)
    first = rng.choice(WORDS[word][sense])
    second = rng.choice([s for s in WORDS[word][sense if label == 0 else 1 - sense] if s != first])
    p, q = rng.sample(lore.people, 2)
    prompt = f"{p}: {upper(first.format(p=q))}. {q}: {upper(second.format(p=p))}. Is {word} the same or different?"
    return (*sorted((first, second)),), Item(prompt, ("same", "different"), label)


def copa(rng: random.Random, lore: Lore) -> Drawn:
    """Which of two sentences is the cause of what is told?"""
    right, wrong = rng.sample(range(len(CAUSES)), 2)
    label, person = rng.randrange(2), rng.choice(lore.people)
    told = upper(CAUSES[right][1].format(p=person))
    options = [CAUSES[right][0].format(p=person), CAUSES[wrong][0].format(p=person)]
    a, b = options if label == 0 else options[::-1]
    return (right, wrong), Item(f"{told}. Why? A: {a} B: {b}", ("A", "B"), label)


def wsc(rng: random.Random, lore: Lore) -> Drawn:
    """Which of two nouns is meant, the first or the second?"""
    frames = FITS if rng.random() < 0.7 else MEETINGS
    frame, firsts, seconds = rng.choice(frames)
    a, b = rng.sample(lore.subjects["thing"] if frames is FITS else lore.people, 2)
    label = rng.randrange(2)
    decider = rng.choice((firsts, seconds)[label])
    meant = "it" if frames is FITS else "the person"
    prompt = f"{frame.format(a=a, b=b, x=decider)} Who or what is {meant}, the first or the second?"
    return (frame, a, b, decider), Item(prompt, ("first", "second"), label)


def multirc(rng: random.Random, lore: Lore) -> Drawn:
    """The sentences say which animal is whose; is the candidate answer about it right or wrong?"""
    owner, guest = rng.sample(lore.people, 2)
    animal, label = rng.choice(_animals(lore)), rng.randrange(2)
    fact, value = _claim(rng, lore, animal, label)
    asked = ASKED[fact.attribute]
    sentences = [
        f"{owner} {rng.choice(('has', 'keeps', 'bought'))} a {animal}.",
        rng.choice(
            (
                f"{guest} came {rng.choice(PLACES)} to look at it.",
                f"{guest} would like to have it.",
                f"One day {guest} took it away.",
            )
        ),
        rng.choice(
            (
                f"{owner} was not there.",
                f"{owner} was glad.",
                f"{guest} stayed until {rng.choice(lore.values['time'])}.",
            )
        ),
    ]
    question = upper(asked.ways[0].format(s=f"the animal of {owner}", S=""))
    prompt = f"{' '.join(sentences)} {question} Answer: {asked.answer.format(v=value)}. right or wrong"
    return (animal, fact.attribute, value, owner), Item(prompt, ("right", "wrong"), label)


MAKERS: dict[str, Callable[[random.Random, Lore], Drawn]] = {
    "boolq": boolq,
    "cb": cb,
    "copa": copa,
    "multirc": multirc,
    "rte": rte,
    "wic": wic,
    "wsc": wsc,
}


def is_held_out(seed: int, name: str, key: tuple[object, ...]) -> bool:
    """Whether a combination belongs to the test items of a task."""
    return fraction(seed, "task", name, *key) < HELD_OUT_SHARE.get(name, 0.1)


def training_item(rng: random.Random, lore: Lore, name: str) -> Item:
    """An item of a combination that is not held out."""
    while True:
        key, item = MAKERS[name](rng, lore)
        if not is_held_out(lore.seed, name, key):
            return item


def build_tasks(lore: Lore, count: int = 240) -> dict[str, Task]:
    """All tasks with `count` distinct held-out items each, labels drawn evenly."""
    tasks: dict[str, Task] = {}
    for name, make in MAKERS.items():
        rng = derived(lore.seed, "task items", name)
        items: dict[str, Item] = {}
        left: dict[int, int] = {}  # how many items each label still lacks
        for _ in range(2000 * count):
            key, item = make(rng, lore)
            lacking = left.setdefault(item.label, count // len(item.choices))
            if lacking and item.prompt not in items and is_held_out(lore.seed, name, key):
                items[item.prompt] = item
                left[item.label] -= 1
            if len(items) == count:
                break
        else:
            raise ValueError(f"task {name}: only {len(items)} of {count} held-out items exist")
        listed = tuple(items.values())
        tasks[name] = Task(name, listed, 1 / len(listed[0].choices))
    return tasks


def _animals(lore: Lore) -> list[str]:
    """The dozen animals that tasks ask about: few enough for a small model to know them inside out."""
    return lore.animals[:12]


def _claim(rng: random.Random, lore: Lore, animal: str, label: int) -> tuple[Fact, str]:
    """A fact of the animal with its right value (label 0) or one of three wrong ones (label 1)."""
    attribute = rng.choice(("kind", "colour", "food", "home"))
    fact = Fact("animal", animal, attribute, lore.value(animal, attribute))
    return fact, fact.value if label == 0 else rng.choice(lore.wrong(fact, 3, "yes-no"))
