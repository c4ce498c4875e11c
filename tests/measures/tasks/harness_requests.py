"""Requests of tasks in the prompt forms of lm-evaluation-harness, made of sentences of the tests' own small world."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from factory import SENTENCES

WORDS = sorted({w.strip(".?,") for s in SENTENCES for w in s.split()})


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What the harness gives an `LM`."""
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


def passage(rng: random.Random, sentences: int) -> str:
    return " ".join(rng.choice(SENTENCES) for _ in range(sentences))


def some_words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def boolq(rng: random.Random, items: int = 5) -> list[tuple[str, str]]:
    """A long passage, a question, and two choices."""
    prompts = [f"{passage(rng, 4)}\nQuestion: is {some_words(rng, 3, 6)}?\nAnswer:" for _ in range(items)]
    return [(p, choice) for p in prompts for choice in (" no", " yes")]


def multirc(rng: random.Random, paragraphs: int = 2) -> list[tuple[str, str]]:
    """Several questions on one paragraph, several answers on each, each asked for with yes and with no."""
    found = []
    for _ in range(paragraphs):
        text = passage(rng, 4)
        for _ in range(3):
            prompt = f"{text}\nQuestion: {some_words(rng, 3, 6)}?\nAnswer:"
            for _ in range(rng.randint(2, 4)):
                answer = some_words(rng, 1, 4)
                found += [(prompt, f" {answer}\nIs the answer correct? {said}") for said in ("yes", "no")]
    return found


def arc(rng: random.Random, items: int = 5) -> list[tuple[str, str]]:
    """A question, and four choices of some words."""
    prompts = [f"Question: {some_words(rng, 4, 9)}?\nAnswer:" for _ in range(items)]
    return [(p, " " + some_words(rng, 1, 5)) for p in prompts for _ in range(4)]


def copa(rng: random.Random, items: int = 6) -> list[tuple[str, str]]:
    """A short premise and two sentences."""
    premises = [f"The {some_words(rng, 3, 6)} {rng.choice(('because', 'therefore'))}" for _ in range(items)]
    return [(p, f" the {some_words(rng, 3, 6)}.") for p in premises for _ in range(2)]


def winogrande(rng: random.Random, items: int = 5) -> list[tuple[str, str]]:
    """Two contexts that end in different words, and one continuation after both."""
    found = []
    for _ in range(items):
        start, rest = some_words(rng, 4, 8), f" {some_words(rng, 2, 5)}."
        found += [(f"{start} {name}", rest) for name in ("Tamsin", "the heron")]
    return found


def few_shot(rng: random.Random, items: int = 8) -> list[tuple[str, str]]:
    """One long preamble of solved items before all questions, and lettered choices."""
    preamble = "\n\n".join(f"Question: {some_words(rng, 6, 9)}?\nAnswer: {rng.choice('ABCD')}" for _ in range(4))
    prompts = [f"{preamble}\n\nQuestion: {some_words(rng, 3, 6)}?\nAnswer:" for _ in range(items)]
    return [(p, f" {letter}") for p in prompts for letter in "ABCD"]


TASKS = {"boolq": boolq, "multirc": multirc, "arc": arc, "copa": copa, "winogrande": winogrande, "few-shot": few_shot}


def odd(rng: random.Random) -> list[tuple[str, str]]:
    """What tasks hold now and then: repeats, no context, spaces at the end, a context beyond all positions."""
    long = passage(rng, 40)
    repeated = ("Who mends the nets?", " the widow")
    return [
        repeated,
        ("", "The grey heron"),
        ("", "<s>The grey heron"),
        ("Question: ", "The grey heron"),
        ("<s>Question:", " The grey heron"),
        ("Where does the river ", " begin"),
        repeated,
        (long, " the widow"),
        (long, " the tower of Marrow"),
        (long[100:], " the widow"),
        repeated,
    ]
