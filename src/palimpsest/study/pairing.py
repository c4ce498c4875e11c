"""What a pair of numbers allows to say: tests over the seeds, or of one pair of models on the same items."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from palimpsest.records import Record
from palimpsest.statistics import MAXIMUM_RELABELLINGS, SIGNIFICANCE, exact_permutation, mcnemar, t_test

OUTCOMES = ("right", "same", "changed")  # details that hold an outcome an item, as zeros and ones
SETTING_FACTS = ("harness", "version", "prompt_form", "fewshot", "split", "source", "chance", "limit")

SeedTest = Literal["exact", "t"]


@dataclass(frozen=True)
class Test:
    """One test: of the pair of models of one seed, or over seeds (seed None). more, fewer: items of the second study.

    p: two-sided. adjusted: by Holm over all tests of the comparison.
    """

    seed: int | None
    name: str
    p: float
    more: int | None = None
    fewer: int | None = None
    n: int | None = None
    adjusted: float = 1.0

    @property
    def significant(self) -> bool:
        """Whether it stands at 5 % over all tests."""
        return self.adjusted <= SIGNIFICANCE


def over_seeds(first: tuple[float, ...], second: tuple[float, ...], seed_test: SeedTest = "exact") -> Test:
    """The test of the differences of at least five seeds, each seed paired with itself.

    exact: all sign flips; above 17 seeds, too many to list, t. t: the paired t test; where all differences are equal,
    which t cannot judge, the sign flips.
    """
    gaps = {b - a for a, b in zip(first, second, strict=True)}
    flips = 2 ** len(first) <= MAXIMUM_RELABELLINGS
    if gaps == {0.0}:
        return Test(None, "no difference in any seed", 1.0)
    if len(gaps) > 1 and (seed_test == "t" or not flips):
        return Test(None, "paired t", t_test(second, first, paired=True))
    if not flips:
        return Test(
            None, "sign flips", 2.0 ** (1 - len(first))
        )  # all differences equal: only two of all flips reach it
    return Test(None, "sign flips", exact_permutation(second, first, paired=True))


def why_not_items(first: Record, second: Record, same_data: bool, keys: list[str | None]) -> str:
    """Why the outcomes of two records cannot be compared item by item; nothing where they can."""
    ones, others = outcomes(first), outcomes(second)
    if ones is None or others is None:
        return "no item-wise outcomes"
    if ones.keys() != others.keys():
        return f"not the same items: {len(ones)} and {len(others)}"
    if "keys" in first.detail:
        if first.control == "other-owner" or None in keys:
            return "whether the keys are the same is not known"
        if keys[0] != keys[1]:
            return "other keys"
        if first.detail.get("independent") is False:
            return "keys of a many-to-one mark are not independent"
        return ""
    if any(first.detail.get(name) != second.detail.get(name) for name in SETTING_FACTS):
        return "the task was asked otherwise"
    package = "palimpsest-lm"
    if "harness" not in first.detail and first.versions.get(package) != second.versions.get(package):
        return "items of another version of the package"
    if first.measure in ("answers", "divergence") and not same_data:
        return "prompts of other data"
    return ""


def outcomes(record: Record) -> dict[Hashable, float] | None:
    """An outcome an item: 0 or 1 (hit, right, same, changed), or a rank; None where a record holds none."""
    rows = record.detail.get("keys")
    name = "rank" if record.measure == "rank" else "hit"
    if isinstance(rows, list) and rows and all(isinstance(r, dict) and name in r and "number" in r for r in rows):
        return {r["number"]: float(r[name]) for r in rows}
    texts = [record.detail[n] for n in OUTCOMES if isinstance(record.detail.get(n), str)]
    if len(texts) == 1 and texts[0] and set(texts[0]) <= {"0", "1"}:
        return {place: float(letter) for place, letter in enumerate(texts[0])}
    return None


def over_items(first: Record, second: Record) -> Test:
    """McNemar's exact test of two records on the same items; of ranks the exact sign test, which counts alike."""
    ones, others = outcomes(first) or {}, outcomes(second) or {}
    more = sum(others[item] > ones[item] for item in ones)
    fewer = sum(others[item] < ones[item] for item in ones)
    name = "sign test" if first.measure == "rank" else "McNemar"
    return Test(None, name, mcnemar(more, fewer), more, fewer, len(ones))
