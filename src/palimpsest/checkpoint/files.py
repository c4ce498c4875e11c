"""Streaming reads of safetensors folders: headers checked against file sizes, bytes in bounded buffers."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from palimpsest.errors import BadInput

CHUNK = 4 << 20
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: dtype as safetensors names it, shape, file, and byte range in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The tensor's bytes, `size` at most at a time."""
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            left = self.end - self.start
            while left:
                block = handle.read(min(size, left))
                if not block:
                    raise BadInput(f"{self.file}: is truncated inside tensor {self.name}")
                left -= len(block)
                yield block


def read_header(file: Path) -> list[TensorInfo]:
    """Tensors of one safetensors file; BadInput where header and file size do not agree."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        head = handle.read(8)
        if len(head) < 8:
            raise BadInput(f"{file}: is truncated (it has {size} bytes, no safetensors header)")
        (length,) = struct.unpack("<Q", head)
        if length > size - 8:
            raise BadInput(f"{file}: is truncated or no safetensors file (header of {length} bytes in {size})")
        try:
            header = json.loads(handle.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise BadInput(f"{file}: is no safetensors file (its header is no JSON)") from None
    base = 8 + length
    try:
        found = [
            TensorInfo(name, entry["dtype"], tuple(entry["shape"]), file, *(base + at for at in entry["data_offsets"]))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (TypeError, KeyError, AttributeError):
        raise BadInput(f"{file}: is no safetensors file (its header does not say where tensors lie)") from None
    needed = max((t.end for t in found), default=base)
    if needed > size:
        raise BadInput(f"{file}: is truncated: it has {size} of {needed} bytes")
    return found


def weight_files(folder: Path, stem: str = "model") -> list[Path]:
    """The safetensors files of a folder, from its index where it has one.

    Raises BadInput for pickled weights, no weights, or a shard that the index names and is not there.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted({Path(n).name for n in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError):
            raise BadInput(f"{index}: is no safetensors index") from None
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise BadInput(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(names)} shards)")
        return [folder / n for n in names]
    single = folder / f"{stem}.safetensors"
    if single.is_file():
        return [single]
    pickled = [p for pattern in PICKLED for p in sorted(folder.glob(pattern))]
    if pickled:
        raise BadInput(
            f"{folder}: its weights are pickled ({pickled[0].name}), which can run code; convert them with "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)`"
        )
    raise BadInput(f"{folder}: has no {stem}.safetensors")


def tensors(folder: Path, stem: str = "model") -> list[TensorInfo]:
    """All tensors of a folder, sorted by name."""
    found = [t for file in weight_files(folder, stem) for t in read_header(file)]
    return sorted(found, key=lambda t: t.name)
