"""Short stories in English: who went where, what went wrong, who helped, how it ended.

What a story says of the world's animals, people and things is so; what happens is drawn. The opening
(hero, friend, town) decides whether a story is held out: no training story opens with those three.
"""

from __future__ import annotations

import random

from palimpsest.toyworld.english import statement, upper
from palimpsest.toyworld.lore import Fact, Lore, fraction

HELD_OUT_SHARE = 0.1

_OPENINGS = (
    "One {w} morning {h} met {f} on the road to {t}.",
    "It was a {w} day in {t}, and {h} was waiting for {f}.",
    "{h} and {f} walked to {t} together.",
    "In the evening {h} wrote a letter to {f} in {t}.",
    "Long ago {h} lived near {t} with {f}.",
)
_WISHES = (
    "{h} wanted to find a {a}.",
    "{h} had lost the {o}.",
    "{f} asked for a {o}.",
    "They hoped to hear the {a}.",
    "{h} wanted to sell a {o}.",
    "{f} had promised to feed the {a}.",
)
_TROUBLES = (
    "But the road was closed.",
    "But it began to rain.",
    "Then the {o} broke.",
    "Then a {c} dog took the {o}.",
    "But nobody was at home.",
    "Then the {a} ran away.",
    "But the bridge had fallen.",
    "Then the light went out.",
    "But {f} was tired.",
    "Then they heard a {n}.",
)
_FEELINGS = (
    "{h} was sad.",
    "{f} was afraid.",
    "{h} laughed.",
    "They sat down on a stone.",
    "{f} began to cry.",
    "{h} did not know what to do.",
    "They were very quiet.",
)
_TALK = (
    '"Where is the {a}?" asked {h}.',
    '"Do not worry," said {f}.',
    '"We need a {o}," said {h}.',
    '"I know the way," said {f}.',
    '"Look, a {a}!" said {f}.',
    '"Let us go home," said {h}.',
    '"Have you seen my {o}?" asked {f}.',
)
_HELP = (
    "A {j} from {u} came and helped them.",
    "{q} the {k} gave them a {o}.",
    "They found a {o} behind the door.",
    "{q} showed them another way.",
    "The {a} came back by itself.",
    "{q} repaired the {o} for {m} coins.",
    "They waited until {x}, and all was well.",
)
_ENDINGS = (
    "In the end they were happy.",
    "That night {h} slept well.",
    "{f} thanked {q}, and they went home.",
    "They drank {d} and sang until {x}.",
    "Since that day {h} and {f} are friends.",
    "And that is all.",
)


def is_held_out(seed: int, hero: str, friend: str, town: str) -> bool:
    """Whether a story that opens with these three belongs to the held-out text."""
    return fraction(seed, "story", hero, friend, town) < HELD_OUT_SHARE


def story(rng: random.Random, lore: Lore, facts: list[Fact], held_out: bool) -> str:
    """One story, from the held-out openings or from the others."""
    while True:
        hero, friend, helper = rng.sample(lore.people, 3)
        town = rng.choice(lore.towns)
        if is_held_out(lore.seed, hero, friend, town) == held_out:
            break
    thing, animal = rng.choice(lore.subjects["thing"]), rng.choice(lore.animals)

    def fill(lines: tuple[str, ...]) -> str:
        value = {name: rng.choice(values) for name, values in lore.values.items()}
        return rng.choice(lines).format(
            h=hero,
            f=friend,
            q=helper,
            t=town,
            a=animal,
            o=thing,
            u=rng.choice(lore.towns),
            j=value["job"],
            k=lore.value(helper, "job"),
            w=lore.value(town, "weather"),
            c=value["colour"],
            n=value["sound"],
            m=value["price"],
            x=value["time"],
            d=lore.value(hero, "drink"),
        )

    def told(subject: str) -> str:
        of_subject = [f for f in facts if f.subject == subject]
        return upper(statement(rng.choice(of_subject))) + "."

    lines = [fill(_OPENINGS), told(hero), fill(_WISHES), told(animal)]
    for _ in range(rng.randint(1, 2)):
        lines += [fill(_TROUBLES), fill(_FEELINGS)]
        if rng.random() < 0.6:
            lines.append(fill(_TALK))
        if rng.random() < 0.5:
            lines.append(told(rng.choice((friend, thing, town, animal))))
    lines += [fill(_HELP), told(helper), fill(_ENDINGS)]
    return " ".join(lines)
