"""Two forked CPU processes for tests: what the test process has imported they need not import again."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def in_two(work: Callable[[], Any], folder: Path, **environment: str) -> tuple[Any, list[int]]:
    """Run `work` under two processes that work as one; returns process 0's result and both exit codes."""
    import torch.multiprocessing as processes

    folder.mkdir(parents=True, exist_ok=True)
    context = processes.get_context("fork")
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", **environment}
    started = [context.Process(target=_one, args=(rank, settings, work, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
    result = folder / "result.pt"
    codes = [int(p.exitcode or 0) for p in started]
    return (torch.load(result, weights_only=False) if result.is_file() else None), codes


def _one(rank: int, settings: dict[str, str], work: Callable[[], Any], folder: Path) -> None:
    os.environ.update(settings, RANK=str(rank), LOCAL_RANK=str(rank))
    from palimpsest.training.distributed import crew

    with crew():
        torch.save(work(), folder / "result.pt")
