"""The live view on a real terminal (a pseudo-terminal): what a person sees at 40, 80 and 120 columns, and Ctrl-C."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import yaml
from terminal import Session, on_a_terminal


def watched(
    tmp_path: Path,
    width: int,
    workers: int = 1,
    seconds: float = 0.6,
    look: Callable[[str, Callable[[bytes], Any]], None] = lambda text, press: None,
) -> Session:
    """A study of nine steps, two of which take their time, as a person runs it."""
    erasers = [{"fake-eraser": {"id": f"eraser {n}", "clean": n + 1, "erase": {"seconds": seconds}}} for n in (1, 2)]
    values = fakes.portable(fakes.study(tmp_path, removals=erasers, measures=["hit-rate"]))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "palimpsest", "study", "run", str(tmp_path / "study.yaml")]
    command += ["--out", str(tmp_path / "out"), "--workers", str(workers), "--threads", "1"]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    return on_a_terminal(command, width, {**environment, "FAKE_LOG": str(tmp_path / "log")}, look)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_picture_that_fits_and_stays(tmp_path: Path, width: int) -> None:
    session = watched(tmp_path, width)
    assert session.code == 0 and session.terminal.unknown == set()
    pictures = [text for text in session.seen if "running for" in text]
    first, last = session.seen.index(pictures[0]), len(session.seen) - session.seen[::-1].index(pictures[-1])
    between = session.seen[first:last]
    assert between == pictures, "the picture vanished between two writes"
    assert all(
        text.count("running for") == 1 and text.count("study ━") + text.count("study ╸") <= 1 for text in pictures
    )
    assert all(len(line) <= width for text in pictures for line in text.splitlines())
    assert not any("study ━" in line or "running for" in line for line in session.terminal.wrapped)
    slow = [text for text in pictures if "fake-erase" in text]
    assert slow and all("steps saved by sharing" in text for text in slow)
    line = next(line for line in slow[0].splitlines() if "fake-erase" in line)
    assert line.startswith("  here ") and (width < 80 or "tiny > fake-mark > fake-erase" in line)
    assert width < 80 or "shared by" in line
    assert any(words in " ".join(slow[0].split()) for words in ("time left not known yet", "perhaps", "about"))
    left = session.terminal.text
    assert "running for" not in left and "study ━" not in left and "study: " in left
    total = len(json.loads((tmp_path / "out" / "study.json").read_text())["steps"])
    assert f"study: {total} of {total} steps done, 0 left" in left
    assert "\x1b[?25l" in session.raw and not session.terminal.hidden, "the cursor must come back"


def test_ctrl_c_ends_it_at_once_and_keeps_what_is_finished(tmp_path: Path) -> None:
    pressed: list[str] = []

    def look(text: str, press: Callable[[bytes], Any]) -> None:
        if "fake-erase" in text and not pressed:
            pressed.append(text)
            press(b"\x03")  # the terminal sends it to the run and to its workers

    session = watched(tmp_path, 80, workers=2, seconds=600.0, look=look)
    assert pressed and session.code == 130
    left = session.terminal.text
    assert "running for" not in left and not session.terminal.hidden and "Traceback" not in left
    records = [json.loads(p.read_text()) for p in (tmp_path / "out").glob("steps/*/record.json")]
    assert records and all(r["status"] == "done" for r in records)
