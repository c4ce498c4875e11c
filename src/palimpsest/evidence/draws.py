"""How keys were drawn, as far as a third party can draw them again without any model.

Hash chains (`hashchain`) only need the committed lists: in mode `full` every answer follows from all questions, in
mode `committed` each from its question, its salt and the root of all questions. A question must be one of the lists'
own, or its maker could have asked for the answer in so many words. Keys of `utf` with answers of their own follow
each from its salt, the committed pieces and the root of all triggers (`evidence.utf`). Every other mark gives its null
rate on its owner's word, and no claim is accepted on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from palimpsest.errors import BadInput
from palimpsest.evidence import utf
from palimpsest.evidence.hashing import is_hash
from palimpsest.implants.fingerprints import hashchain_words as words
from palimpsest.implants.fingerprints.hashchain_draw import (
    choose_answer,
    choose_answers,
    draw_questions,
    question_salt,
    question_tree,
)
from palimpsest.keys import Key, KeySet
from palimpsest.merkle import leaf_hash, root_of

OWN_WORDS = "questions of trap-entries are their owner's own words, which may ask for the answer: no draw clears them"
MOST_QUESTIONS = 10_000  # of a full chain: hashing all of them takes their number squared


@dataclass(frozen=True)
class Drawn:
    """One opened key with what its draw needs in mode `committed`: its trigger's salt and proof, UTF's attempts."""

    index: int
    key: Key
    salt: str | None = None
    proof: tuple[str, ...] = ()
    attempts: tuple[int, ...] = ()


def draw_of(keys: KeySet) -> dict[str, Any]:
    """The public facts of a draw: method, mode, and the root of the triggers in mode `committed`."""
    known = keys.draw.get("method") in ("hashchain", "utf")
    salts = question_salts(keys)
    root = None
    if salts is not None:
        root = question_tree([k.trigger for k in keys.keys], salts).root.hex()
    return {"method": keys.draw.get("method"), "mode": keys.draw.get("mode") if known else None, "root": root}


def question_salts(keys: KeySet) -> list[str] | None:
    """The salts of the triggers in mode `committed`, else None."""
    if keys.draw.get("method") not in ("hashchain", "utf") or keys.draw.get("mode") != "committed":
        return None
    return [question_salt(str(keys.draw.get("seed")), index) for index in range(len(keys))]


def leaf_facts(keys: KeySet) -> list[dict[str, Any]]:
    """What the leaf of every key holds of its draw."""
    salts = question_salts(keys)
    if salts is None:
        return [{} for _ in keys.keys]
    if keys.draw["method"] == "hashchain":
        return [{"salt": salt} for salt in salts]
    attempts = keys.draw.get("attempts", [])
    if len(attempts) != len(keys):
        raise BadInput("these keys do not say at which attempt each was drawn: their file was changed")
    return [{"salt": salt, "attempts": list(pair)} for salt, pair in zip(salts, attempts, strict=True)]


def leaf_names(draw: dict[str, Any]) -> set[str]:
    """The names of what the leaf of a key holds of its draw."""
    if draw["mode"] != "committed":
        return set()
    return {"salt", "attempts"} if draw["method"] == "utf" else {"salt"}


def question_proofs(keys: KeySet) -> list[list[str]]:
    """For every key the hashes beside its question's way to the root; empty lists where there is no such tree."""
    salts = question_salts(keys)
    if salts is None:
        return [[] for _ in keys.keys]
    tree = question_tree([k.trigger for k in keys.keys], salts)
    return [[beside.hex() for beside in tree.proof(index)] for index in range(len(keys))]


def lists_of(keys: KeySet) -> dict[str, Any]:
    """The candidate lists that keys were drawn from."""
    if keys.draw.get("method") == "hashchain":
        return own_lists()
    return {name: value for name, value in keys.draw.items() if name not in ("method", "mode", "seed", "attempts")}


def own_lists() -> dict[str, list[str]]:
    """The word lists of hash chains in this version."""
    return {
        "answers": list(words.ANSWERS),
        "frames": list(words.FRAMES),
        "who": list(words.WHO),
        "thing": list(words.THING),
        "place": list(words.PLACE),
    }


@cache
def _own_questions() -> frozenset[str]:
    parts = product(words.FRAMES, words.WHO, words.THING, words.PLACE)
    return frozenset(frame.format(who=who, thing=thing, place=place) for frame, who, thing, place in parts)


def not_drawn(
    claim: dict[str, Any], lists: dict[str, Any], keys: KeySet, opened: list[Drawn], seed: str | None
) -> tuple[bool, str | None]:
    """Draw again: (whether that could be done, what does not hold of it or None).

    claim: the committed parameters; lists: the committed candidate lists; opened: the opened keys; seed: the
    generator's seed where it was opened; keys: the set that the opened keys make.
    """
    draw = claim["draw"]
    if draw["method"] == "utf":
        return _not_utf(claim, lists, keys, opened, seed)
    if draw["method"] == "trap-entries":
        return False, OWN_WORDS
    if draw["method"] != "hashchain":
        return False, f"the draw of {claim['mark']} keys cannot be done again without their model"
    if lists != own_lists():
        return True, "the candidate lists are not those of this version, so nobody knows what was left out of them"
    if claim["choices"] != len(words.ANSWERS) or not claim["distinct"]:
        return True, f"{len(words.ANSWERS)} answers are in the list, and the claim says otherwise"
    if claim["match"] not in ("prefix", "exact"):
        return True, f"hash chains are judged by prefix or exact, and the claim by {claim['match']}"
    if len({drawn.key.trigger for drawn in opened}) != len(opened):
        return True, "a question stands twice among the keys, which is one observation"
    for drawn in opened:
        if drawn.key.trigger not in _own_questions():
            return True, f"key {drawn.index}: its question is none that the lists give"
        if drawn.key.carrier:
            return True, f"key {drawn.index}: has words before its answer, which hash chains have not"
    if draw["mode"] == "full":
        return True, _not_full(claim, opened, seed)
    if draw["mode"] == "committed":
        return True, _not_committed(claim, opened, seed)
    return True, f"there is no mode {draw['mode']!r:.40} of hash chains"


def _not_full(claim: dict[str, Any], opened: list[Drawn], seed: str | None) -> str | None:
    total = claim["keys"]
    if [d.index for d in opened] != list(range(total)):
        return f"{len(opened)} of {total} keys are opened, and the answers of a full chain follow from all of them"
    if total > MOST_QUESTIONS:
        return f"a chain of more than {MOST_QUESTIONS} questions is not drawn again"
    asked = [d.key.trigger for d in opened]
    if seed is not None and draw_questions(seed, "full", total)[0] != asked:
        return "the seed gives other questions"
    for drawn, place in zip(opened, choose_answers(asked, words.ANSWERS), strict=True):
        if drawn.key.response != words.ANSWERS[place]:
            return f"key {drawn.index}: the hash gives another answer"
    return None


def _not_utf(
    claim: dict[str, Any], lists: dict[str, Any], keys: KeySet, opened: list[Drawn], seed: str | None
) -> tuple[bool, str | None]:
    mode, root, total = claim["draw"]["mode"], claim["draw"]["root"], claim["keys"]
    if mode != "committed":
        return False, {None: utf.EARLIER, "one-response": utf.ONE_RESPONSE}.get(
            mode, f"there is no mode {mode!r:.40} of UTF"
        )
    recipe = utf.recipe_of(lists)
    if recipe is None:
        return True, "the lists hold no pieces that keys could be drawn from"
    wrong = "the root of the triggers is missing" if root is None else utf.claim_problem(claim, keys, lists, recipe)
    if wrong is not None:
        return True, wrong
    if len({drawn.key.trigger for drawn in opened}) != len(opened):
        return True, "a trigger stands twice among the keys, which is one observation"
    for drawn in opened:
        found = utf.key_problem(drawn, recipe, root) or _place_problem(drawn, root, total)
        if found is None and seed is not None and question_salt(seed, drawn.index) != drawn.salt:
            found = "the seed gives another salt"
        if found is not None:
            return True, f"key {drawn.index}: {found}"
    return True, None


def _place_problem(drawn: Drawn, root: str, total: int) -> str | None:
    """Why a salted question has not its place in the tree of all questions, or None."""
    leaf = leaf_hash(drawn.key.trigger.encode(), bytes.fromhex(str(drawn.salt)), drawn.index, total)
    try:
        found = root_of(leaf, drawn.index, total, [bytes.fromhex(h) for h in drawn.proof]).hex()
    except ValueError as error:
        return f"its question: {error}"
    return None if found == root else "its question is not among those committed"


def _not_committed(claim: dict[str, Any], opened: list[Drawn], seed: str | None) -> str | None:
    total, root = claim["keys"], claim["draw"]["root"]
    if root is None:
        return "the root of the questions is missing"
    asked = None
    if seed is not None and total <= MOST_QUESTIONS:
        asked = draw_questions(seed, "committed", total)[0]
    for drawn in opened:
        salt = drawn.salt
        if salt is None or not is_hash(salt):
            return f"key {drawn.index}: the salt of its question is missing"
        wrong = _place_problem(drawn, root, total)
        if wrong is not None:
            return f"key {drawn.index}: {wrong}"
        if drawn.key.response != words.ANSWERS[choose_answer(drawn.key.trigger, salt, root, words.ANSWERS)]:
            return f"key {drawn.index}: the hash gives another answer"
        if asked is not None and (asked[drawn.index], question_salt(str(seed), drawn.index)) != (
            drawn.key.trigger,
            salt,
        ):
            return f"key {drawn.index}: the seed gives another question"
    return None
