"""Killed again and again at any moment, a run loses no finished step, leaves no broken record, and comes to its end."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from pathlib import Path

import fakes

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.study.executors import Where
from palimpsest.study.run import Options, run_study
from palimpsest.study.spec import StudySpec, parse_spec
from palimpsest.study.store import Store

KILLS = 25


def in_a_child(spec: StudySpec, out: Path, options: Options) -> int:
    """Start a run in a forked process (everything is imported already); its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            said = os.open(out.with_name(f"{out.name}.said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            run_study(spec, out, Context(threads=1), options=options)
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return child


def whole(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every step's record, which must be readable beside the files it speaks of; by folder."""
    found = {}
    for entry in folder.glob("steps/[0-9a-f]*"):
        text = (entry / "record.json").read_bytes()
        body = json.loads(text)
        assert body["status"] == "done" and body["id"].startswith(entry.name)
        for line in (entry / "records.jsonl").read_text().splitlines():
            json.loads(line)
        if "keys" in body:
            assert (entry / "keys.json").stat().st_size > 0
        stat = (entry / "record.json").stat()
        found[entry.name] = (stat.st_ino, stat.st_mtime_ns, text)
    return found


def kill_often(spec: StudySpec, folder: Path, options: Options, kills: int, seed: int) -> int:
    """Start and kill runs until `kills` came in time or the study is done; how many did.

    Each is killed at a random moment after a few more steps than were there, one in four soon after its start: that
    does not hang on how fast the machine is.
    """
    rng, killed = random.Random(seed), 0
    before: dict[str, tuple[int, int, bytes]] = {}
    while killed < kills:
        more = -1 if rng.random() < 0.25 else rng.randint(1, 5)
        child = in_a_child(spec, folder, options)
        ended = 0
        while not ended and len(list(folder.glob("steps/[0-9a-f]*"))) < len(before) + more:
            time.sleep(0.001)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(rng.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        after = whole(folder)
        assert {name: after.get(name) for name in before} == before, "a finished step was lost or written again"
        before = after
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, "the run itself failed"
            break
        killed += 1
    return killed


def workers_of(run: int) -> list[int]:
    """Processes of a run's pool that are there now, at work, idle or at their start."""
    try:
        children = Path(f"/proc/{run}/task/{run}/children").read_text().split()
        return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    except OSError:  # one of them has just ended
        return []


def kill_workers_often(spec: StudySpec, folder: Path, options: Options, kills: int, seed: int) -> tuple[int, int]:
    """As `kill_often`, of a pool: once or twice one of its workers, then the run itself; (workers, runs) killed.

    A step whose worker is lost three times in one run is given up, so no run loses more than two.
    """
    rng, workers, runs = random.Random(seed), 0, 0
    before: dict[str, tuple[int, int, bytes]] = {}
    while workers + runs < kills:
        child = in_a_child(spec, folder, options)
        status = None
        for last in [False] * rng.randint(1, 2) + [True]:
            wanted = len(list(folder.glob("steps/[0-9a-f]*"))) + rng.randint(1, 6)
            while status is None and len(list(folder.glob("steps/[0-9a-f]*"))) < wanted:
                time.sleep(0.001)
                status = _status_of(child)
            if status is not None:
                break
            time.sleep(rng.uniform(0.0, 0.02))
            if last:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                runs += os.WIFSIGNALED(status)
            elif found := workers_of(child):
                try:
                    os.kill(rng.choice(found), signal.SIGKILL)
                    workers += 1
                except ProcessLookupError:  # it had just come to its end
                    continue
        after = whole(folder)
        assert {name: after.get(name) for name in before} == before, "a finished step was lost or written again"
        before = after
        assert status is not None
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, "the run itself failed"
            break
    return workers, runs


def _status_of(child: int) -> int | None:
    """How a child ended, None while it runs."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return status if ended else None


def test_no_finished_step_is_lost_and_no_record_broken(tmp_path: Path) -> None:
    spec = parse_spec(fakes.full(tmp_path, removals=["none", "fake-eraser", "finetune"]))
    run_study(spec, tmp_path / "whole", Context())
    for keep in ("all", "results"):
        folder = tmp_path / keep
        options = Options(keep=keep)
        killed = kill_often(spec, folder, options, KILLS, 7)
        assert killed >= 4, "some kills must come in time to show anything"
        result = run_study(spec, folder, Context(), options=options)
        assert not result.failed and not result.left_out
        assert not list((folder / "steps" / ".partial").iterdir())
        expected, found = Store(tmp_path / "whole"), Store(folder)
        for step in expected.study()["steps"]:
            one, other = expected.record(step["id"]), found.record(step["id"])
            assert one is not None and other is not None and one.get("digest") == other.get("digest")
        assert (keep == "results") == (not list(folder.glob("steps/*/model")))


def test_killed_workers_of_a_pool_and_its_killed_run_lose_nothing(tmp_path: Path) -> None:
    erasers = [{"fake-eraser": {"id": f"eraser {n}", "clean": n + 1}} for n in range(6)]
    measures = ["hit-rate", "rank", "perplexity", "answers"]
    spec = parse_spec(fakes.portable(fakes.study(tmp_path, removals=erasers, measures=measures)))
    expected = run_study(spec, tmp_path / "whole", Context(threads=1))
    folder, options = tmp_path / "pool", Options(where=Where(workers=2))
    workers, _ = kill_workers_often(spec, folder, options, 2, 2)
    assert workers >= 1, "some kills must come in time to show anything"
    result = run_study(spec, folder, Context(threads=1))
    assert not result.failed and not result.left_out and result.found + result.ran == expected.ran
    one, other = Store(tmp_path / "whole"), Store(folder)
    for step in one.study()["steps"]:
        assert (one.record(step["id"]) or {}).get("digest") == (other.record(step["id"]) or {}).get("digest")
    assert len(whole(folder)) == expected.ran and not list((folder / "steps" / ".partial").iterdir())


def test_a_step_that_another_run_finished_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    spec = parse_spec(fakes.study(tmp_path))
    run_study(spec, tmp_path / "out", Context())
    store = Store(tmp_path / "out")
    step = store.study()["steps"][0]["id"]
    before = whole(store.folder)
    with store.making(step) as partial:
        (partial / "record.json").write_text('{"status": "done"}')
    store.forget(step)
    assert whole(store.folder) == before and not list((store.folder / "steps" / ".partial").iterdir())


def test_a_worker_whose_run_was_superseded_leaves_nothing(tmp_path: Path) -> None:
    spec = parse_spec(fakes.study(tmp_path))
    run_study(spec, tmp_path / "out", Context())
    late = Store(tmp_path / "out", run="a run that is no more")
    try:
        with late.making("ab" * 32) as partial:
            (partial / "record.json").write_text('{"status": "done"}')
        raise AssertionError("it must say so")
    except BadInput:
        raise
    except Exception as error:
        assert type(error).__name__ == "Superseded"
    assert late.state("ab" * 32) == "open" and not list((late.folder / "steps" / ".partial").iterdir())


def test_a_broken_record_is_no_finished_step(tmp_path: Path) -> None:
    """As a disk without write-through may leave it after a power cut."""
    spec = parse_spec(fakes.study(tmp_path))
    first = run_study(spec, tmp_path / "out", Context())
    store = Store(tmp_path / "out")
    ids = [s["id"] for s in store.study()["steps"]]
    (store.path(ids[-1]) / "record.json").write_bytes(b"\0" * 300)
    (store.path(ids[-2]) / "record.json").unlink()
    again = run_study(spec, tmp_path / "out", Context())
    assert again.ran == 2 and again.found == first.ran - 2 and not again.failed
    assert len(whole(store.folder)) == len(ids)
