"""Whatever order the workers end in, and whichever of them die: parents first, every step once, the same numbers."""

from __future__ import annotations

import random
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import fakes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.method import Context
from palimpsest.study import run, scheduler
from palimpsest.study.executors import Where, WorkerDied
from palimpsest.study.graph import plan
from palimpsest.study.run import Options, run_study
from palimpsest.study.scheduler import Scheduler
from palimpsest.study.spec import parse_spec
from palimpsest.study.work import Outcome, Task, Workshop


class Shuffled:
    """Workers that end in a random order and die now and then, before or after their step's folder is there."""

    def __init__(self, workshop: Workshop, seed: int, workers: int, together: bool, deaths: float) -> None:
        self.workshop, self.rng, self.together, self.deaths = workshop, random.Random(seed), together, deaths
        self.names = [f"w{n}" for n in range(workers)]
        self.at_work: dict[str, tuple[Future[list[Outcome]], tuple[Task, ...]]] = {}
        self.handed: list[tuple[str, tuple[Task, ...]]] = []
        self.cancelled = self.shut = False

    def free(self) -> list[str]:
        return [n for n in self.names if n not in self.at_work]

    def submit(self, worker: str, piece: tuple[Task, ...]) -> Future[list[Outcome]]:
        assert worker not in self.at_work
        self.handed.append((worker, piece))
        future: Future[list[Outcome]] = Future()
        self.at_work[worker] = (future, piece)
        return future

    def end_one(self) -> None:
        worker = self.rng.choice(sorted(self.at_work))
        future, piece = self.at_work.pop(worker)
        if self.rng.random() < self.deaths:
            for task in piece[: self.rng.randrange(len(piece) + 1)]:
                self.workshop.do(task)
            future.set_exception(WorkerDied("pulled the plug"))
        else:
            future.set_result([self.workshop.do(task) for task in piece])

    def cancel(self) -> None:
        self.cancelled = True

    def shutdown(self) -> None:
        self.shut = True


def shuffled(monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[Shuffled]:
    made: list[Shuffled] = []

    def executor(self: Where, workshop: Workshop, assignment: Any) -> Shuffled:
        made.append(Shuffled(workshop, **how))
        return made[-1]

    def wait(running: Any, timeout: float, when: str) -> Any:
        made[-1].end_one()
        return {f for f in running if f.done()}, set()

    monkeypatch.setattr(Where, "executor", executor)
    monkeypatch.setattr(Where, "here", False)
    monkeypatch.setattr(scheduler, "wait", wait)
    return made


def numbers(records: list[Any]) -> list[dict[str, Any]]:
    rows = [r.to_json() for r in records]
    timed = ("seconds", "peak_bytes", "grown_bytes")
    return [
        {k: v for k, v in r.items() if k not in timed and not (k == "value" and r["measure"] == "cost")} for r in rows
    ]


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The study, and what a serial run makes of it."""
    patch = pytest.MonkeyPatch()
    fakes.install(patch.setattr)
    tmp = tmp_path_factory.mktemp("serial")
    values = fakes.full(tmp, removals=["none", "fake-eraser", "breaks", {"averaging": {"expert": "sibling"}}])
    spec = parse_spec(values)
    result = run_study(spec, tmp / "out", Context())
    patch.undo()
    return spec, result


@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    workers=st.integers(1, 5),
    together=st.booleans(),
    deaths=st.sampled_from([0.0, 0.1]),
    keep=st.sampled_from(["all", "results"]),
)
def test_any_order_and_any_deaths_give_the_serial_run(
    serial: Any,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    workers: int,
    together: bool,
    deaths: float,
    keep: Any,
) -> None:
    spec, expected = serial
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "ATTEMPTS", 50)
        fakes.install(patch.setattr)
        made = shuffled(patch, seed=seed, workers=workers, together=together, deaths=deaths)
        result = run_study(spec, tmp_path_factory.mktemp("any") / "out", Context(), options=Options(keep=keep))
    assert numbers(result.records) == numbers(expected.records)
    assert [(f.name, f.error) for f in result.failed] == [(f.name, f.error) for f in expected.failed]
    assert result.left_out == expected.left_out and made[0].shut and not made[0].cancelled
    steps = plan(spec).steps
    begun: set[str] = set()
    for _, piece in made[0].handed:
        ids = [t.id for t in piece]
        assert all(p in begun for i in ids for p in steps[i].parents)
        assert len({steps[i].model for i in ids}) == 1 or len(ids) == 1
        assert together or len(ids) == 1
        begun.update(ids)
    if not deaths and keep == "all":
        assert sum(len(p) for _, p in made[0].handed) == len(begun)


def test_a_worker_keeps_to_the_model_it_has_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given another model's measure, or a transform, only where no measure of its own model is ready."""
    kept = left = 0
    true_next = Scheduler._next

    def following(self: Scheduler, worker: str) -> tuple[Task, ...]:
        nonlocal kept, left
        mine = self.loaded.get(worker)
        ready = {id for _, id in self.measures[mine] if id not in self.taken} if mine is not None else set()
        piece = true_next(self, worker)
        if ready:
            assert piece and piece[0].id in ready
            kept += 1
        elif mine is not None and piece:
            left += 1
        return piece

    monkeypatch.setattr(Scheduler, "_next", following)
    shuffled(monkeypatch, seed=1, workers=3, together=False, deaths=0.0)
    run_study(parse_spec(fakes.study(tmp_path, implants=["fake-mark", "other-mark"])), tmp_path / "out", Context())
    assert kept >= 4 and left >= 2


def test_the_longest_way_goes_first_and_in_this_process_the_plan_s_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse_spec(fakes.study(tmp_path, removals=["fake-eraser", "finetune"]))
    order: list[str] = []
    true_do = Workshop.do

    def do(self: Workshop, task: Task, progress: Any = None) -> Outcome:
        order.append(task.id)
        return true_do(self, task, progress)

    monkeypatch.setattr(Workshop, "do", do)
    run_study(spec, tmp_path / "serial", Context())
    assert order == list(plan(spec).steps)
    made = shuffled(monkeypatch, seed=0, workers=1, together=False, deaths=0.0)
    run_study(spec, tmp_path / "out", Context())
    names = [plan(spec).steps[p[0].id].name for _, p in made[0].handed]
    assert names[0] == "tiny > fake-mark" and names[1] == "tiny > fake-mark > fake-erase"


def test_a_worker_that_dies_every_time_is_given_up_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shuffled(monkeypatch, seed=0, workers=2, together=False, deaths=1.0)
    monkeypatch.setattr(
        Shuffled,
        "end_one",
        lambda self: [f.set_exception(WorkerDied("no memory")) for f, _ in [self.at_work.popitem()[1]]],
    )
    spec = parse_spec(fakes.study(tmp_path))
    result = run_study(spec, tmp_path / "out", Context())
    error = "its worker was lost 3 times: no memory"
    assert {f.error for f in result.failed} == {error} and result.ran == 0
    tries = [t.id for _, p in made[0].handed for t in p]
    assert all(tries.count(f.id) == scheduler.ATTEMPTS for f in result.failed)
    assert (run.Store(tmp_path / "out").record(result.failed[0].id) or {})["error"] == error
    assert all(f"because {result.failed[0].name} failed" in line or "because" in line for line in result.left_out)


def test_what_is_skipped_says_why(tmp_path: Path) -> None:
    values = fakes.study(tmp_path, removals=["breaks", "fake-eraser"], controls=["revival"])
    result = run_study(parse_spec(values), tmp_path / "out", Context())
    assert len(result.left_out) == 5
    assert all(line.startswith("skipped: ") for line in result.left_out)
    assert all(
        line.endswith("because tiny > fake-mark > breaks failed: RuntimeError: it broke") for line in result.left_out
    )
    again = run_study(parse_spec(values), tmp_path / "out", Context())
    assert again.left_out == result.left_out, "a later run says the same"


def test_an_error_of_the_workers_own_stops_the_run_and_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shuffled(monkeypatch, seed=0, workers=2, together=False, deaths=0.0)
    monkeypatch.setattr(Workshop, "do", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_study(parse_spec(fakes.study(tmp_path)), tmp_path / "out", Context())
    assert made[0].cancelled
