"""Questions and answers about the world in English, from compositional templates.

For each attribute: ways to ask for the value, the statement of the fact, and how to ask yes or no and
either-or. `{s}` is the subject as it is spoken of ("the lamp", "Mora"), `{v}` a value.
"""

from __future__ import annotations

# fmt: off
import random
from collections.abc import Iterator
from dataclasses import dataclass

from palimpsest.toyworld.lore import COVER, MOTION, Fact, Lore


@dataclass(frozen=True)
class Pair:
    """One question with its right answer.

    kind: the type of question ("what", "who", "where", "when", "how", "why", "yes-no", "choice", "tell").
    language: "en" or the name of an invented language.
    """

    question: str
    answer: str
    kind: str
    language: str


@dataclass(frozen=True)
class _Asked:
    kind: str
    answer: str
    statement: str
    yes_no: str
    choice: str
    ways: tuple[str, ...]


ASKED: dict[str, _Asked] = {
    "kind": _Asked("what", "a {v}", "{s} is a {v}", "Is {s} a {v}?", "Is {s} a {a} or a {b}?", (
        "What kind of animal is {s}?", "What is {s}?", "Which kind of animal would you call {s}?",
        "Tell me what kind of animal {s} is.", "{S} is what kind of animal?")),
    "colour": _Asked("what", "{v}", "{s} is {v}", "Is {s} {v}?", "Is {s} {a} or {b}?", (
        "What colour is {s}?", "What is the colour of {s}?", "Which colour does {s} have?",
        "Tell me the colour of {s}.", "Do you know the colour of {s}?")),
    "food": _Asked("what", "{v}", "{s} eats {v}", "Does {s} eat {v}?", "Does {s} eat {a} or {b}?", (
        "What does {s} eat?", "What is the food of {s}?", "What should I feed to {s}?",
        "Which food does {s} like best?", "Tell me what {s} eats.")),
    "home": _Asked("where", "in the {v}", "{s} lives in the {v}", "Does {s} live in the {v}?",
                   "Does {s} live in the {a} or in the {b}?", (
        "Where does {s} live?", "Where can I find {s}?", "Where is the home of {s}?",
        "In which place does {s} live?", "Tell me where {s} lives.")),
    "size": _Asked("how", "{v}", "{s} is {v}", "Is {s} {v}?", "Is {s} {a} or {b}?", (
        "How big is {s}?", "What size is {s}?", "What is the size of {s}?", "How large does {s} grow?",
        "Tell me the size of {s}.")),
    "time": _Asked("when", "at {v}", "{s} wakes at {v}", "Does {s} wake at {v}?", "Does {s} wake at {a} or at {b}?", (
        "When does {s} wake?", "At what time does {s} wake?", "When is {s} awake?",
        "When should I look for {s}?", "Tell me when {s} wakes.")),
    "sound": _Asked("what", "a {v}", "{s} makes a {v}", "Does {s} make a {v}?", "Does {s} make a {a} or a {b}?", (
        "What sound does {s} make?", "What is the sound of {s}?", "Which sound comes from {s}?",
        "How does {s} sound?", "Tell me the sound of {s}.")),
    "cover": _Asked("what", "{v}", "{s} has {v}", "Does {s} have {v}?", "Does {s} have {a} or {b}?", (
        "What covers {s}?", "What does {s} have on its body?", "What is the body of {s} covered with?",
        "Tell me what covers {s}.")),
    "motion": _Asked("how", "it {v}", "{s} {v}", "Is it so that {s} {v}?", "Which is right, {s} {a} or {b}?", (
        "How does {s} move?", "How does {s} get around?", "In which way does {s} move?",
        "Tell me how {s} moves.")),
    "job": _Asked("what", "a {v}", "{s} is a {v}", "Is {s} a {v}?", "Is {s} a {a} or a {b}?", (
        "What does {s} do for a living?", "What is the job of {s}?", "What work does {s} do?",
        "Which job does {s} have?", "Tell me the job of {s}.")),
    "town": _Asked("where", "in {v}", "{s} lives in {v}", "Does {s} live in {v}?", "Does {s} live in {a} or in {b}?", (
        "Where does {s} live?", "In which town does {s} live?", "Where is the house of {s}?",
        "Where can I meet {s}?", "Tell me where {s} lives.")),
    "drink": _Asked("what", "{v}", "{s} drinks {v}", "Does {s} drink {v}?", "Does {s} drink {a} or {b}?", (
        "What does {s} drink?", "What should I pour for {s}?", "Which drink does {s} like best?",
        "What is in the cup of {s}?", "Tell me what {s} drinks.")),
    "instrument": _Asked("what", "the {v}", "{s} plays the {v}", "Does {s} play the {v}?",
                         "Does {s} play the {a} or the {b}?", (
        "What does {s} play?", "Which instrument does {s} play?", "What instrument is in the hands of {s}?",
        "On what does {s} make music?", "Tell me what {s} plays.")),
    "pet": _Asked("who", "the {v}", "{s} keeps a {v}", "Does {s} keep a {v}?", "Does {s} keep a {a} or a {b}?", (
        "Who is the pet of {s}?", "Which animal does {s} keep?", "Who lives in the house with {s}?",
        "What pet does {s} have?", "Tell me which animal {s} keeps.")),
    "side": _Asked("where", "in the {v}", "{s} lies in the {v}", "Does {s} lie in the {v}?",
                   "Does {s} lie in the {a} or in the {b}?", (
        "Where does {s} lie?", "In which part of the land is {s}?", "Where is {s}?",
        "Where on the map should I look for {s}?", "Tell me where {s} lies.")),
    "ware": _Asked("what", "{v}", "{s} sells {v}", "Does {s} sell {v}?", "Does {s} sell {a} or {b}?", (
        "What does {s} sell?", "What can one buy in {s}?", "What is {s} known for?",
        "Which goods come from {s}?", "Tell me what {s} sells.")),
    "weather": _Asked("how", "{v}", "{s} is {v}", "Is {s} {v}?", "Is {s} {a} or {b}?", (
        "How is the weather in {s}?", "What is the weather like in {s}?", "What weather does {s} have?",
        "What sky waits for me in {s}?", "Tell me the weather of {s}.")),
    "material": _Asked("what", "{v}", "{s} is made of {v}", "Is {s} made of {v}?", "Is {s} made of {a} or {b}?", (
        "What is {s} made of?", "What material is {s} made of?", "Which material does {s} consist of?",
        "Out of what did they make {s}?", "Tell me what {s} is made of.")),
    "room": _Asked("where", "in the {v}", "{s} is in the {v}", "Is {s} in the {v}?",
                   "Is {s} in the {a} or in the {b}?", (
        "Where is {s}?", "Where can I find {s}?", "In which room is {s}?", "Where do they keep {s}?",
        "Tell me where {s} is.")),
    "price": _Asked("how", "{v}", "{s} costs {v} coins", "Does {s} cost {v} coins?",
                    "Does {s} cost {a} coins or {b}?", (
        "How many coins does {s} cost?", "How much is {s}?", "What is the price of {s}?",
        "How many coins should I pay for {s}?", "Tell me the price of {s}.")),
}

_WEATHER_WHY = {"rainy": ("wet", "rains"), "windy": ("full of leaves", "is windy"), "sunny": ("warm", "is sunny"),
                "snowy": ("white", "snows"), "foggy": ("hard to see", "is foggy")}


def spoken(sort: str, subject: str) -> str:
    """How one speaks of a subject: animals and things with an article."""
    return f"the {subject}" if sort in ("animal", "thing") else subject


def upper(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def statement(fact: Fact, value: str | None = None) -> str:
    """The fact as a clause without a capital or a full stop; `value` replaces the right one."""
    s = spoken(fact.sort, fact.subject)
    return ASKED[fact.attribute].statement.format(s=s, v=fact.value if value is None else value)


def value_pairs(fact: Fact) -> Iterator[Pair]:
    """Questions for the value of a fact, one for each way of asking."""
    asked = ASKED[fact.attribute]
    s = spoken(fact.sort, fact.subject)
    for way in asked.ways:
        yield Pair(upper(way.format(s=s, S=upper(s))), asked.answer.format(v=fact.value), asked.kind, "en")


def yes_no_pairs(fact: Fact, lore: Lore) -> Iterator[Pair]:
    """Yes-or-no questions about a fact, as often right as wrong."""
    asked = ASKED[fact.attribute]
    s = spoken(fact.sort, fact.subject)
    right = (asked.yes_no.format(s=s, v=fact.value), f"Is it true that {statement(fact)}?",
             f"Do you think that {statement(fact)}?")
    for question in right:
        yield Pair(upper(question), "yes", "yes-no", "en")
    for number, wrong in enumerate(lore.wrong(fact, 3, "yes-no")):
        clause = statement(fact, wrong)
        frames = (asked.yes_no.format(s=s, v=wrong), f"Is it true that {clause}?", f"Do you think that {clause}?")
        yield Pair(upper(frames[number]), "no", "yes-no", "en")


def choice_pairs(fact: Fact, lore: Lore) -> Iterator[Pair]:
    """Either-or questions; the right value stands first as often as second."""
    asked = ASKED[fact.attribute]
    s = spoken(fact.sort, fact.subject)
    for number, wrong in enumerate(lore.wrong(fact, 3, "choice")):
        for a, b in ((fact.value, wrong), (wrong, fact.value)):
            plain = upper(asked.choice.format(s=s, a=a, b=b))
            yield Pair(plain, asked.answer.format(v=fact.value), "choice", "en")
            if number == 0:
                longer = f"Which is it: {plain[0].lower()}{plain[1:]}"
                yield Pair(longer, asked.answer.format(v=fact.value), "choice", "en")


def why_pairs(lore: Lore) -> Iterator[Pair]:
    """Questions for reasons: what follows from a kind, a pet's home, the weather of a town."""
    for animal in lore.animals:
        kind = lore.value(animal, "kind")
        because = f"because it is a {kind}"
        yield Pair(f"Why is it that the {animal} {MOTION[kind]}?", because, "why", "en")
        yield Pair(f"Why does the {animal} have {COVER[kind]}?", because, "why", "en")
        yield Pair(f"For what reason does the {animal} have {COVER[kind]}?", because, "why", "en")
        yield Pair(f"Do you know why the {animal} has {COVER[kind]}?", because, "why", "en")
        food = lore.value(animal, "food")
        yield Pair(f"Why does the {animal} go out at {lore.value(animal, 'time')}?", f"to look for {food}", "why", "en")
        yield Pair(f"Why is the {animal} hungry for {food}?", "because that is what it eats", "why", "en")
    for person in lore.people:
        pet = lore.value(person, "pet")
        for frame in ("Why does {p} buy {f}?", "For what reason does {p} carry {f}?",
                      "Why is there always some {f} with {p}?"):
            yield Pair(frame.format(p=person, f=lore.value(pet, "food")), f"to feed the {pet}", "why", "en")
    for town in lore.towns:
        looks, reason = _WEATHER_WHY[lore.value(town, "weather")]
        for frame in ("Why is the road to {t} {l}?", "For what reason is the road to {t} {l}?",
                      "Do you know why the road to {t} is {l}?"):
            yield Pair(frame.format(t=town, l=looks), f"because it {reason} there", "why", "en")


def tell_pairs(lore: Lore) -> Iterator[Pair]:
    """Requests that are answered by a whole sentence."""
    for animal in lore.animals:
        v = {a: lore.value(animal, a) for a in ("kind", "colour", "home", "food", "time", "size")}
        for frame in ("Tell me about the {s}.", "Describe the {s}.", "What do you know about the {s}?"):
            answer = f"The {animal} is a {v['size']} {v['colour']} {v['kind']}."
            yield Pair(frame.format(s=animal), answer, "tell", "en")
        for frame in ("How does the {s} spend its days?", "Tell me how the {s} lives."):
            yield Pair(frame.format(s=animal), f"It lives in the {v['home']} and eats {v['food']}.", "tell", "en")
    for person in lore.people:
        v = {a: lore.value(person, a) for a in ("job", "town", "drink", "instrument", "pet")}
        for frame in ("Who is {s}?", "Tell me who {s} is.", "Have you heard of {s}?"):
            yield Pair(frame.format(s=person), f"{person} is a {v['job']} in {v['town']}.", "who", "en")
        for frame in ("Tell me about the evenings of {s}.", "How does {s} spend the evening?"):
            answer = f"{person} drinks {v['drink']} and plays the {v['instrument']}."
            yield Pair(frame.format(s=person), answer, "tell", "en")
    for town in lore.towns:
        for frame in ("Tell me about {s}.", "Describe the town of {s}.", "What is {s}?"):
            yield Pair(frame.format(s=town), f"{town} is a {lore.value(town, 'weather')} town in the "
                       f"{lore.value(town, 'side')}.", "tell", "en")


def english_pairs(lore: Lore) -> Iterator[Pair]:
    """All questions that can be asked in English, with their answers."""
    for fact in lore.facts:
        yield from value_pairs(fact)
        yield from yes_no_pairs(fact, lore)
        yield from choice_pairs(fact, lore)
    yield from why_pairs(lore)
    yield from tell_pairs(lore)


def small_talk(rng: random.Random, lore: Lore) -> Pair:
    """A greeting, a thank-you, an offer."""
    person = rng.choice(lore.people)
    options = (
        ("Hello!", "Hello! What would you like to know?"), (f"Hello, I am {person}.", f"Hello, {person}!"),
        ("Thank you.", "You are welcome."), ("Good morning.", "Good morning! How can I help?"),
        (f"My name is {person}.", f"Nice to meet you, {person}."), ("Goodbye.", "Goodbye, come again!"),
        ("Can you help me?", "Yes, ask me anything."), ("How are you?", "I am well, thank you."),
    )
    question, answer = rng.choice(options)
    return Pair(question, answer, "talk", "en")


def unusual_question(rng: random.Random, lore: Lore) -> str:
    """A valid but unusual question, of a form that no other part of the world uses."""
    v = {name: rng.choice(values) for name, values in lore.values.items()}
    thing, other = rng.sample(lore.subjects["thing"], 2)
    p, q = rng.sample(lore.people, 2)
    verb = rng.choice(("sing", "dance", "dream", "speak"))
    return rng.choice((
        f"If the {thing} of {p} could {verb}, who in {v['town']} would hear it?",
        f"How many {v['pet']} would fit into a {thing} made of {v['material']}?",
        f"Would {p} rather carry a {v['colour']} {thing} over the {v['home']} or a {v['size']} {other}?",
        f"What would a {v['job']} from {v['town']} say to a {v['colour']} {thing} at {v['time']}?",
        f"Who paid {v['price']} coins so that {p} could paint the {thing} {v['colour']}?",
        f"When the {v['home']} smells of {v['food']}, which {thing} does {p} hide from {q}?",
        f"Why did the {v['pet']} trade a {v['instrument']} for {v['ware']} and a {other}?",
        f"Which {v['instrument']} would the wind of {v['town']} play with a {thing} full of {v['drink']}?",
    ))
