"""Checks before a long command loads a model: memory, disk, vocabulary, family.

A command is refused, with exit code 2 and nothing written, where it cannot end well: weights and optimiser state
alone exceed all memory there is, the output does not fit on the disk, the architecture has no adapters here, or
keys and models do not belong together. Where the estimate with activations exceeds what is free now, a line says so
and the command goes on: the estimate takes the longest rows that the settings allow.
"""

from palimpsest.preflight.checks import (
    before_asking,
    before_method,
    before_pretraining,
    check_disk,
    check_keys,
    check_memory,
)
from palimpsest.preflight.estimate import Estimate, estimate_memory
from palimpsest.preflight.jobs import Job, jobs_of, written_bytes

__all__ = [
    "Estimate",
    "Job",
    "before_asking",
    "before_method",
    "before_pretraining",
    "check_disk",
    "check_keys",
    "check_memory",
    "estimate_memory",
    "jobs_of",
    "written_bytes",
]
