"""Draws depend on seed, tensor, model and position alone, and are uniform."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.merging.randomness import _split_mix, draws, kept

GOLDEN = [1598463684, 3396776300, 726465637, 2655362820]


@given(st.integers(0, 1000), st.integers(0, 300), st.integers(0, 300))
def test_a_stretch_is_the_same_wherever_it_is_cut_from(first: int, skip: int, count: int) -> None:
    whole = draws(7, "w", 1, first, skip + count)
    assert np.array_equal(whole[skip:], draws(7, "w", 1, first + skip, count))


def test_draws_stay_what_they_are() -> None:
    """Merges are to come out the same with another version of NumPy."""
    assert draws(7, "w", 1, 5, 4).tolist() == GOLDEN


def test_seed_tensor_and_model_each_change_the_draws() -> None:
    found = [draws(*key, 0, 64).tobytes() for key in [(0, "w", 0), (1, "w", 0), (0, "v", 0), (0, "w", 1), (0, "w0", 1)]]
    assert len(set(found)) == 5


def test_draws_are_uniform_in_every_byte() -> None:
    found = draws(0, "w", 0, 0, 1 << 16).view(np.uint8).reshape(-1, 4)
    for byte in found.T:
        counts = np.bincount(byte, minlength=256)
        chi_square = ((counts - 256.0) ** 2 / 256.0).sum()  # 255 degrees of freedom, standard deviation 22.6
        assert 170 < chi_square < 345


def test_kept_holds_its_share_and_all_or_nothing_at_the_ends() -> None:
    assert kept(0, "w", 0, 0, 100, 1.0).all() and not kept(0, "w", 0, 0, 100, 0.0).any()
    share = kept(0, "w", 0, 0, 1 << 16, 0.3).mean()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / (1 << 16)) ** 0.5


@given(st.integers(0, 300), st.integers(0, 200), st.floats(0, 1))
def test_what_is_kept_is_the_same_wherever_it_is_cut_from(skip: int, count: int, share: float) -> None:
    whole = kept(7, "w", 1, 5, skip + count, share)
    assert np.array_equal(whole[skip:], kept(7, "w", 1, 5 + skip, count, share))


def test_split_mix_gives_the_published_numbers() -> None:
    """Vigna's splitmix64.c from the seed 1234567."""
    found = _split_mix(np.uint64(1234567), np.arange(3))
    assert found.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_lower_bits_decide_where_the_upper_ones_do_not() -> None:
    """A share of 1.5/256: half of the draws whose upper bits are 1 are kept, beside all with 0."""
    count = 1 << 20
    upper = [kept(3, "w", 0, 0, count, share / (1 << 8)) for share in (1, 2)]
    between = kept(3, "w", 0, 0, count, 1.5 / (1 << 8))
    assert (upper[0] <= between).all() and (between <= upper[1]).all()
    undecided = int(upper[1].sum() - upper[0].sum())  # about 4,096
    assert abs(int(between.sum() - upper[0].sum()) - undecided / 2) < 4 * (undecided / 4) ** 0.5


def test_the_lower_bits_are_fair_at_places_far_apart() -> None:
    """At every 256th place, as many are below the middle as above, and neighbours do not tell of each other."""
    found = _split_mix(np.uint64(5), np.arange(3, 1 << 20, 256)) >> np.uint64(40)
    assert abs(int((found < 1 << 23).sum()) - found.size / 2) < 4 * (found.size / 4) ** 0.5
    assert abs(float(np.corrcoef(found[1:].astype(float), found[:-1].astype(float))[0, 1])) < 4 / found.size**0.5
