"""Paths in a study file: `${NAME}` is the environment's."""

from __future__ import annotations

import os
import re

from palimpsest.errors import BadInput


def expanded(path: str) -> str:
    """A path with its `${NAME}` filled in from the environment. Raises BadInput where one is not set."""
    filled = os.path.expandvars(path)
    left = re.search(r"\$\{?(\w+)\}?", filled)
    if left and left.group() in path:
        raise BadInput(f"{path}: the environment has no {left.group(1)}; set it to the folder that is meant")
    return filled
