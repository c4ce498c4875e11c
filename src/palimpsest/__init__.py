"""Palimpsest: ownership security of open-weight language models. Every command is one call here.

The functions of `palimpsest.api` are exported lazily, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    from palimpsest import api

    if name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module 'palimpsest' has no attribute {name!r}")


def __dir__() -> list[str]:
    from palimpsest import api

    return sorted(api.__all__)
