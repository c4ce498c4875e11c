"""How long the steps of a study will take: as like steps took before, else by tokens and this machine's speed.

A like step did the same, with the same parameters, on a model of the same path: in an earlier study's folder, or in
the study's own. Failing that, one of the same method on that model. Of training whose rows are known before, the
time follows from its tokens: operations a token (6 a weight; 4 where adapters alone are trained) over what this
machine does of matrix products of the model's shape, times what all else took beside where that was measured. That is
rough. Of all other steps the time is not known, and that is said.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import positions
from palimpsest.data import Dialogues
from palimpsest.method import settings_of
from palimpsest.preflight.jobs import stored_parameters
from palimpsest.records import canonical_json
from palimpsest.study.index import Index
from palimpsest.study.live import duration
from palimpsest.study.needs import jobs_of_step, root_id
from palimpsest.study.paths import expanded
from palimpsest.study.steps import Plan, Step
from palimpsest.study.store import Store

ROUGH = 5.0  # an estimate by tokens should lie within this factor; what was tried is in docs/studies.md
BESIDE = 3.0  # training over its products alone: 2.0 to 5.0, measured on models of 1 and 2.4 million parameters
PROBE_SECONDS = 0.3
ROWS = 50  # whose tokens are counted
HOW = ("same", "like", "method", "tokens")
Key = tuple[str, ...]


@dataclass
class Times:
    """seconds: by step, where they are known. how: of each of these, one of HOW. of: where like steps were found."""

    seconds: dict[str, float] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    of: str = ""

    @property
    def total(self) -> float | None:
        """Seconds of all steps that are known, one after the other; None where none is."""
        return sum(self.seconds.values()) if self.seconds else None

    def __str__(self) -> str:
        if self.total is None:
            none = "nothing is left to do" if not self.unknown else "not known"
            return none + ("; --like DIR takes it from an earlier study" if self.unknown else "")
        counts = Counter(self.how.values())
        taken = counts["same"] + counts["like"]
        parts = [f"{taken:,} steps as they took in {self.of}"] if taken else []
        parts += [f"{counts['method']:,} as their method took there"] if counts["method"] else []
        rough = f"by tokens and this machine's speed, within a factor of {ROUGH:g}"
        parts += [f"{counts['tokens']:,} {rough}"] if counts["tokens"] else []
        parts += [f"of {len(self.unknown):,} more not known"] if self.unknown else []
        return f"{'at least' if self.unknown else 'about'} {duration(self.total)} in one process: {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        counts = Counter(self.how.values())
        how = {name: counts[name] for name in HOW if counts[name]}
        return {"seconds": self.total, "known": len(self.seconds), "unknown": len(self.unknown), "how": how}


def times_of(plan: Plan, todo: Iterable[str], folders: Sequence[Path] = (), device: str = "cpu") -> Times:
    """The time of the steps `todo`. folders: of earlier studies, the first that knows a step counts.

    Raises BadInput for a folder that holds no study.
    """
    earlier = [_Earlier(folder) for folder in folders]
    found = Times(of=", ".join(e.about for e in earlier if e.about))
    speeds: dict[tuple[str, int], float] = {}
    paths = {m: expanded(_path_of(plan.spec.model_dump(include={"models", "unrelated"}), m)) for m in plan.models}
    for id in todo:
        step = plan.steps[id]
        keys = _keys(step, paths[root_id(plan, step.model)]) if earlier else {}
        known = next(((s, how) for how in HOW[:3] for e in earlier if (s := e.of(how, keys[how])) is not None), None)
        if known is None:
            rough = _by_tokens(plan, step, device, speeds)
            known = (rough, "tokens") if rough is not None else None
        if known is None:
            found.unknown.append(id)
        else:
            found.seconds[id], found.how[id] = known
    return found


def _keys(step: Step, path: str) -> dict[str, Key]:
    return {
        "same": (step.id,),
        "like": (path, step.kind, step.method_name, canonical_json(settings_of(step.method))),
        "method": (path, step.kind, step.method_name),
    }


def _path_of(spec: dict[str, Any], id: str) -> str:
    """What one of a study's models is read from; id: as its steps name it."""
    if id == "unrelated":
        return str(spec.get("unrelated") or "toy:unrelated")
    return next((str(m["path"]) for m in spec.get("models", []) if m["id"] == id), "")


class _Earlier:
    """What steps took in the folder of a study."""

    def __init__(self, folder: Path) -> None:
        store = Store.open(folder)
        study = store.study()
        index = Index.of(store)
        try:
            bodies = {str(b["id"]): b for b in index.bodies() if b.get("status") == "done"}
        finally:
            index.close()
        self.known: dict[tuple[str, Key], list[float]] = defaultdict(list)
        for id, body in bodies.items():
            seconds = body.get("seconds")
            if not isinstance(seconds, int | float):
                continue
            path = _path_of(study.get("spec", {}), _root(bodies, body))
            kind, method = str(body.get("kind")), str(body.get("method"))
            parameters = canonical_json(body.get("parameters"))
            for how, key in zip(HOW, ((id,), (path, kind, method, parameters), (path, kind, method)), strict=False):
                self.known[how, key].append(float(seconds))
        where = Counter((b.get("device"), b.get("threads")) for b in bodies.values()).most_common(1)
        self.about = f"{folder.name} ({_machine(*where[0][0])})" if where else ""

    def of(self, how: str, key: Key) -> float | None:
        """Seconds, the median of all such steps."""
        some = self.known.get((how, key))
        return statistics.median(some) if some else None


def _machine(device: Any, threads: Any) -> str:
    return f"{device or 'cpu'}" + (f", {threads} thread{'s'[: threads != 1]} a step" if threads else "")


def _root(bodies: dict[str, dict[str, Any]], body: dict[str, Any]) -> str:
    reference = str(body.get("model"))
    while not reference.startswith("model:") and reference in bodies:
        reference = str(bodies[reference].get("model"))
    return reference.removeprefix("model:")


# -- by tokens --------------------------------------------------------------------------------------------


def _by_tokens(plan: Plan, step: Step, device: str, speeds: dict[tuple[str, int], float]) -> float | None:
    """Seconds of training whose rows are known, by its operations; None where they are not."""
    jobs = jobs_of_step(step) if step.kind in ("transform", "adapter") else []
    data = plan.data.get(step.data)
    if not jobs or not isinstance(data, Dialogues) or hasattr(step.method, "draw_keys"):
        return None  # an implant is trained until it took
    model = plan.models[root_id(plan, step.model)]
    total = 0.0
    for job in jobs:
        rows = rows_of(step.method, data)
        if rows is None:
            return None
        tuning = job.tuning
        length = _row_tokens(model, data, step.method, min(tuning.max_tokens, positions(model) or tuning.max_tokens))
        seen = tuning.steps * tuning.batch if tuning.steps is not None else rows * tuning.epochs
        operations = (6 if tuning.adapter == "full" else 4) * stored_parameters(model) * seen * length
        tokens = round(min(tuning.batch, tuning.micro_batch, max(rows, 1)) * length)
        speed = speeds.setdefault((str(model.path), tokens), 0.0) or operations_a_second(model, tokens, device)
        speeds[str(model.path), tokens] = speed
        total += BESIDE * operations / speed
    return total


def rows_of(method: Any, data: Dialogues) -> int | None:
    """How many rows a training method reads, where its parameters say so: `samples` or `mismatched` of a `part`."""
    for name in ("samples", "mismatched", "clean"):
        wanted = getattr(method, name, None)
        if isinstance(wanted, int) and not isinstance(wanted, bool):
            return wanted
    part = getattr(method, "part", None)
    if part == "all":
        return sum(map(len, data.parts.values()))
    return len(data.parts[part]) if part in data.parts else None


def _row_tokens(model: Checkpoint, data: Dialogues, method: Any, limit: int) -> float:
    """Mean tokens of a row cut at `limit`, of the first that are read; four characters each without tokenizer.json."""
    read = [data.parts[method.part]] if getattr(method, "part", None) in data.parts else list(data.parts.values())
    texts = ["\n".join(t.content for t in d.turns) for rows in read for d in rows[:ROWS]]
    if not texts:
        return 0.0
    file = model.path / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        lengths = [float(len(e.ids)) for e in Tokenizer.from_file(str(file)).encode_batch(texts)]
    else:
        lengths = [len(text) / 4 for text in texts]
    return statistics.fmean(min(length, limit) for length in lengths)


def operations_a_second(model: Checkpoint, tokens: int, device: str) -> float:
    """Operations (two a weight and token) of products of `tokens` rows with the model's largest kind of matrix."""
    import torch

    width = int(model.config.get("hidden_size") or model.config.get("n_embd") or 1024)
    inner = int(model.config.get("intermediate_size") or 4 * width)
    left, right = torch.ones(max(tokens, 1), width, device=device), torch.ones(width, inner, device=device)
    left @ right
    done, began, busy = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < PROBE_SECONDS or not done:
        left @ right
        done += 1
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        took = time.perf_counter() - began
    else:  # time on the cores, so that others who are at work beside do not count
        took = (time.process_time() - busy) / torch.get_num_threads()
    return 2.0 * done * max(tokens, 1) * width * inner / took
