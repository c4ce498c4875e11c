"""Weights of one tensor as the engine reads them: bounded stretches, from a whole model or from an adapter on its base.

Stretches are read with preadv into buffers of the worker; nothing is mapped, since mapped pages count as resident.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from palimpsest.checkpoint.files import TensorInfo
from palimpsest.errors import BadInput

STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
RowNumbers = np.ndarray[Any, np.dtype[np.int64]]
STORED_NAMES = {dtype: name for name, dtype in STORED.items()}


class Files:
    """Open files, each opened once; reading at a place needs no lock."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read(self, file: Path, start: int, into: memoryview, what: str) -> None:
        """Fill `into` from byte `start`. Raises BadInput where the file ends before."""
        handle = self._open.get(file)
        if handle is None:
            with self._lock:
                handle = self._open.get(file)
                if handle is None:
                    handle = self._open[file] = os.open(file, os.O_RDONLY)
        done = 0
        while done < len(into):
            got = os.preadv(handle, [into[done:]], start + done)
            if got == 0:
                raise BadInput(f"{file}: is truncated inside tensor {what}")
            done += got

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            for handle in self._open.values():
                os.close(handle)
            self._open.clear()


class Buffers:
    """One worker's memory: bytes, numbers for each place, scratch numbers; grown to the largest stretch held.

    A chunk stands here until `next_chunk`. Asking the C library for a megabyte at a time costs page faults, or, where
    it keeps what is freed, holes that no aligned block fits into again. Bytes are turned into numbers at once, so that
    one buffer, which stays in the core's cache, serves all that is read and written.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._numbers: dict[int, Tensor] = {}
        self._scratch: list[Tensor] = []
        self._used = 0
        self.checking = True  # whether what is read is looked at for NaN and infinity: once is enough

    def bytes(self, size: int) -> memoryview:
        """`size` bytes; what they held is gone."""
        if len(self._bytes) < size:
            self._bytes = bytearray(size)
        return memoryview(self._bytes)[:size]

    def numbers(self, place: int, count: int) -> Tensor:
        """`count` float32 numbers of a place; what they held is gone."""
        if place not in self._numbers or self._numbers[place].numel() < count:
            self._numbers[place] = torch.empty(count)
        return self._numbers[place][:count]

    def scratch(self, count: int) -> Tensor:
        """`count` more float32 numbers, for this chunk."""
        if self._used == len(self._scratch):
            self._scratch.append(torch.empty(count))
        elif self._scratch[self._used].numel() < count:
            self._scratch[self._used] = torch.empty(count)
        self._used += 1
        return self._scratch[self._used - 1][:count]

    def stored(self, count: int, dtype: torch.dtype) -> Tensor:
        """`count` numbers in the dtype in which they are stored."""
        raw = self.bytes(count * dtype.itemsize)
        return torch.frombuffer(raw, dtype=dtype)

    def next_chunk(self) -> None:
        """All scratch is free again."""
        self._used = 0


class Source(Protocol):
    """A tensor of one model, of `shape`, in `dtype` where it is stored."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, first: int, end: int, files: Files, buffers: Buffers, place: int) -> Tensor:
        """Numbers `first` to `end` of the flattened tensor: (end - first,) float32, in the buffers' place."""
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file. `model` is what messages call it."""

    info: TensorInfo
    model: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.info.shape

    @property
    def dtype(self) -> torch.dtype:
        """In what it is stored."""
        return STORED[self.info.dtype]

    def read(self, first: int, end: int, files: Files, buffers: Buffers, place: int) -> Tensor:
        """Numbers `first` to `end`, (end - first,) float32. Raises BadInput for one that is not finite."""
        width = self.dtype.itemsize
        raw = buffers.bytes((end - first) * width)
        files.read(self.info.file, self.info.start + first * width, raw, self.info.name)
        found = buffers.numbers(place, end - first).copy_(torch.frombuffer(raw, dtype=self.dtype))
        if buffers.checking:
            check_finite(found, first, self.model, self.info.name)
        return found


@dataclass(frozen=True)
class Rows:
    """Rows of another source in another order: row i of this is row `rows[i]` of it, where that is not -1.

    For vocabularies that differ: rows of an embedding follow the tokens of the merged model. A row that the source
    lacks is the mean of those of `fill`: sources with their rows, -1 where they do not count; none gives zeros.
    """

    source: Source
    rows: RowNumbers
    fill: Sequence[tuple[Source, RowNumbers]] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """As many rows as asked for."""
        return (len(self.rows), *self.source.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """That of the source."""
        return self.source.dtype

    def read(self, first: int, end: int, files: Files, buffers: Buffers, place: int) -> Tensor:
        """Numbers `first` to `end`: the rows they are in are read whole, neighbours at once."""
        width = torch.Size(self.source.shape[1:]).numel()
        top, bottom = first // width, -(-end // width)
        out = torch.zeros(bottom - top, width)

        def add(source: Source, wanted: RowNumbers) -> None:
            for at, row, count in _runs(wanted):
                part = source.read(row * width, (row + count) * width, files, buffers, place)
                out[at : at + count] += part.view(count, width)

        own = self.rows[top:bottom]
        add(self.source, own)
        missing = own < 0
        if missing.any():
            counts = np.zeros(bottom - top)
            for source, rows in self.fill:
                theirs = np.where(missing, rows[top:bottom], -1)
                add(source, theirs)
                counts += theirs >= 0
            out /= torch.from_numpy(np.maximum(counts, 1)).float()[:, None]
        return out.view(-1)[first - top * width : end - top * width]


def _runs(rows: RowNumbers) -> Iterator[tuple[int, int, int]]:
    """(place, row, count) of the stretches in which rows follow each other; those below 0 left out."""
    ends = [*(np.flatnonzero((np.diff(rows) != 1) | (rows[:-1] < 0)) + 1).tolist(), len(rows)]
    begin = 0
    for end in ends:
        if end > begin and rows[begin] >= 0:
            yield begin, int(rows[begin]), end - begin
        begin = end


def check_finite(numbers: Tensor, first: int, model: str, tensor: str) -> None:
    """BadInput that names model, tensor and position where a number is NaN or infinite."""
    if math.isfinite(numbers.sum().item()):
        return
    bad = (~torch.isfinite(numbers)).nonzero().flatten()
    if bad.numel():  # else only the sum was too large for float32
        value = float(numbers[bad[0]])
        raise BadInput(
            f"{model}: tensor {tensor} holds {value} at position {first + int(bad[0])}; a merge would spread it"
        )
