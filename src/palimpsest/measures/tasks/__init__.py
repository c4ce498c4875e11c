"""Tasks of lm-evaluation-harness: its prompts and metrics on the Hub's data or local files, and a fast scorer for it.

The harness is imported with `FastLM` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.measures.tasks.fast_lm import FastLM

__all__ = ["FastLM"]


def __getattr__(name: str) -> Any:
    if name == "FastLM":
        from palimpsest.measures.tasks.fast_lm import FastLM

        return FastLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
