"""From a request to a folder: plan, merge, and copy what belongs to the model beside its weights."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from palimpsest.checkpoint import Checkpoint, lineage
from palimpsest.checkpoint.load import complete_config
from palimpsest.checkpoint.output import is_full_disk, new_folder
from palimpsest.errors import BadInput
from palimpsest.merging.adapter_merge import merge_adapters
from palimpsest.merging.engine import run_jobs
from palimpsest.merging.plan import Plan, collector, make_plan
from palimpsest.merging.request import MergeRequest, check_out
from palimpsest.merging.statistics import Statistics
from palimpsest.merging.tokens import chosen_template, write_tokenizer
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

    @property
    def figures(self) -> dict[str, float]:
        """What it took, by name."""
        read, written = self.bytes_in, self.bytes_out
        return {"tensors": self.tensors, "bytes_read": read, "bytes_written": written, "seconds": self.seconds}


def merge_to_folder(
    request: MergeRequest,
    out: Path,
    ctx: Context,
    *,
    force: bool = False,
    digests: bool = True,
    largest_shard: int | None = None,
) -> Merged:
    """Merge into the new folder `out`: weights, config, tokenizer, lineage.

    digests: whether the lineage names the parents' digests (which reads them once more unless they are known).
    Raises BadInput for whatever does not fit, before anything is written where headers tell it.
    """
    if request.parts:
        check_out(request, out)
    if request.parts and request.only_adapters:
        return _adapters_to_folder(request, out, force, digests)
    method = collector(request)
    statistics = None if method is None else Statistics()
    plan = make_plan(request, statistics)
    template = chosen_template(request.chat_template, [p.tokenizer for p in request.parts])
    with new_folder(out, force) as folder, ExitStack() as stack:
        if statistics is not None:
            statistics.folder = folder / "statistics"
            statistics.folder.mkdir()
            stack.callback(shutil.rmtree, statistics.folder)
            stack.callback(statistics.close)
            method.collect(request.models, statistics, ctx)
            plan.notes.extend(statistics.notes)
        started = time.monotonic()
        try:
            _write_weights(request, plan, folder, ctx, largest_shard or LARGEST_SHARD)
        except OSError as error:
            if is_full_disk(error):
                raise
            where = error.filename or out
            raise BadInput(f"{where}: {error.strerror or error}; nothing was written") from error
        seconds = time.monotonic() - started
        _write_config(request.outline, plan, folder)
        write_tokenizer(plan.vocabulary.folder, folder, plan.vocabulary.added, template)
        said = [f / "generation_config.json" for f in (plan.vocabulary.folder, request.outline.path)]
        if (found := next((f for f in said if f.is_file()), None)) is not None:
            shutil.copyfile(found, folder / found.name)
        _write_lineage(request, folder, digests)
    return Merged(
        Checkpoint(out.absolute(), out.name),
        len(plan.jobs),
        sum(j.bytes_in for j in plan.jobs),
        sum(j.bytes_out for j in plan.jobs),
        seconds,
        plan.notes,
    )


def _adapters_to_folder(request: MergeRequest, out: Path, force: bool, digests: bool) -> Merged:
    with new_folder(out, force) as folder:
        started = time.monotonic()
        tensors, read, written, notes = merge_adapters(request, folder)
        seconds = time.monotonic() - started
        _write_lineage(request, folder, digests)
    return Merged(Checkpoint(out.absolute(), out.name), tensors, read, written, seconds, [*request.notes, *notes])


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
    gone = {n for n, value in plan.config.items() if value is None}
    config = {n: v for n, v in (dict(outline.config) | plan.config).items() if n not in gone}
    if "torch_dtype" in config and "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    complete_config(folder)


def _write_lineage(request: MergeRequest, folder: Path, digests: bool) -> None:
    parents = {role: model.digest() for role, model in _roles(request)} if digests else {}
    lineage.write(folder, request.outline.chain(), f"merge {request.method}", parents)


def _roles(request: MergeRequest) -> list[tuple[str, Checkpoint]]:
    """What the lineage calls each parent."""
    named = [(f"model-{i}", p.model) for i, p in enumerate(request.parts, 1)]
    grounds = [(f"model-{i}-on", p.on) for i, p in enumerate(request.parts, 1) if p.on not in (None, request.base)]
    base = [("base", request.base)] if request.base is not None else []
    return [*named, *((role, model) for role, model in grounds if model is not None), *base]
