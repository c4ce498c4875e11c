"""Assignment: hand-worked cases, agreement with scipy's solver, and pairs that are certain without one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from palimpsest.realignments import matching
from palimpsest.realignments.matching import Rows, assign, match


def table(rows: list[list[float]]) -> matching.Similarities:
    whole = torch.tensor(rows)
    return lambda a, b: whole[a][:, b]


def test_a_pair_is_certain_only_where_no_other_assignment_can_gain() -> None:
    found = assign(table([[0.1, 0.9, 0.0], [0.8, 0.0, 0.1], [0.1, 0.0, 0.7]]), 3)
    assert found.order.tolist() == [1, 0, 2] and found.certain == 3 and found.moved == 2


def test_the_largest_entry_is_not_taken_where_two_others_are_worth_more() -> None:
    # greedy takes (0, 0) = 1.0 and is left with 0.0; the best sum is 0.9 + 0.9
    found = assign(table([[1.0, 0.9], [0.9, 0.0]]), 2)
    assert found.order.tolist() == [1, 0] and found.certain == 0


@settings(max_examples=40, deadline=None)
@given(number=st.integers(1, 30), seed=st.integers(0, 10**6), peak=st.floats(0, 3), block=st.integers(1, 900))
def test_the_sum_is_that_of_the_exact_solver(number: int, seed: int, peak: float, block: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    whole = torch.randn(number, number, generator=drawn)
    order = torch.randperm(number, generator=drawn)
    whole[torch.arange(number), order] += peak
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(matching, "BLOCK", block)
        found = assign(lambda a, b: whole[a][:, b], number)
    rows, columns = linear_sum_assignment(whole.numpy(), maximize=True)
    assert sorted(found.order.tolist()) == list(range(number))
    mine = float(whole[torch.arange(number), found.order].double().sum())
    assert mine == pytest.approx(float(whole[rows, columns].double().sum()), abs=1e-5)


def test_signs_are_told_apart_where_they_count_and_only_there() -> None:
    anchor = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert match(Rows((-anchor,)), Rows((anchor,))).order.tolist() == [1, 0]
    free = torch.tensor([[2.0, 0.0], [0.0, -3.0]])
    assert match(Rows((), (-free,)), Rows((), (free,))).order.tolist() == [0, 1]
    # up and down share one sign: u and w of neuron 0 agree with each other, those of neuron 1 do not
    up, down = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert match(Rows((), (-up, -down)), Rows((), (up, down))).order.tolist() == [0, 1]
    assert match(Rows((), (up[[1, 0]], -down[[1, 0]])), Rows((), (up, down))).order.tolist() == [0, 1]


def test_random_projections_find_what_whole_rows_find(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.Generator().manual_seed(0)
    gate, up = torch.randn(80, 600, generator=drawn), torch.randn(80, 600, generator=drawn)
    order = torch.randperm(80, generator=drawn)
    signs = torch.randint(0, 2, (80, 1), generator=drawn) * 2.0 - 1

    def moved(x: torch.Tensor) -> torch.Tensor:
        return (x + 0.3 * torch.randn(x.shape, generator=drawn))[order]

    mine, anchor = Rows((moved(gate),), (moved(up) * signs,)), Rows((gate,), (up,))
    whole = match(mine, anchor)
    monkeypatch.setattr(matching, "MANY", 10)
    monkeypatch.setattr(matching, "SKETCH", 300)
    rough = match(mine, anchor)
    assert torch.equal(rough.order, whole.order) and torch.equal(whole.order, torch.argsort(order))
    assert rough.certain > 40


def test_rows_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows are matched with 2"):
        match(Rows((torch.zeros(3, 2),)), Rows((torch.zeros(2, 2),)))
