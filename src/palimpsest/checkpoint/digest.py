"""Digest of a checkpoint: SHA-256 over sorted (name, dtype, shape, tensor SHA-256), config and tokenizer.

Independent of sharding and of the order inside files. Cached by path, size and time of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from palimpsest.checkpoint.files import TensorInfo
from palimpsest.checkpoint.output import write_text
from palimpsest.records import canonical_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)
VOLATILE_CONFIG = ("transformers_version", "_name_or_path")


def cache_folder() -> Path:
    """Where things that can be made again are kept: $PALIMPSEST_CACHE, or ~/.cache/palimpsest."""
    given = os.environ.get("PALIMPSEST_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "palimpsest"


def _cache_file(folder: Path, config: dict[str, Any], tensors: list[TensorInfo]) -> Path:
    files = {t.file for t in tensors} | {folder / n for n in TOKENIZER_FILES if (folder / n).is_file()}
    stamp = sorted((str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    key = hashlib.sha256(canonical_json([stamp, config]).encode()).hexdigest()
    return cache_folder() / "digests" / f"{key}.json"


def known_digest(folder: Path, config: dict[str, Any], tensors: list[TensorInfo]) -> str | None:
    """The digest that was computed before of files of this size and time, or None; reads no weights."""
    try:
        return str(json.loads(_cache_file(folder, config, tensors).read_text())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checkpoint_digest(folder: Path, config: dict[str, Any], tensors: list[TensorInfo]) -> str:
    """Hex SHA-256 of a checkpoint's content."""
    known = known_digest(folder, config, tensors)
    if known is not None:
        return known
    cached = _cache_file(folder, config, tensors)
    total = hashlib.sha256()
    for tensor in tensors:
        content = hashlib.sha256()
        for block in tensor.chunks():
            content.update(block)
        entry = [tensor.name, tensor.dtype, list(tensor.shape), content.hexdigest()]
        total.update(canonical_json(entry).encode())
    total.update(canonical_json({k: v for k, v in config.items() if k not in VOLATILE_CONFIG}).encode())
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            total.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_text(cached, json.dumps({"digest": total.hexdigest()}))
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
    return total.hexdigest()
