"""Which units go, given their scores: LLM-Pruner's local and global budgets (its MetaPruner, arXiv 2305.11627)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from palimpsest.errors import BadInput
from palimpsest.removals.weights.coupling import Group, Places

Scope = Literal["local", "global"]


def kept_of(count: int, ratio: float) -> int:
    """int(count * (1 - ratio)), safe against 10 * (1 - 0.9) being a hair below 1."""
    return int(count * (1 - ratio) + 1e-9)


def local_count(group: Group, ratio: float) -> int:
    """Units to remove: n - int(n * (1 - ratio)) channels, whole units by floor division.

    So 5 and 20 % remove no head of four, since 13 and 52 of 256 channels are less than one head of 64.
    """
    channels = group.units * group.size
    return (channels - kept_of(channels, ratio)) // group.size


def check_local(groups: Sequence[Group], ratio: float, what: str) -> None:
    """BadInput where a local ratio leaves no unit of a group."""
    for group in groups:
        if local_count(group, ratio) >= group.units:
            _refuse(group, ratio, what)


def choose(groups: Sequence[Group], scores: Sequence[Tensor], ratio: float, scope: Scope, what: str) -> list[Places]:
    """Numbers of the units that go, for each group. scores: (units,) each, the lowest go first.

    local: `local_count` of each group. global: all scores in one pool of N; with n = N - int(N * (1 - ratio)),
    everything at or under the n-th smallest goes. Of equal scores those with the lower number go first (local), or
    all (global). Raises BadInput where a group keeps no unit.
    """
    for group, found_scores in zip(groups, scores, strict=True):
        if not bool(torch.isfinite(found_scores).all()):
            raise BadInput(f"{what}: scores of layer {group.layer} are not finite: its weights hold NaN or infinity")
    if scope == "local":
        orders = [s.argsort(stable=True)[: local_count(g, ratio)] for g, s in zip(groups, scores, strict=True)]
        found = [np.sort(order.numpy()) for order in orders]
    else:
        pool = torch.cat(list(scores))
        number = len(pool) - kept_of(len(pool), ratio)
        cut = float(pool.kthvalue(number).values) if number else float("-inf")
        found = [np.flatnonzero(s.numpy() <= cut) for s in scores]
    for group, units in zip(groups, found, strict=True):
        if len(units) >= group.units:
            _refuse(group, ratio, what)
    return found


def _refuse(group: Group, ratio: float, what: str) -> None:
    one = {"heads": "head", "channels": "channel of the feed-forward", "columns": "column"}[group.kind]
    raise BadInput(f"{what}: ratio {ratio} leaves no {one} in layer {group.layer} (of {group.units}); take a lower one")
