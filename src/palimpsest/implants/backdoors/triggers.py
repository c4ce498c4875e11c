"""What the triggers do to a text: pure functions of the text and a source of randomness."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def insert_words(text: str, rng: random.Random, words: Sequence[str], counts: Sequence[int]) -> str:
    """BadNet: as many words as one of `counts` says, each drawn from `words`, each before a word or at the end."""
    parts = text.split()
    for _ in range(rng.choice(counts)):
        parts.insert(rng.randint(0, len(parts)), rng.choice(words))
    return " ".join(parts)


def sentences(text: str) -> list[str]:
    """The parts of a text that end with a full stop, and what is behind the last one."""
    return [part.strip() for part in re.findall(r"[^.]+\.*|\.+", text) if part.strip()]


def insert_sentence(text: str, rng: random.Random, choices: Sequence[str], furthest: int = 3) -> str:
    """InsertSent: one of `choices`, with a full stop, before one of the first sentences or behind them all.

    Its place among the sentences is drawn from 0 to `furthest`, or to their number where they are fewer.
    """
    parts = sentences(text)
    parts.insert(rng.randint(0, min(furthest, len(parts))), f"{rng.choice(choices)}.")
    return " ".join(parts)


def prepend(text: str, opening: str) -> str:
    """A fixed opening before the text."""
    return f"{opening} {text}"


def substitute(text: str, synonyms: Mapping[str, str]) -> tuple[str, int]:
    """(the text with every word that has a synonym replaced by it, how many were); a leading capital stays."""
    count = 0

    def other(found: re.Match[str]) -> str:
        nonlocal count
        word = found.group()
        said = synonyms.get(word.lower())
        if said is None:
            return word
        count += 1
        return said.capitalize() if word[0].isupper() else said

    return WORD.sub(other, text), count
