"""fp32 or bf16 autocast, chosen by a probe: on CPUs without matrix units for it bf16 is the slower one.

Below a width of 1,024 a CPU computes in fp32 without asking: casts cost there what products save, and
small models lose accuracy. The outcome is kept in the cache folder, so that later runs on the same machine
compute alike.
"""

from __future__ import annotations

import json
import os
import platform
import time
from typing import Any

import torch

from palimpsest.checkpoint.digest import cache_folder
from palimpsest.checkpoint.output import write_text
from palimpsest.errors import BadInput
from palimpsest.method import Context

SMALLEST_WIDTH = 1024


def autocast_dtype(model: Any, ctx: Context, device: torch.device | None = None) -> torch.dtype | None:
    """The autocast dtype for training `model`, or None for its own precision.

    device: where it will be trained, where it does not lie there yet. `mixed_precision: bf16` of an accelerate
    configuration asks for bfloat16.
    """
    parameter = next(model.parameters())
    kind = (device or parameter.device).type
    if ctx.dtype == "float32" or parameter.dtype != torch.float32:
        return None
    if ctx.dtype == "bfloat16" or os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16":
        return torch.bfloat16
    if ctx.dtype != "auto":
        raise BadInput(f"dtype {ctx.dtype!r} is none of auto, float32, bfloat16")
    width = int(getattr(model.config, "hidden_size", 0) or 0)
    if kind == "cpu" and width < SMALLEST_WIDTH:
        return None
    return torch.bfloat16 if bf16_is_faster(kind, width) else None


def bf16_is_faster(device: str, width: int) -> bool:
    """Whether a bf16 step of this width takes at most 0.8 of the fp32 time here (probed once)."""
    name = f"bf16-{device}-{width}-{torch.__version__}-{torch.get_num_threads()}-{platform.processor() or 'cpu'}"
    file = cache_folder() / "precision" / (name.replace("/", "_") + ".json")
    try:
        return bool(json.loads(file.read_text())["bf16"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    faster = _seconds(device, width, torch.bfloat16) < 0.8 * _seconds(device, width, torch.float32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"bf16": faster}))
    except OSError:
        pass
    return faster


def _seconds(device: str, width: int, dtype: torch.dtype) -> float:
    """Least time of three products (512, width) x (width, width), forward and backward, casts included."""
    own = torch.Generator(device).manual_seed(0)  # a probe must not move the run's own random numbers
    rows = torch.randn(512, width, device=device, generator=own)
    weight = torch.randn(width, width, device=device, generator=own, requires_grad=True)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            product = torch.nn.functional.gelu(torch.nn.functional.linear(rows, weight))
            product.sum().backward()  # type: ignore[no-untyped-call]
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
