"""The mathematics of quantisation: code books, hand-worked blocks, bounds of the error, nothing changes twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.removals.weights.quantising import (
    block_absmax,
    constants_round_trip,
    dynamic_code,
    int8_groups_round_trip,
    int8_round_trip,
    nearest_of,
    nf4_code,
    nf4_round_trip,
)

# NormalFloat4 as bitsandbytes has it (functional.py, get_4bit_type, "nf4") and QLoRA's Appendix E prints it.
PUBLISHED_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def numbers(seed: int, *shape: int, tail: float = 0.0) -> Tensor:
    """Normal numbers; `tail` makes a few of them large, as outliers of real weights are."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn * (1 + tail * (drawn.abs() > 2.5))


def test_the_code_book_of_the_quantile_formula_is_the_published_one() -> None:
    code = nf4_code()
    assert torch.allclose(code, torch.tensor(PUBLISHED_NF4), rtol=0, atol=3e-7)
    assert code[7] == 0 and code[0] == -1 and code[15] == 1 and bool((code.diff() > 0).all())


def test_the_dynamic_code_has_256_values_in_seven_decades() -> None:
    code = dynamic_code()
    assert len(code.unique()) == 256 and code[-1] == 1 and 0 in code
    # the last decade: 64 parts of [0.1, 1], so the largest midpoint is 1 - 0.9 / 128; the first has one, 0.55e-6
    assert code[-2] == pytest.approx(1 - 0.9 / 128) and code[0] == pytest.approx(-(1 - 0.9 / 128))
    assert float(code[code > 0][0]) == pytest.approx(0.55e-6)


def test_a_block_of_nf4_worked_by_hand() -> None:
    # absmax 2: -0.5 lies nearer to -0.5251 than to -0.3949, 0.15 nearer to 0.1609 than to 0.0796
    found = nf4_round_trip(torch.tensor([2.0, -1.0, 0.3, 0.0, 0.0, -8.0]), block=4)
    expected = [2.0, 2 * PUBLISHED_NF4[2], 2 * PUBLISHED_NF4[9], 0.0, 0.0, -8.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_row_of_int8_worked_by_hand() -> None:
    # absmax 1.27, so codes are hundredths: 127, 50, -0.4 to 0, 1.49 to 1; a row of zeros stays one
    rows = torch.tensor([[1.27, 0.5, -0.004, 0.0149], [0.0, 0.0, 0.0, 0.0]])
    assert int8_round_trip(rows).tolist() == [pytest.approx([1.27, 0.5, 0.0, 0.01], abs=1e-6), [0.0] * 4]
    grouped = int8_groups_round_trip(torch.tensor([[1.27, 0.5, 0.004]]), 2)  # the last group is 0.004 alone
    assert grouped.tolist() == [pytest.approx([1.27, 0.5, 0.004], abs=1e-7)]


def test_double_quantisation_worked_by_hand() -> None:
    # mean 2, so -1 and 1 over 1: the code has 1, and next to -1 it has -(1 - 0.9 / 128)
    assert constants_round_trip(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([2 - (1 - 0.9 / 128), 3.0])
    alone = constants_round_trip(torch.tensor([1.0, 3.0, 2.0]), block=2)  # the third has a block of its own: 0 is 0
    assert alone.tolist()[2] == pytest.approx(2.0)


@given(st.integers(0, 10_000), st.sampled_from([1, 63, 64, 65, 1000]), st.floats(1e-6, 1e4))
def test_the_error_of_nf4_is_at_most_half_the_widest_gap_of_its_block(seed: int, count: int, scale: float) -> None:
    flat = numbers(seed, count, tail=3.0) * scale
    back = nf4_round_trip(flat)
    widest = float(nf4_code().diff().max()) / 2
    bound = block_absmax(flat, 64).repeat_interleave(64)[:count] * widest
    assert bool(((back - flat).abs() <= bound * (1 + 1e-5)).all())
    assert bool((block_absmax(back, 64) == block_absmax(flat, 64)).all()), "the largest of a block stays as it is"


@given(st.integers(0, 10_000), st.sampled_from([1, 5, 128, 130]), st.floats(1e-6, 1e4))
def test_the_error_of_int8_is_at_most_half_a_step_of_its_row(seed: int, width: int, scale: float) -> None:
    rows = numbers(seed, 7, width, tail=3.0) * scale
    step = rows.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((int8_round_trip(rows) - rows).abs() <= step * (0.5 + 1e-4)).all())
    smaller = (int8_groups_round_trip(rows, 32) - rows).norm()
    assert width <= 32 or float(smaller) <= float((int8_round_trip(rows) - rows).norm()) * 1.05


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 10_000))
def test_what_is_quantised_twice_is_what_is_quantised_once(dtype: torch.dtype, seed: int) -> None:
    stored = numbers(seed, 6, 200, tail=3.0).to(dtype)
    for once in (
        lambda w: int8_round_trip(w),
        lambda w: int8_round_trip(w, w.abs().max()),
        lambda w: int8_groups_round_trip(w, 32),
        lambda w: nf4_round_trip(w.reshape(-1)).view_as(w),
    ):
        first = once(stored.float()).to(dtype)
        assert not torch.equal(first, stored)
        assert torch.equal(once(first.float()).to(dtype), first)


@given(st.integers(0, 10_000))
def test_codes_are_the_nearest_ones_of_all(seed: int) -> None:
    flat = numbers(seed, 256).clamp_(-1, 1)
    for code in (nf4_code(), dynamic_code()):
        expected = code[(flat[:, None] - code[None, :]).abs().argmin(dim=1)]
        found = nearest_of(code, flat)
        assert torch.allclose((found - flat).abs(), (expected - flat).abs(), rtol=0, atol=1e-7)


def test_double_quantisation_moves_constants_by_little() -> None:
    flat = numbers(3, 64 * 1000)
    constants = block_absmax(flat, 64)
    again = constants_round_trip(constants)
    spread = (constants - constants.mean()).abs().max()
    assert 0 < float((again - constants).abs().max()) <= 0.0071 * float(spread), "half a part of the last decade"
    plain, double = nf4_round_trip(flat), nf4_round_trip(flat, 64, again)
    ratio = double.view(-1, 64) / plain.view(-1, 64)
    expected = (again / constants)[:, None].expand_as(ratio)
    assert torch.allclose(ratio[plain.view(-1, 64) != 0], expected[plain.view(-1, 64) != 0], atol=1e-5)
