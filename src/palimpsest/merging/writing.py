"""Writing shards of known size: header first, space allocated at once, tensors straight into their place."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_SHARD = 5_000_000_000  # bytes, as the Hugging Face libraries write them


@dataclass(frozen=True)
class Slot:
    """A tensor to write: its name, dtype as safetensors names it, shape, and size in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class Shards:
    """The weight files of a folder, allocated at once and filled in any order from any thread.

    `stem`.safetensors where all fits `largest` bytes, else numbered shards and their index. A full disk is known
    before the first number is written.
    """

    def __init__(self, folder: Path, slots: Sequence[Slot], stem: str = "model", largest: int = LARGEST_SHARD) -> None:
        groups: list[list[Slot]] = [[]]
        size = 0
        for slot in slots:
            if groups[-1] and size + slot.size > largest:
                groups.append([])
                size = 0
            groups[-1].append(slot)
            size += slot.size
        self._handles: list[int] = []
        self._places: dict[str, tuple[int, int]] = {}
        names = [_file_name(stem, i, len(groups)) for i in range(len(groups))]
        try:
            for name, group in zip(names, groups, strict=True):
                self._allocate(folder / name, group)
        except BaseException:
            self.close()
            raise
        if len(groups) > 1:
            weight_map = {s.name: n for n, group in zip(names, groups, strict=True) for s in group}
            body = {"metadata": {"total_size": sum(s.size for s in slots)}, "weight_map": weight_map}
            (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")

    def _allocate(self, file: Path, group: list[Slot]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for slot in group:
            header[slot.name] = {
                "dtype": slot.dtype,
                "shape": list(slot.shape),
                "data_offsets": [offset, offset + slot.size],
            }
            offset += slot.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
        start = 8 + len(text)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._handles.append(handle)
        if offset:
            os.posix_fallocate(handle, 0, start + offset)
        os.pwrite(handle, struct.pack("<Q", len(text)) + text, 0)
        at = start
        for slot in group:
            self._places[slot.name] = (handle, at)
            at += slot.size

    def write(self, name: str, offset: int, data: memoryview) -> None:
        """Write bytes of a tensor, `offset` bytes after its begin."""
        handle, start = self._places[name]
        done = 0
        while done < len(data):
            done += os.pwrite(handle, data[done:], start + offset + done)

    def close(self) -> None:
        """Close the files."""
        while self._handles:
            os.close(self._handles.pop())


def _file_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
