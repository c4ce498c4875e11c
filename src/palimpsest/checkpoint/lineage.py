"""Public lineage: `palimpsest.json` in a checkpoint folder says how it was made, and no secret.

An entry holds the method, the parents' digests, the version, and for an implant the salted commitment.
Seeds, keys and key-making parameters never enter it.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from palimpsest.checkpoint.output import write_text

FILE = "palimpsest.json"


def read(folder: Path) -> list[dict[str, Any]]:
    """The chain of a folder, oldest first; empty where the folder is not ours."""
    file = folder / FILE
    if not file.is_file():
        return []
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))["chain"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return []


def write(
    folder: Path,
    parent_chain: list[dict[str, Any]],
    method: str,
    parents: dict[str, str],
    commitment: str | None = None,
) -> None:
    """Write the chain of a new checkpoint: its first parent's and this step.

    parents: role ("model", "base", ...) to digest.
    """
    entry: dict[str, Any] = {"method": method, "parents": parents, "palimpsest": own_version()}
    if commitment is not None:
        entry["commitment"] = commitment
    body = {"format": 1, "chain": [*parent_chain, entry]}
    write_text(folder / FILE, json.dumps(body, indent=1) + "\n")


def own_version() -> str:
    """Version of this package."""
    try:
        return version("palimpsest-lm")
    except PackageNotFoundError:
        return "unknown"
