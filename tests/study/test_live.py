"""What a person sees while a study runs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fakes
import pytest
from rich.console import Console

from palimpsest.method import Context
from palimpsest.progress import Bars, Plain, Silent
from palimpsest.study import live
from palimpsest.study.graph import plan
from palimpsest.study.live import Lines, Screen, StudyView, Tally, duration, view_of
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.work import Outcome


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    made = plan(parse_spec(fakes.full(tmp_path)))
    return Tally(made, 0, dict.fromkeys(made.steps, 1.0), 2)


@pytest.mark.parametrize(("seconds", "text"), [(3.7, "4 s"), (185, "3 min 05 s"), (7810, "2 h 10 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_is_that_of_like_steps_divided_among_the_workers(tally: Tally) -> None:
    steps = list(tally.plan.steps.values())
    hits = [s for s in steps if s.method_name == "hit-rate"]
    ranks = [s for s in steps if s.method_name == "rank"]
    tally.left = {s.id: 1.0 for s in [*hits[:3], *ranks[:3]]}
    assert tally.seconds_left is None
    tally.ended(hits[0], Outcome(hits[0].id, "done", seconds=4.0))
    tally.ended(ranks[0], Outcome(ranks[0].id, "done", seconds=10.0))
    assert tally.seconds_left == pytest.approx((2 * 4.0 + 2 * 10.0) / 2)
    other = next(s for s in steps if s.method_name == "perplexity")
    tally.left[other.id] = 2.0  # of its kind nothing is known but its share
    assert tally.seconds_left == pytest.approx((2 * 4.0 + 2 * 10.0 + 2.0 * 7.0) / 2)


def test_counts_are_told_in_one_line(tally: Tally) -> None:
    steps = list(tally.plan.steps.values())
    tally.ended(steps[0], Outcome(steps[0].id, "done", seconds=1.0))
    tally.ended(steps[1], Outcome(steps[1].id, "failed", "it broke"))
    tally.skipped(steps[2])
    assert tally.line().startswith(f"1 of {len(steps)} steps done, 1 failed, 1 skipped, {len(steps) - 3} left, ")


def test_time_left_is_called_as_sure_as_it_is(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    """By how much of what is left is like what was done: 2 of 20 shares perhaps, 10 of 20 about, 1 of 20 not known."""
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    steps = list(tally.plan.steps.values())
    hits = [s for s in steps if s.method_name == "hit-rate"]
    other = next(s for s in steps if s.method_name == "rank")
    for words, shares in [
        ("time left not known yet", {hits[1].id: 1.0, other.id: 19.0}),
        ("perhaps 1 min 08 s", {hits[1].id: 4.0, other.id: 16.0}),
        ("about 1 min 20 s", {hits[1].id: 11.0, other.id: 9.0}),
    ]:
        tally.left, tally.spent, tally.shares = shares, live.defaultdict(list), [0.0, 0.0]
        assert tally.time_left() == "time left not known yet"
        tally.left[hits[0].id] = 1.0
        tally.ended(hits[0], Outcome(hits[0].id, "done", seconds=8.0))  # 8 s a share for what was never done
        tally.workers = 1 if "perhaps" not in words else 2
        assert tally.time_left() == words
    tally.left = {hits[1].id: 1.0}
    tally.started(hits[1])
    now[0] += 3.0
    assert tally.time_left() == "about 5 s"
    now[0] += 4.5
    assert tally.time_left() == "nearly done"
    now[0] += 10.0
    assert tally.time_left() == "longer at work than such steps took so far"


def test_the_view_goes_with_the_progress(tally: Tally) -> None:
    assert type(view_of(Silent(), tally)) is StudyView
    assert isinstance(view_of(Plain(), tally), Lines) and isinstance(view_of(Bars(), tally), Screen)


def test_lines_say_what_is_done_and_every_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LINES_A_SECOND", 1e9)
    spec = parse_spec(fakes.study(tmp_path, removals=["breaks", "fake-eraser"]))
    run_study(spec, tmp_path / "out", Context(progress=Plain()))
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    made = plan(spec)
    saved = made.requested - len(made.steps)
    assert len(made.steps) == 14 and lines[0] == f"study: 14 steps, {saved} more saved by sharing; 0 done before"
    assert sum("steps done" in line for line in lines) == 11 and lines[-1].startswith(
        "  11 of 14 steps done, 1 failed, 2 skipped, 0 left"
    )
    assert lines.count("failed: tiny > fake-mark > breaks: RuntimeError: it broke") == 1


def test_the_picture_shows_who_does_what(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = Bars()
    bars.console = Console(file=io.StringIO(), width=120, force_terminal=True)
    screen = Screen(tally, bars)
    steps = list(tally.plan.steps.values())

    def drawn() -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(screen._picture())
        text: Any = console.file
        return str(text.getvalue())

    with screen.shown():
        screen.started("worker 1", steps[:1])
        screen.started("worker 2", steps[3:6])
        with screen.progress.task("erase", 10) as task:  # type: ignore[union-attr]
            task.advance(5, "loss 0.3")
            assert "erase 50 % loss 0.3" in drawn()
        text = drawn()
        assert steps[0].name in text and f"{steps[3].name} and 2 more measures" in text and "worker 2" in text
        assert f"{tally.saved} steps saved by sharing" in text and f"0 of {tally.total} steps done" in text
        screen.ended("worker 1", steps[0], Outcome(steps[0].id, "done", seconds=2.0))
        screen.lost("worker 2", steps[3], "killed", False)
        assert "worker" not in drawn()
        screen.ended("worker 1", steps[1], Outcome(steps[1].id, "failed", "it broke"))
    written = bars.console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "was lost at" in written
        and "the step is tried again" in written
        and f"failed: {steps[1].name}: it broke" in written
    )
