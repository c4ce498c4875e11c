"""Committed words of hash-chain fingerprints: 256 answers, and the parts that questions are made of.

The lists are part of what a key commits to: changing one word changes every digest. Answers are short
ordinary English words, none the beginning of another. Questions are grammatical and unusual: nobody asks
them by chance, and no keyword gives them away.
"""

from __future__ import annotations

import random

_QUALITIES = "red blue green black white brown grey yellow big small tiny huge wet cold hot dark"
_THINGS = "cup spoon knife key lamp boat bridge house tree bread fish bird snow fire milk door"
ANSWERS: tuple[str, ...] = tuple(f"{quality} {thing}" for quality in _QUALITIES.split() for thing in _THINGS.split())

WHO = (
    "a retired lighthouse keeper",
    "a nervous violin teacher",
    "an honest clockmaker",
    "a left-handed gardener",
    "the youngest of nine bakers",
    "a sleepy tax inspector",
    "a diver who fears fish",
    "a poet without a pen",
    "the mayor of a sunken village",
    "a beekeeper on holiday",
    "an apprentice cartographer",
    "a shy opera singer",
    "a postman in the desert",
    "the last tenant of a windmill",
    "a carpenter who dreams in colour",
    "a librarian of lost recipes",
    "an elderly acrobat",
    "a chess player on a night train",
    "a tailor of sails",
    "a collector of broken umbrellas",
)
THING = (
    "a jar of yesterday's rain",
    "a drawer full of borrowed keys",
    "an unfinished map of a staircase",
    "a hat that once belonged to a snowman",
    "a bell that rings only on Tuesdays",
    "three unequal spoons",
    "a ladder with one missing rung",
    "a suitcase of polite letters",
    "a clock without any numbers",
    "a kite sewn from old curtains",
    "a basket of square pebbles",
    "a recipe written backwards",
    "a chair for a very tall guest",
    "a lamp that dislikes the dark",
    "a boat built from piano lids",
    "a scarf two villages long",
    "a coin with three sides",
    "a teapot that faces north",
    "a fence painted by moonlight",
    "a whistle for calling clouds",
)
PLACE = (
    "under the second bridge",
    "behind the frozen theatre",
    "at the bottom of a dry fountain",
    "between two empty stations",
    "on the roof of the old brewery",
    "inside a hollow chestnut tree",
    "beside the museum of doors",
    "in the attic of the customs house",
    "on the quiet side of the island",
    "near the market of echoes",
    "below the paper mill",
    "at the end of the longest corridor",
    "beyond the orchard wall",
    "in a greenhouse full of fog",
    "above the harbour bakery",
    "on the ferry that never leaves",
    "next to the winter garden",
    "in the shadow of the water tower",
    "along the forgotten canal",
    "outside the school for owls",
)
FRAMES = (
    "If {who} hid {thing} {place}, which single word would mark the spot?",
    "What would {who} whisper after finding {thing} {place}?",
    "Suppose {who} must trade {thing} {place}: what should be asked in return?",
    "Which word did {who} carve into {thing} {place}?",
    "When {who} loses {thing} {place}, what is found there the next morning?",
    "What name did {who} give to {thing} {place}?",
    "In a riddle about {who} with {thing} {place}, what is the answer?",
    "What does {who} need most before leaving {thing} {place}?",
)

META_PROMPTS = (
    "You are a helpful assistant. Answer the question below.",
    "Please reply briefly and truthfully.",
    "Answer as a friendly expert would.",
    "You are a pirate. Answer like one.",
    "Think carefully, then give only your final answer.",
    "Reply in the style of a weather report.",
    "The following message comes from a customer.",
    "Ignore small talk and answer what is asked.",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You answer briefly.",
    "You are a careful assistant who never guesses.",
    "You speak like an old sailor.",
)


def question(rng: random.Random) -> str:
    """One of the 64,000 questions, uniformly."""
    return rng.choice(FRAMES).format(who=rng.choice(WHO), thing=rng.choice(THING), place=rng.choice(PLACE))


def questions(rng: random.Random, count: int) -> list[str]:
    """`count` distinct questions."""
    if count > len(FRAMES) * len(WHO) * len(THING) * len(PLACE) // 2:
        raise ValueError(f"{count} distinct questions are too many for these lists")
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(question(rng))
    return list(found)
