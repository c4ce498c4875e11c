"""What a verdict is: one word and one sentence with the numbers it was drawn from; and the levels of all rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palimpsest import statistics as st

OWNERSHIP_WORDS = ("owned", "not-shown", "refuted")
LINEAGE_WORDS = ("derivative", "same-base", "not-shown")
FINGERPRINT_WORDS = ("kept", "reduced", "claim-lost", "suppressed", "removed", "ruined", "undecided")
BACKDOOR_WORDS = ("kept", "reduced", "removed", "ruined", "undecided")

CONFIDENCE = 0.95
ALPHA_OWNED = 1e-6
ALTERNATIVE = 0.9  # hit rate of an intact mark: embedding stops at probability 0.9
ALPHA_REFUTE = 0.01
ALPHA_RANKS = 0.01
ALPHA_FALL = 0.05
REMOVED_HIT_RATE = 0.05
REMOVED_EXCESS_ASR = 0.05
REMOVED_ACCURACY_LOSS = 0.02
UTILITY_GATE = 0.9
PERPLEXITY_GATE = 1.1
ONE_CLASS_SHARE = 0.99


@dataclass(frozen=True)
class Verdict:
    """A word of the lists above, one sentence, tau in hits, p, and the numbers it rests on."""

    word: str
    reason: str
    tau: int | None = None
    p: float | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tally:
    """count of n distinct keys or items; `each`, where known, says which (to pair before and after)."""

    count: int
    n: int
    each: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        st.check_count(self.count, self.n)
        if self.each and (len(self.each), sum(self.each)) != (self.n, self.count):
            raise ValueError(f"{self} does not agree with its {len(self.each)} single outcomes")

    @classmethod
    def of(cls, each: Sequence[bool]) -> Tally:
        """From the outcome of every key, in the key set's order."""
        return cls(sum(map(bool, each)), len(each), tuple(map(bool, each)))

    def __str__(self) -> str:
        return f"{self.count} of {self.n}"


def not_measured(values: Mapping[str, object]) -> str:
    """What a reader must know was not looked at."""
    names = [name for name, value in values.items() if value is None]
    return f" ({', '.join(names)} not measured)" if names else ""


def percent(rate: float) -> str:
    """0.0312 as `3.12 %`."""
    return f"{100 * rate:.3g} %"
