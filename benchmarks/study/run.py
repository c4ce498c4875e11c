"""The runner of studies measured: `python benchmarks/study/run.py [NAME ...]`; results go to `NAME.json` beside it.

overhead   what a step costs beside its work: steps of stand-ins, which do next to nothing
records    a study of 100,000 records: plan, index, a run that finds all done
report     the report of so many records (or of the study in --folder)
kills      1,000 random kills of a run of cheap steps: no finished step lost, no broken record
ray-kill   a Ray cluster of two nodes on this machine, one of them removed in the middle: the numbers of a serial run
prefixes   a toy study of about 60 steps, and each of its lines in a folder of its own: what sharing saves
workers    the same toy study with one worker and with two

The first five are cheap; the last two train the toy and want an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "study"))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import standins
from measuring import machine, write

from palimpsest import api
from palimpsest.method import Context
from palimpsest.records import collected_later
from palimpsest.study.executors import Where
from palimpsest.study.graph import plan
from palimpsest.study.index import Index
from palimpsest.study.run import Options, run_study
from palimpsest.study.spec import StudySpec, parse_spec
from palimpsest.study.store import Store

HERE = Path(__file__).parent


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall and CPU seconds of a call, and what it returned."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    given = work()
    return {"wall": round(time.perf_counter() - wall, 3), "cpu": round(time.process_time() - cpu, 3)}, given


def overhead(tmp: Path, rounds: int = 3) -> dict[str, Any]:
    """Seconds a step of a run of stand-ins, and of the stand-ins' own work in it."""
    from palimpsest.study.work import Workshop

    spec = standins.spec_of(tmp, 4, 1)
    own = {"wall": 0.0, "cpu": 0.0}
    true_transform, true_take = Workshop._transform, Workshop._measure

    def counted(true: Callable[..., Any]) -> Callable[..., Any]:
        def work(*given: Any) -> Any:
            taken, found = time.perf_counter(), time.process_time()
            try:
                return true(*given)
            finally:
                own["wall"] += time.perf_counter() - taken
                own["cpu"] += time.process_time() - found

        return work

    Workshop._transform, Workshop._measure = counted(true_transform), counted(true_take)  # type: ignore[method-assign]
    taken = []
    for number in range(rounds):
        own.update(wall=0.0, cpu=0.0)
        spent, result = timed(lambda number=number: run_study(spec, tmp / f"run{number}", Context()))
        beside = {k: round(1000 * (spent[k] - own[k]) / result.ran, 2) for k in spent}
        taken.append({"steps": result.ran, "run": spent, "milliseconds_a_step_beside_the_work": beside})
    again, found = timed(lambda: run_study(spec, tmp / "run0", Context()))
    Workshop._transform, Workshop._measure = true_transform, true_take  # type: ignore[method-assign]
    return {
        "rounds": taken,
        "milliseconds_a_step": {
            k: statistics.median(r["milliseconds_a_step_beside_the_work"][k] for r in taken) for k in ("wall", "cpu")
        },
        "goal_milliseconds": 50,
        "a_run_that_finds_all_done": {"steps": found.found, **again},
    }


def records(tmp: Path) -> dict[str, Any]:
    """A study of at least 100,000 records, made by copying: what it takes to plan it, to index it, to find it done."""
    small = standins.spec_of(tmp, 1, 1)
    run_study(small, tmp / "small", Context())
    spec = standins.spec_of(tmp, 90, 5)
    planned, made = timed(lambda: plan(spec))
    standins.filled(spec, tmp / "small", tmp / "out")
    store = Store(tmp / "out")
    built, index = timed(lambda: Index.of(store))
    index.close()
    opened, index = timed(lambda: Index.of(store))
    index.close()
    found, result = timed(lambda: run_study(spec, tmp / "out", Context()))
    assert result.ran == 0 and not result.failed
    return {
        "steps": len(made.steps),
        "records": len(result.records),
        "plan": planned,
        "index_made": built,
        "index_opened": opened,
        "a_run_that_finds_all_done": found,
        "bytes": {n: (tmp / "out" / n).stat().st_size for n in ("records.jsonl", "index.sqlite")},
    }


def report(tmp: Path, folder: Path | None = None, rounds: int = 3) -> dict[str, Any]:
    """Seconds of the report of 100,000 records, in turn with what Python's json alone takes for the same lines."""
    if folder is None:
        records(tmp)
        folder = tmp / "out"
    reads, reports = [], []
    for _ in range(rounds):
        spent, count = timed(lambda: _json_alone(folder / "records.jsonl"))
        reads.append(spent)
        spent, paths = timed(lambda: api.study_report(folder))
        reports.append(spent)
    return {
        "records": count,
        "report": {k: statistics.median(r[k] for r in reports) for k in ("wall", "cpu")},
        "report_rounds": reports,
        "goal_seconds": 10,
        "json_of_the_records_alone": {k: statistics.median(r[k] for r in reads) for k in ("wall", "cpu")},
        "json_rounds": reads,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "bytes": {n: (folder / n).stat().st_size for n in ("records.jsonl", "report.html")},
        "files": sorted(p.name for p in paths.values()),
    }


def _json_alone(path: Path) -> int:
    """What Python's json takes for the same lines: a yardstick of the machine as it is now."""
    with collected_later(), path.open(encoding="utf-8") as lines:
        return len([json.loads(line) for line in lines])


def kills(tmp: Path, wanted: int = 1000, of_a_pool: int = 100) -> dict[str, Any]:
    """Runs that are killed after a random time, study after study, until so many kills came in time.

    of_a_pool: of them, kills of a run with two workers (now a worker, now the run itself).
    """
    from test_kills import kill_often, kill_workers_often, whole

    found = {"kills_in_time": 0, "of_runs": 0, "of_workers": 0, "studies": 0, "finished_steps": 0}
    alone = standins.spec_of(tmp, 3, 1)
    spread = standins.spec_of(tmp, 12, 2, controls=False, other_processes=True)
    expected = [
        run_study(spec, tmp / f"whole{number}", Context(threads=1)) for number, spec in enumerate((alone, spread))
    ]
    while found["kills_in_time"] < wanted:
        found["studies"] += 1
        pooled = found["kills_in_time"] >= wanted - of_a_pool
        spec, folder = spread if pooled else alone, tmp / f"study{found['studies']}"
        options = Options(keep="results" if found["studies"] % 2 else "all")
        most = wanted - found["kills_in_time"] - (0 if pooled else of_a_pool)
        if pooled:
            on_two = dataclasses.replace(options, where=Where(workers=2))
            workers, runs = kill_workers_often(spec, folder, on_two, most, found["studies"])
        else:
            workers, runs = 0, kill_often(spec, folder, options, most, found["studies"])
        result = run_study(spec, folder, Context(threads=1), options=options)
        assert not result.failed and not result.left_out
        assert standins.numbers(result.records) == standins.numbers(expected[pooled].records)
        assert not list((folder / "steps" / ".partial").iterdir())
        found["of_workers"] += workers
        found["of_runs"] += runs
        found["kills_in_time"] += workers + runs
        found["finished_steps"] += len(whole(folder))
        shutil.rmtree(folder)
        print({**found}, flush=True)
    return {**found, "lost_or_rewritten": 0, "broken": 0, "numbers": "those of a run that nobody killed"}


def ray_kill(tmp: Path) -> dict[str, Any]:
    """Two nodes of one CPU; when a third of the steps is done the second node is removed, with what runs there."""
    from two_nodes import on_two_nodes

    spec = standins.spec_of(tmp, 4, 1, controls=False, other_processes=True)
    expected = run_study(spec, tmp / "serial", Context(threads=1))
    total = len(plan(spec).steps)
    spent, (result, killed) = timed(lambda: on_two_nodes(spec, tmp / "out", total // 3))
    same = standins.numbers(result.records) == standins.numbers(expected.records)
    assert killed and same and not result.failed and not result.left_out
    whole = {"nodes": 2, "steps": result.ran, "node_removed": killed, "like_the_serial_run": same}
    return {**whole, "with_the_cluster": spent}


TOY_NOTE = (
    "The toy's own mark; erasing and recovering have a fifth of their epochs and ranks 20 decoys, so that it "
    "takes minutes; what sharing saves hangs on how dear the shared steps are."
)


def toy(points: int = 5) -> StudySpec:
    """A toy study of about 60 steps: one mark, an erasure that several recoveries share, its controls."""
    sweep = {"clean": [60, 90, 120, 150, 180][:points]}
    swept = {"preset": "toy", "erase": {"epochs": 3}, "recover": {"epochs": 1}, "sweep": sweep}
    return parse_spec(
        {
            "models": ["toy"],
            "implants": [{"utf": {"preset": "toy"}}],
            "removals": ["none", {"meraser": swept}],
            "controls": ["clean-same-schedule"],
            "negatives": ["clean-base", "sibling"],
            "measures": [{"hit-rate": {"forms": ["template", "bare"]}}, {"rank": {"decoys": 20}}, "perplexity"],
        }
    )


def prefixes(tmp: Path) -> dict[str, Any]:
    """One study, and every line of its tables as a study of its own in a folder of its own."""
    spec = toy()
    shared, result = timed(lambda: run_study(spec, tmp / "shared", Context(threads=1)))
    alone = {"wall": 0.0, "cpu": 0.0}
    steps = 0
    for number, removal in enumerate(spec.removals):
        one = spec.model_copy(update={"removals": [removal]})
        spent, found = timed(lambda one=one, number=number: run_study(one, tmp / f"one{number}", Context(threads=1)))
        alone = {k: round(alone[k] + spent[k], 1) for k in alone}
        steps += found.ran
        assert not found.failed
    assert not result.failed
    made = {"shared": {"steps": result.ran, **shared}, "each_removal_alone": {"steps": steps, **alone}}
    return {**made, "note": TOY_NOTE}


def workers(tmp: Path, rounds: int = 3) -> dict[str, Any]:
    """The same study with one worker and with two, each of one thread, in turn."""
    taken: dict[str, list[float]] = {"1": [], "2": []}
    steps = 0
    for number in range(rounds):
        for count in ("1", "2") if number % 2 == 0 else ("2", "1"):
            options = Options(where=Where(workers=int(count)))
            folder = tmp / f"workers{count}-{number}"
            spent, found = timed(lambda f=folder, o=options: run_study(toy(2), f, Context(threads=1), options=o))
            assert not found.failed
            taken[count].append(spent["wall"])
            steps = found.ran
    ratio = round(statistics.median(taken["1"]) / statistics.median(taken["2"]), 2)
    return {"steps": steps, "wall": taken, "ratio": ratio, "note": TOY_NOTE}


PARTS = {
    "overhead": overhead,
    "records": records,
    "report": report,
    "kills": kills,
    "ray-kill": ray_kill,
    "prefixes": prefixes,
    "workers": workers,
}
CHEAP = ("overhead", "records", "report", "kills", "ray-kill")


def main() -> None:
    """Measure what is named, or all that is cheap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PARTS, []], help="what to measure (default: what is cheap)")
    parser.add_argument("--folder", type=Path, help="of a study, for report")
    given = parser.parse_args()
    for name in given.names or CHEAP:
        with tempfile.TemporaryDirectory() as folder:
            tmp = Path(folder)
            if name not in ("prefixes", "workers", "ray-kill"):
                standins.quiet_environment(tmp)
            more = {"folder": given.folder} if name == "report" else {}
            found = {"machine": machine(), **PARTS[name](tmp, **more)}
            found["load_after"] = round(os.getloadavg()[0], 1)
        write(HERE / f"{name}.json", found)
        print(name, json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
