"""The serial runner: every step of a study once, in this process; resumes by itself.

A finished step is never run again. A step that fails is recorded with its error line; what needs it is left
out and everything else goes on. Later executors take the same steps from the same graph.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import pick_device
from palimpsest.checkpoint.output import is_full_disk
from palimpsest.cost import Cost, Meter, metered
from palimpsest.errors import PalimpsestError
from palimpsest.keys import KeySet
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, Made, input_fields, settings_of
from palimpsest.records import Record, versions, write_jsonl
from palimpsest.study.assemble import assemble, key_facts
from palimpsest.study.graph import plan
from palimpsest.study.needs import check_needs
from palimpsest.study.spec import RECIPES, StudySpec, expanded, input_type
from palimpsest.study.steps import Plan, Step
from palimpsest.study.store import Store, take_samples, write_secret_lines

WEIGHTS = {"transform": 6.0, "adapter": 6.0, "measure": 1.0, "keys": 0.2}  # rough shares of the time
KEEP_UP_SECONDS = 60.0  # between two writings of the records while the study runs
KEEP_UP_PAUSES = 50.0  # and at least so many times what the last writing took
IMPLANT_WEIGHT = 20.0  # embedding goes on until it took


@dataclass(frozen=True)
class Failure:
    """A step that failed: its id, its name, and its error in one line."""

    id: str
    name: str
    error: str


@dataclass
class StudyResult:
    """What a run left: the folder, all records in their places, what failed, what was left out for it."""

    folder: Path
    records: list[Record]
    failed: list[Failure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    ran: int = 0
    found: int = 0


def run_study(spec: StudySpec, out: Path, ctx: Context, retry_failed: bool = False) -> StudyResult:
    """Run every step of the study that is not done yet, in folder `out`, and write its records.

    Raises BadInput before anything runs where the study or the folder will not do. A failed step does not
    raise: see `StudyResult.failed`.
    """
    ctx = dataclasses.replace(ctx, device=pick_device(ctx.device))
    made = plan(spec)
    check_needs(made, Path(out), ctx)
    store = Store.create(Path(out))
    with store.alone():
        started = time.time()
        store.write_study(_described(made, ctx, store))
        result = StudyResult(store.folder, [])
        try:
            _Runner(made, store, ctx, retry_failed, result).all()
        finally:
            result.records = assemble(made, store)
            store.write_records(result.records)
            store.write_study(
                {
                    **_described(made, ctx, store),
                    "seconds": time.time() - started,
                    "failed": [dataclasses.asdict(f) for f in result.failed],
                    "left_out": result.left_out,
                }
            )
    return result


def _described(made: Plan, ctx: Context, store: Store) -> dict[str, Any]:
    spec = made.spec
    source = Path(spec.source)
    name = source.stem if source.parent == RECIPES else source.name
    previous = store.study() if (store.folder / "study.json").is_file() else {}
    return {
        "title": spec.title,
        "notes": spec.notes,
        "shape_only": spec.is_toy,
        "spec": spec.model_dump(),
        "implants": {i.id: i.name for i in spec.implants},
        "command": f"palimpsest study run {name} --out {store.folder.name}",
        "created": previous.get("created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
        "steps": [dataclasses.asdict(s) for s in made.listed()],
        "requested": made.requested,
        "remarks": made.notes,
        "versions": versions(),
        "device": ctx.device,
        "threads": ctx.threads,
    }


class _Runner:
    """Runs the steps one after the other; keeps the last loaded model for the measures that share it."""

    def __init__(self, made: Plan, store: Store, ctx: Context, retry: bool, result: StudyResult) -> None:
        self.plan, self.store, self.ctx, self.retry, self.result = made, store, ctx, retry, result
        self.subject: tuple[str, Subject] | None = None
        self.due = time.monotonic() + KEEP_UP_SECONDS
        self.asked = {s.before for s in made.steps.values() if s.before is not None}

    def all(self) -> None:
        states = {id: self.store.state(id) for id in self.plan.steps}
        todo = [i for i, s in states.items() if s == "open" or (s == "failed" and self.retry)]
        self.result.found = sum(s == "done" for s in states.values())
        saved = self.plan.requested - len(states)
        self.ctx.progress.say(
            f"study: {len(states)} steps, {saved} more saved by sharing; {self.result.found} done before"
        )
        with self.ctx.progress.task("study", sum(_weight(self.plan.steps[i]) for i in todo) or 1) as task:
            for number, (id, state) in enumerate(states.items(), 1):
                step = self.plan.steps[id]
                if state == "failed" and not self.retry:
                    self._failed(step, str((self.store.record(id) or {}).get("error", "")))
                    continue
                if state == "done":
                    continue
                task.advance(0, f"{number}/{len(states)} {step.name}")
                self._one(step)
                task.advance(_weight(step))
                self._keep_up()
        self._let_go()

    def _keep_up(self) -> None:
        """Write the records now and then, so that a report can be made of a study that still runs."""
        started = time.monotonic()
        if started >= self.due:
            self.store.write_records(assemble(self.plan, self.store))
            now = time.monotonic()
            self.due = now + max(KEEP_UP_SECONDS, KEEP_UP_PAUSES * (now - started))

    def _one(self, step: Step) -> None:
        missing = [p for p in step.parents if self.store.state(p) != "done"]
        if missing:
            self.result.left_out.append(f"{step.name}: needs {self.plan.steps[missing[0]].name}")
            return
        self.store.forget(step.id)
        started = time.monotonic()
        try:
            with metered() as meter:
                self._run(step, started, meter)
            self.result.ran += 1
        except Exception as error:  # whatever a method does wrong must not stop the others
            if is_full_disk(error) or is_full_disk(error.__cause__ or error):
                raise
            line = _error_line(error)
            with self.store.making(step.id) as partial:
                (partial / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
                self._write_record(partial, step, {"status": "failed", "error": line}, started)
            self._failed(step, line)
            self.ctx.progress.say(f"failed: {step.name}: {line}")
        self.store.drop_scratch(step.id)

    def _failed(self, step: Step, line: str) -> None:
        self.result.failed.append(Failure(step.id, step.name, line))

    # -- one step ------------------------------------------------------------------------------------

    def _run(self, step: Step, started: float, meter: Meter) -> None:
        ctx = dataclasses.replace(self.ctx, seed=step.seed, key_seed=step.key_seed, scratch=self.store.scratch(step.id))
        with self.store.making(step.id) as partial:
            facts: dict[str, Any] = {"status": "done"}
            answers: list[dict[str, Any]] = []
            if step.kind == "measure":
                records, answers = self._measure(step, ctx)
            elif step.kind == "keys":
                records = []
                self._keep_keys(self._filled(step).draw_keys(self._checkpoint(step.model), ctx), partial, facts)
            else:
                self._let_go()
                made = self._transform(step, partial / "model", ctx)
                records = made.records
                facts["digest"], facts["chain"] = made.checkpoint.digest(), made.checkpoint.chain()
                if made.keys is not None:
                    self._keep_keys(made.keys, partial, facts)
            tokens = [r.tokens for r in records if r.tokens is not None and step.kind != "measure"]
            rows = [
                r.detail["rows"] for r in records if isinstance(r.detail.get("rows"), int) and step.kind != "measure"
            ]
            facts |= {"tokens": sum(tokens) if tokens else None, "rows": sum(rows) if rows else None}
            cost = meter.cost
            facts |= {"peak_bytes": cost.peak_bytes, "grown_bytes": cost.grown_bytes}
            self._complete(records, facts, cost)
            samples = [*answers, *take_samples(records)]
            if samples:
                write_secret_lines(partial / "samples.jsonl", samples)
            write_jsonl(partial / "records.jsonl", records)
            self._write_record(partial, step, facts, started)

    def _transform(self, step: Step, out: Path, ctx: Context) -> Made:
        method, model = self._filled(step), self._checkpoint(step.model)
        made: Made = (method.train_adapter if step.kind == "adapter" else method.apply)(model, out, ctx)
        return made

    def _measure(self, step: Step, ctx: Context) -> tuple[list[Record], list[dict[str, Any]]]:
        """The records of a measure, and the answers that a later model's are to be compared with."""
        method = self._filled(step)
        subject = self._subject(step, ctx)
        records: list[Record] = method.take(subject, ctx)
        answers = [{"answer": a} for a in method.given(subject)] if step.id in self.asked else []
        digest, chain = subject.checkpoint.digest(), subject.checkpoint.chain()
        for record in records:
            record.digest, record.chain = digest, chain
        return records, answers

    def _subject(self, step: Step, ctx: Context) -> Subject:
        """What is measured; the model stays loaded while the steps ask for the same one."""
        keys = self.store.keys(step.keys) if step.keys is not None else None
        before = self.store.answers(step.before) if step.before is not None else None
        text = Path(expanded(self.plan.spec.text)) if self.plan.spec.text else None
        through = [self._with_inputs(t.method, t.inputs, t.data) for t in step.through]
        model, data = self._checkpoint(step.model), self.plan.data.get(step.data)
        subject = Subject(model, ctx, keys, data, before, text, through)
        if self.subject is not None and self.subject[0] == step.model:
            loaded = self.subject[1]._responder
            if loaded is not None and keys is not None:
                keys.check_tokenizer(loaded.tokenizer)
            subject._responder = loaded
        else:
            self._let_go()
        self.subject = (step.model, subject)
        return subject

    def _let_go(self) -> None:
        if self.subject is not None:
            self.subject[1].close()
            self.subject = None

    def _filled(self, step: Step) -> Any:
        """The method instance with its inputs."""
        return self._with_inputs(step.method, step.inputs, step.data)

    def _with_inputs(self, method: Any, inputs: Sequence[tuple[str, str]], data: tuple[str, ...]) -> Any:
        given: dict[str, Any] = {name: self._checkpoint(ref) for name, ref in inputs}
        for name in input_fields(type(method)):
            if input_type(type(method), name) == "Dialogues":
                given[name] = self.plan.data[data]
        return dataclasses.replace(method, **given) if given else method

    def _checkpoint(self, reference: str) -> Checkpoint:
        if reference.startswith("model:"):
            return self.plan.models[reference.removeprefix("model:")]
        return self.store.checkpoint(reference)

    # -- writing -------------------------------------------------------------------------------------

    def _keep_keys(self, keys: KeySet, partial: Path, facts: dict[str, Any]) -> None:
        keys.write(partial / "keys.json")
        facts["keys"] = key_facts(keys)

    def _complete(self, records: list[Record], facts: dict[str, Any], cost: Cost) -> None:
        """Fill in what a method left open: cost, where it ran, versions, and what was made."""
        for record in records:
            record.seconds = cost.seconds if record.seconds is None else record.seconds
            record.peak_bytes = cost.peak_bytes if record.peak_bytes is None else record.peak_bytes
            record.device = record.device or self.ctx.device
            record.dtype = record.dtype or self.ctx.dtype
            record.threads = self.ctx.threads if record.threads is None else record.threads
            record.versions = record.versions or versions()
            record.digest = record.digest or facts.get("digest")
            record.chain = record.chain or facts.get("chain", [])

    def _write_record(self, partial: Path, step: Step, facts: dict[str, Any], started: float) -> None:
        body = {
            "id": step.id,
            "kind": step.kind,
            "name": step.name,
            "method": step.method_name,
            "parameters": settings_of(step.method),
            "seed": step.seed,
            "model": step.model,
            "inputs": dict(step.inputs),
            "keys_of": step.keys,
            "before": step.before,
            "data": list(step.data),
            "through": [
                {"name": t.name, "parameters": settings_of(t.method), "inputs": dict(t.inputs)} for t in step.through
            ],
            **facts,
            "seconds": time.monotonic() - started,
            "device": self.ctx.device,
            "threads": self.ctx.threads,
            "versions": versions(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        (partial / "record.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def _weight(step: Step) -> float:
    return IMPLANT_WEIGHT if step.kind == "transform" and step.key_seed is not None else WEIGHTS[step.kind]


def _error_line(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, PalimpsestError):
        return first
    return f"{type(error).__name__}: {first}"
