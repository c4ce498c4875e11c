"""From a request to a folder: plan, merge, and copy what belongs to the model beside its weights."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from palimpsest.checkpoint import Checkpoint, lineage
from palimpsest.checkpoint.load import complete_config, copy_tokenizer
from palimpsest.checkpoint.output import new_folder
from palimpsest.merging.engine import run_jobs
from palimpsest.merging.plan import Plan, collector, make_plan
from palimpsest.merging.request import MergeRequest
from palimpsest.merging.statistics import Statistics
from palimpsest.merging.writing import LARGEST_SHARD, Shards
from palimpsest.method import Context


@dataclass(frozen=True)
class Merged:
    """What a merge made and what it took. seconds: of the merge alone. bytes: read in one pass, and written."""

    checkpoint: Checkpoint
    tensors: int
    bytes_in: int
    bytes_out: int
    seconds: float
    notes: list[str] = field(default_factory=list)


def merge_to_folder(
    request: MergeRequest,
    out: Path,
    ctx: Context,
    *,
    force: bool = False,
    digests: bool = True,
    largest_shard: int = LARGEST_SHARD,
) -> Merged:
    """Merge into the new folder `out`: weights, config, tokenizer, lineage.

    digests: whether the lineage names the parents' digests (which reads them once more unless they are known).
    Raises BadInput for whatever does not fit, before anything is written where headers tell it.
    """
    method = collector(request)
    statistics = None if method is None else Statistics()
    plan = make_plan(request, statistics)
    with new_folder(out, force) as folder, ExitStack() as stack:
        if statistics is not None:
            statistics.folder = folder / "statistics"
            statistics.folder.mkdir()
            stack.callback(shutil.rmtree, statistics.folder)
            stack.callback(statistics.close)
            method.collect(request.models, statistics, ctx)
            plan.notes.extend(statistics.notes)
        started = time.monotonic()
        _write_weights(request, plan, folder, ctx, largest_shard)
        seconds = time.monotonic() - started
        _write_config(request.outline, plan, folder)
        copy_tokenizer(request.outline.path, folder)
        if (request.outline.path / "generation_config.json").is_file():
            shutil.copyfile(request.outline.path / "generation_config.json", folder / "generation_config.json")
        parents = {role: model.digest() for role, model in _roles(request)} if digests else {}
        lineage.write(folder, request.outline.chain(), f"merge {request.method}", parents)
    return Merged(
        Checkpoint(out.absolute(), out.name),
        len(plan.jobs),
        sum(j.bytes_in for j in plan.jobs),
        sum(j.bytes_out for j in plan.jobs),
        seconds,
        plan.notes,
    )


def _write_weights(request: MergeRequest, plan: Plan, folder: Path, ctx: Context, largest: int) -> None:
    shards = Shards(folder, plan.slots, largest=largest)
    total = sum(j.bytes_out for j in plan.jobs)
    ratio = sum(j.bytes_in for j in plan.jobs) / max(1, total)
    try:
        with ctx.progress.task(f"merge {request.method}", total) as task:
            started, written = time.monotonic(), 0

            def done(count: int) -> None:
                nonlocal written
                written += count
                speed = written * (1 + ratio) / max(time.monotonic() - started, 1e-9)
                task.advance(count, f"{speed / 1e9:.2f} GB/s read and written")

            run_jobs(plan.jobs, shards, device=ctx.device, workers=ctx.threads, done=done)
    finally:
        shards.close()


def _write_config(outline: Checkpoint, plan: Plan, folder: Path) -> None:
    config = dict(outline.config) | plan.config
    if "torch_dtype" in config and "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    complete_config(folder)


def _roles(request: MergeRequest) -> list[tuple[str, Checkpoint]]:
    """What the lineage calls each parent."""
    named = [(f"model-{i}", p.model) for i, p in enumerate(request.parts, 1)]
    return [*named, *([("base", request.base)] if request.base is not None else [])]
