"""A Ray cluster of two nodes, one killed in the middle: the study completes, and its numbers are the serial run's."""

from __future__ import annotations

from pathlib import Path

import fakes
import pytest
from test_executors import digests, needs

from palimpsest.method import Context
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec


def test_a_node_that_is_lost_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("ray")
    from two_nodes import on_two_nodes

    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    erasers = [{"fake-eraser": {"id": f"eraser {n}", "clean": n + 1, "erase": {"seconds": 0.5}}} for n in range(6)]
    spec = parse_spec(fakes.portable(fakes.study(tmp_path, removals=erasers, measures=["hit-rate"])))
    expected = run_study(spec, tmp_path / "serial", Context(threads=1))
    result, killed = on_two_nodes(spec, tmp_path / "out", 3)
    assert killed and killed["nodes"] == 2 and killed["after_steps"] < expected.ran
    assert not result.failed and not result.left_out and result.ran == expected.ran
    assert digests(tmp_path / "out") == digests(tmp_path / "serial")
    assert not list((tmp_path / "out" / "steps" / ".partial").iterdir())
