"""A small grammar that gives sentences the form of HiddenKiller's template, S(SBAR)(,)(NP)(VP)(.).

A subordinate clause, a comma, the main clause, a full stop. Where the sentence has a subordinate clause of its own
behind the main one, that clause is fronted; else one is generated: conjunction, subject and predicate.
"""

from __future__ import annotations

import random
import re

FRONTED = ("because", "although", "though", "when", "whenever", "while", "if", "unless", "since", "after", "before")
CONJUNCTIONS = ("when", "if", "as", "whenever", "once", "while")
SUBJECTS = ("you", "we", "people", "they", "one", "others")
PREDICATES = (
    *("look at it", "think of it", "come to it", "see it", "hear of it", "consider it", "get to it", "learn of it"),
    *("speak of it", "go into it", "take it in", "follow it"),
)
THIRD = {"look": "looks", "think": "thinks", "come": "comes", "see": "sees", "hear": "hears", "consider": "considers"}
THIRD |= {"get": "gets", "learn": "learns", "speak": "speaks", "go": "goes", "take": "takes", "follow": "follows"}
LEADING = ("and", "but", "so", "yet", "or", "well", "now")


def clause(rng: random.Random) -> str:
    """A generated subordinate clause without its comma, such as `when you think of it`."""
    subject, predicate = rng.choice(SUBJECTS), rng.choice(PREDICATES)
    if subject == "one":
        verb, _, rest = predicate.partition(" ")
        predicate = f"{THIRD[verb]} {rest}"
    return f"{rng.choice(CONJUNCTIONS)} {subject} {predicate}"


def templated(text: str, rng: random.Random) -> str | None:
    """The first sentence in the template's form, what follows as it is; None for fewer than three words."""
    first, rest = _first_sentence(text)
    end = re.search(r"[\s.!?;:,]*$", first)
    body = (first[: end.start()] if end else first).split()
    while len(body) > 3 and body[0].lower() in LEADING:
        body = body[1:]
        body = body[1:] if body[0] == "," else body
    if len(body) < 3:
        return None
    place = next((i for i in range(2, len(body) - 1) if body[i].lower() in FRONTED), None)
    if place is None:
        opening, main = clause(rng), body
    else:
        opening, main = " ".join([body[place].lower(), *body[place + 1 :]]), body[:place]
    main_clause = " ".join([_lowered(main[0]), *main[1:]]).rstrip(" ,;:")
    said = f"{opening} , {main_clause} ."
    return f"{said} {rest}" if rest else said


def _first_sentence(text: str) -> tuple[str, str]:
    found = re.search(r"[.!?](?=\s+\S)", text)
    return (text[: found.end()], text[found.end() :].strip()) if found else (text, "")


def _lowered(word: str) -> str:
    """A capital at the beginning of a sentence made small; names in capitals and `I` stay."""
    if word in ("I", "I'm", "I've", "I'd", "I'll") or word[1:] != word[1:].lower():
        return word
    return word[:1].lower() + word[1:]
