"""Random draws that depend on (seed, tensor, model, position) alone, and not on threads, shards or chunk size.

The generator is Philox 4x64-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011), counter-based
and free of known defects (it passes BigCrush), in NumPy's implementation. The key is made of seed, tensor name
and model by SHA-256; the counter is the position: each step of it gives eight draws of 32 bits. Where a draw's first
8 bits do not decide, SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014; it
passes BigCrush too) gives 24 more at that position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

Mask = np.ndarray[Any, np.dtype[np.bool_]]
FULL = 1 << 32


def draws(seed: int, tensor: str, model: int, first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Uniform 32-bit draws for positions `first` to `first + count` of a tensor: (count,) uint32."""
    return _drawn("<u4", f"{seed}\0{tensor}\0{model}", first, count)


def kept(seed: int, tensor: str, model: int, first: int, count: int, share: float) -> Mask:
    """Which positions a Bernoulli draw of probability `share` keeps (to 2**-32): (count,) bool.

    A draw has 32 bits, of which the lower 24 are only made where the upper 8 do not decide: once in 256.
    """
    level = round(share * FULL)
    if level >= FULL:
        return np.ones(count, dtype=np.bool_)
    name, (upper, lower) = f"{seed}\0{tensor}\0{model}\0", divmod(level, 1 << 24)
    first_bits = _drawn("u1", name + "upper", first, count)
    found: Mask = first_bits < np.uint8(upper)
    if lower:
        open_ = np.flatnonzero(first_bits == np.uint8(upper))
        found[open_] = _split_mix(_key(name + "lower")[0], first + open_) >> np.uint64(40) < np.uint64(lower)
    return found


def _split_mix(key: np.uint64, places: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The draws of 64 bits that SplitMix64 makes from the seed `key` at some places, the first being 0: (n,)."""
    state = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _key(name: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Two words of 64 bits from a name."""
    return np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], "<u8")


def _drawn(kind: str, name: str, first: int, count: int) -> np.ndarray[Any, Any]:
    """Positions `first` to `first + count` of the draws of a name: (count,) of the unsigned `kind`.

    A step of the counter gives four words of 64 bits, which hold 8 draws of 32 bits or 32 of 8.
    """
    per_step = 32 // np.dtype(kind).itemsize
    step, skip = divmod(first, per_step)
    steps = -(-(skip + count) // per_step)
    words = np.asarray(np.random.Philox(key=_key(name), counter=[step, 0, 0, 0]).random_raw(4 * steps), dtype="<u8")
    return words.view(kind)[skip : skip + count]


class Masks:
    """Which entries are kept, from one pass to the next: a bit for each number and model of the tensor in work.

    Without `twice` nothing is kept: what is drawn again from the same positions is the same, but a bit costs less than
    a draw, and far less than the ranks of a row.
    """

    def __init__(self, twice: bool) -> None:
        self._twice = twice
        self._bits: dict[tuple[int, int], np.ndarray[Any, np.dtype[np.uint8]]] = {}

    def mask(self, model: int, chunk: int, count: int, draw: Callable[[], Mask]) -> Mask:
        """The mask of a model's chunk, (count,) bool: drawn the first time, and kept for the second."""
        known = self._bits.pop((model, chunk), None)
        if known is not None:
            return np.unpackbits(known, count=count).view(np.bool_)
        drawn = draw()
        if self._twice:
            self._bits[model, chunk] = np.packbits(drawn)
        return drawn
