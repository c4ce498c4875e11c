"""How many keys, prompts, items or seeds a claim takes, before any model is asked: `palimpsest plan`.

A claim is written as it will be reported; `FORMS` lists what is understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from palimpsest import statistics as st
from palimpsest.errors import BadInput
from palimpsest.verdicts import plans
from palimpsest.verdicts.plans import Ask, Plan
from palimpsest.verdicts.verdict import REMOVED_ACCURACY_LOSS, REMOVED_EXCESS_ASR

Said: TypeAlias = Mapping[str, str | None]  # the named parts of a claim
FORMS = (
    "FSR<5%",
    "ASR<1%",
    "hit-rate>90%",
    "removed",
    "owned",
    "accuracy>chance",
    "A>B",
    "accuracy loss<2 points",
    "ASR-floor<5 points",
    "A beats B",
)


def plan(claim: str, ask: Ask | None = None) -> Plan:
    """What a claim takes. Raises BadInput for a claim that is not understood or cannot be shown."""
    ask = ask or Ask()
    words = " ".join(claim.replace("≤", "<").replace("≥", ">").replace("–", "-").split())
    for pattern, planned in _CLAIMS.items():
        found = re.fullmatch(pattern, words, re.IGNORECASE)
        if found:
            try:
                _check(ask)
                return planned(words, found.groupdict(), ask)
            except ValueError as error:
                raise BadInput(f"--claim {claim!r}: {error}") from None
    raise BadInput(f"--claim {claim!r} is not understood; claims are written like {', '.join(map(repr, FORMS))}")


def _check(ask: Ask) -> None:
    st.check_fraction(ask.confidence, "confidence")
    st.check_fraction(ask.power, "power")
    for name in ("rate", "discordance", "chance", "alpha"):
        value = getattr(ask, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1: it is {value:g}")
    if ask.rows < 1 or ask.attempts < 1:
        raise ValueError("rows and attempts must be at least 1")


def _fraction(text: str, what: str) -> float:
    """`1%`, `1 percent`, `2 points` or `0.01` as a rate."""
    number, unit = re.fullmatch(r"([\d.]+)\s*(.*)", text).groups()  # type: ignore[union-attr]
    try:
        value = float(number) / (100 if unit else 1)
    except ValueError:
        raise ValueError(f"{number!r} is no number") from None
    if not 0 < value < 1:
        hint = f" (write {number}% for percent)" if not unit else ""
        raise ValueError(f"{what} must lie between 0 and 100 %, both excluded{hint}")
    return value


def _bound(words: str, said: Said, ask: Ask) -> Plan:
    bound, above = _fraction(said["rate"] or "", "the rate"), (said["sign"] or "").startswith(">")
    return plans.bounded(words, 1 - bound if above else bound, ask, above)


def _within(words: str, said: Said, ask: Ask) -> Plan:
    floor = "floor" in (said["what"] or "").lower()
    default = REMOVED_EXCESS_ASR if floor else REMOVED_ACCURACY_LOSS
    return plans.within(words, _fraction(said["rate"], "the margin") if said["rate"] else default, ask, floor)


_NUMBER = r"(?P<rate>[\d.]+\s*(%|percent|points?|pp)?)"
_CLAIMS: dict[str, Callable[[str, Said, Ask], Plan]] = {
    rf"(FSR|ASR|hit[ -]?rate)\s*(?P<sign><=?|>=?)\s*{_NUMBER}": _bound,
    r"removed": lambda words, _, ask: plans.removed(words, ask),
    r"owned": lambda words, _, ask: plans.owned(words, ask),
    r"accuracy\s*>\s*chance": lambda words, _, ask: plans.above_chance(words, ask),
    rf"(?P<what>accuracy loss)(\s*<=?\s*{_NUMBER})?": _within,
    rf"(?P<what>ASR\s*(-|minus|less)\s*floor)(\s*<=?\s*{_NUMBER})?": _within,
    r"A\s*>\s*B": lambda words, _, ask: plans.better(words, ask),
    r"A beats B": lambda words, _, ask: plans.beats(words, ask),
}
