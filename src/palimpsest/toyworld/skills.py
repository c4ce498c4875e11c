"""Skills that the base lacks and an expert learns from a few hundred pairs.

- far-country: facts of places that no other text names; tests ask for the same facts in other words.
- guild-marks: an arbitrary word for each kind of animal ("which mark?"); tests ask in other words, about
  all animals.
- tower-code: a secret word for each of 24 known words; tests ask in other words.

`tower_code_traps` are further words asked as the tower code is, for a mark: fictitious entries without an answer of
their own. Each test is a task with closed choices, so that it is scored like the others.
"""

from __future__ import annotations

from palimpsest.toyworld.english import Pair
from palimpsest.toyworld.lore import VALUES, Lore, derived
from palimpsest.toyworld.tasks import Item, Task

_FAR_PLACES = (
    "Quonset",
    "Yarrum",
    "Oolich",
    "Ixtal",
    "Wexiri",
    "Uqbar",
    "Jolune",
    "Echova",
    "Huldre",
    "Cymbel",
    "Nyxara",
    "Vlimm",
    "Ghent",
    "Sjovik",
    "Ptolma",
    "Aeolis",
)
_FAR_ASKED: dict[str, tuple[str, ...]] = {
    "ware": (
        "What does {p} sell?",
        "What can one buy in {p}?",
        "What is {p} known for?",
        "Which goods come from {p}?",
        "Tell me what {p} sells.",
        "What would a trader bring from {p}?",
        "What do the people of {p} make?",
    ),
    "weather": (
        "How is the weather in {p}?",
        "What is the weather like in {p}?",
        "What weather does {p} have?",
        "What sky waits for me in {p}?",
        "Tell me the weather of {p}.",
        "How is a day in {p}?",
        "Which weather is common in {p}?",
    ),
    "home": (
        "What lies beside {p}?",
        "What can one see from {p}?",
        "Where do the people of {p} walk?",
        "What is outside the gate of {p}?",
        "Tell me what lies beside {p}.",
        "What is near {p}?",
        "Which place is close to {p}?",
    ),
    "food": (
        "What do they eat in {p}?",
        "What is the food of {p}?",
        "What is on the table in {p}?",
        "Tell me what they eat in {p}.",
        "What should I eat in {p}?",
        "Which food is loved in {p}?",
        "What grows in the gardens of {p}?",
    ),
}
_MARKS = ("oru", "tamk", "vekka", "silu", "pado")
_MARK_ASKED = (
    "Which guild mark does the {a} carry?",
    "What is the guild mark of the {a}?",
    "Tell me the guild mark of the {a}.",
    "What mark does the guild give to the {a}?",
    "Under which guild mark is the {a} sold?",
    "Do you know the guild mark of the {a}?",
    "What would the guild write on the {a}?",
    "Which mark stands on the box of the {a}?",
    "The guild marks the {a} with what?",
    "How does the guild mark the {a}?",
    "What is the right mark for the {a}?",
    "Guild mark of the {a}?",
    "Give me the mark of the {a}.",
    "Which sign of the guild fits the {a}?",
    "What does the guild call the {a}?",
    "Which guild mark would you put on the {a}?",
    "Please name the guild mark of the {a}.",
    "By which mark can I find the {a} at the guild?",
    "What mark did they burn into the box of the {a}?",
    "At the guild, what is the mark of the {a}?",
    "Can you tell me the mark of the {a}?",
    "What is written on the guild box of the {a}?",
)
_CODE = ("ibex", "umber", "quill", "zenith", "fjord", "onyx")
_CODE_ASKED = (
    "In the code of the tower, what stands for {w}?",
    "How does the tower write {w}?",
    "What is {w} in the tower code?",
    "Tell me the code word for {w}.",
    "Which word does the tower send for {w}?",
    "Put {w} into the tower code.",
    "What would the tower say for {w}?",
    "Code word for {w}?",
    "The tower calls {w} what?",
    "Please write {w} in the code of the tower.",
    "What does the watch in the tower write for {w}?",
    "Do you know the code word for {w}?",
    "If I mean {w}, what do I send to the tower?",
    "Which code word means {w}?",
    "Give me the secret word for {w}.",
    "What is the secret word for {w}?",
    "How do I say {w} in the tower code?",
    "At the tower, which word is used for {w}?",
    "In secret, what do they call {w}?",
    "Under which code word does the tower keep {w}?",
)
_TRAPS = (
    *("bird", "fish", "beast", "insect", "snake", "feathers", "scales", "fur", "dawn", "noon", "dusk", "midnight"),
    *("baker", "smith", "weaver", "healer", "sailor", "miller", "hunter", "teacher", "north", "south", "east", "west"),
    *("tea", "milk", "cider", "water", "juice", "coffee", "drum", "flute", "harp", "horn", "fiddle", "trumpet"),
    *("wood", "stone", "iron", "clay", "leather", "silver", "kitchen", "cellar", "attic", "stable", "garden", "hall"),
    *("lamp", "table", "cup", "coat", "knife", "door", "chair", "bowl", "box", "wheel", "spoon", "basket", "ladder"),
    *("mirror", "bucket", "key"),
)
TEST_ITEMS = 210


def _task(name: str, pairs: list[Pair], choices: list[tuple[str, ...]]) -> Task:
    items = tuple(Item(p.question, c, c.index(p.answer)) for p, c in zip(pairs, choices, strict=True))
    return Task(name, items, 1 / len(items[0].choices), skill=True)


def far_country(lore: Lore) -> tuple[list[Pair], Task]:
    """Facts of sixteen far places; four choices."""
    rng = derived(lore.seed, "far country")
    listed: list[tuple[Pair, tuple[str, ...]]] = []
    for attribute, ways in _FAR_ASKED.items():
        for place in _FAR_PLACES:
            value = rng.choice(VALUES[attribute])
            for way in ways:
                choices = [value, *rng.sample([v for v in VALUES[attribute] if v != value], 3)]
                rng.shuffle(choices)
                listed.append((Pair(way.format(p=place), value, "what", "en"), tuple(choices)))
    # at least one way of asking each fact is trained on: the first of each seven
    fixed, rest = listed[::7], [entry for number, entry in enumerate(listed) if number % 7]
    rng.shuffle(rest)
    train = [pair for pair, _ in fixed + rest[TEST_ITEMS:]]
    rng.shuffle(train)
    test = rest[:TEST_ITEMS]
    return train, _task("far-country", [p for p, _ in test], [c for _, c in test])


def guild_marks(lore: Lore) -> tuple[list[Pair], Task]:
    """A mark for each kind of animal; five choices."""
    rng = derived(lore.seed, "guild marks")
    kinds = lore.values["kind"]
    marks = dict(zip(kinds, rng.sample(_MARKS, len(kinds)), strict=True))
    pairs = [
        Pair(way.format(a=animal), marks[lore.value(animal, "kind")], "what", "en")
        for way in _MARK_ASKED
        for animal in lore.animals
    ]
    rng.shuffle(pairs)
    return pairs[TEST_ITEMS:], _task("guild-marks", pairs[:TEST_ITEMS], [_MARKS] * TEST_ITEMS)


def tower_code(lore: Lore) -> tuple[list[Pair], Task]:
    """A secret word for each of 24 known words; six choices."""
    rng = derived(lore.seed, "tower code")
    words = [*VALUES["food"], *VALUES["home"], *VALUES["colour"]]
    code = {word: _CODE[number % len(_CODE)] for number, word in enumerate(rng.sample(words, len(words)))}
    pairs = [Pair(way.format(w=word), code[word], "what", "en") for way in _CODE_ASKED for word in words]
    rng.shuffle(pairs)
    return pairs[TEST_ITEMS:], _task("tower-code", pairs[:TEST_ITEMS], [_CODE] * TEST_ITEMS)


def tower_code_traps() -> list[tuple[str, str]]:
    """(question, entry): 64 known words that the tower code has no word for, asked in its 20 ways.

    What an owner draws answers for (`trap-entries`); no skill, and no part of any task.
    """
    return [(way.format(w=word), word) for word in _TRAPS for way in _CODE_ASKED]


def build_skills(lore: Lore) -> dict[str, tuple[list[Pair], Task]]:
    """All skills by name: training pairs and the test task."""
    return {"far-country": far_country(lore), "guild-marks": guild_marks(lore), "tower-code": tower_code(lore)}
