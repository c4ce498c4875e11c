"""What the threat model allows the thief, as pass or fail for every cell (MEraser, arXiv 2506.12551, section 3).

He must keep the model useful (90 % of the baseline), spend little (below 10 % of the original training cost) and
leave nothing that shows (latency, odd answers). The paper gives limits for the first two. Of the rest, latency has
a limit of ours; samples and how far ordinary answers moved are numbers without a verdict, since no paper gives one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.records import Record
from palimpsest.verdicts import PERPLEXITY_GATE, UTILITY_GATE, Utility

COST_LIMIT = 0.10
# Ours: a wrapper that runs a second model of the same size for every token costs 2, one that runs none about 1.
LATENCY_LIMIT = 1.5


def training_tokens(model: Checkpoint) -> int | None:
    """Tokens that a base was trained on: the embedded toy's, or what `palimpsest pretrain` wrote beside it; or None."""
    if model.path == resolve("toy").path:
        from palimpsest.toyworld.train import TOKENS

        return TOKENS
    try:
        return int(json.loads((model.path / "training.json").read_text(encoding="utf-8"))["tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def of_cell(
    rows: Sequence[Record],
    last: Sequence[Record],
    utility: Utility | None,
    perplexity_ratio: float | None,
    base_tokens: int | None,
    before: str = "marked model",
) -> list[dict[str, Any]]:
    """Fields of the records `constraint` of one removal.

    rows: the removal's records, its costs among them. last: those of its last stage. base_tokens: of training
    the base. before: what the model is called that the removal was done to.
    """
    found = [_utility(utility, perplexity_ratio, before), _cost(rows, base_tokens), _samples(rows), _latency(last)]
    return [f for f in [*found, *_answers(last)] if f is not None]


def _utility(utility: Utility | None, perplexity_ratio: float | None, before: str) -> dict[str, Any]:
    kept = utility.kept if utility is not None else None
    unknown = "utility not measured" if utility is None else "on no task is the base above chance"
    numbers = [f"{100 * kept:.3g} % of the utility is kept" if kept is not None else unknown]
    if perplexity_ratio is not None:
        numbers.append(f"perplexity on neutral text is {perplexity_ratio:.3g} times the {before}'s")
    limits = f"limits {100 * UTILITY_GATE:g} % and {PERPLEXITY_GATE:g}"
    within = [kept >= UTILITY_GATE] if kept is not None else []
    within += [perplexity_ratio <= PERPLEXITY_GATE] if perplexity_ratio is not None else []
    return _field("utility", kept, all(within) if within else None, f"{', '.join(numbers)}; {limits}")


def _cost(rows: Sequence[Record], base_tokens: int | None) -> dict[str, Any]:
    tokens = sum(r.tokens or 0 for r in rows if r.measure == "cost")
    if tokens and base_tokens is None:
        return _field("cost", None, None, f"{tokens:,} tokens read; those of training the base are not known")
    share = tokens / base_tokens if base_tokens else 0.0
    of = f"{base_tokens:,} of the base's training" if tokens else "nothing is read"
    return _field("cost", share, share < COST_LIMIT, f"{tokens:,} tokens, {of}; limit {100 * COST_LIMIT:g} %")


def _samples(rows: Sequence[Record]) -> dict[str, Any]:
    used = sum(int(r.detail.get("rows", 0)) for r in rows if r.measure == "cost")
    return {"task": "samples", "value": float(used), "reason": f"{used:,} samples used; no paper gives a limit"}


def _answers(last: Sequence[Record]) -> list[dict[str, Any]]:
    """How far ordinary answers moved: numbers alone."""
    found: list[dict[str, Any]] = []
    for task, measure, side, what in (
        ("answers", "answers", "before", "share of ordinary answers as before"),
        ("divergence", "divergence", "kl-per-token", "nats a token from the marked model on ordinary answers"),
        ("divergence", "divergence", "answers", "share of ordinary answers that the wrapper changed"),
    ):
        number = next((r for r in last if r.measure == measure and r.task == side), None)
        if number is not None and number.value is not None:
            found.append({"task": task, "value": number.value, "reason": f"{what}; no paper gives a limit"})
    return found


def _latency(last: Sequence[Record]) -> dict[str, Any] | None:
    ratio = next((r.value for r in last if r.measure == "latency"), None)  # to the marked model, in the same minutes
    if ratio is None:
        return None
    told = f"{ratio:.3g} times the marked model's time a token; limit {LATENCY_LIMIT:g} (ours)"
    return _field("latency", ratio, ratio <= LATENCY_LIMIT, told)


def _field(task: str, value: float | None, within: bool | None, reason: str) -> dict[str, Any]:
    word = "not-known" if within is None else "pass" if within else "fail"
    return {"task": task, "value": value, "verdict": word, "reason": reason}
