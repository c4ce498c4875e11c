"""Progress: standard output stays free for `--json`; each form counts, notes and survives an error."""

from __future__ import annotations

import pytest

from palimpsest import progress
from palimpsest.progress import Bars, Plain, Silent, make_progress


@pytest.mark.parametrize("made", [Silent, Plain, Bars])
def test_nothing_goes_to_standard_output(made: type, capsys: pytest.CaptureFixture[str]) -> None:
    shown = made()
    with shown.task("erasing", 3) as task, shown.task("inside") as inner:
        task.advance(1, "loss 1.00")
        inner.advance()
        shown.say("a line")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("a line" in captured.err) == (made is not Silent)


@pytest.mark.parametrize("made", [Silent, Plain, Bars])
def test_an_error_in_a_task_passes_through_and_the_next_task_works(made: type) -> None:
    shown = made()
    with pytest.raises(ZeroDivisionError), shown.task("breaking", 1):
        raise ZeroDivisionError
    with shown.task("again", 1) as task:
        task.advance()


def test_plain_lines_hold_share_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with Plain(every=5.0).task("erasing", 4) as task:  # started at 5 s of this clock
        task.advance(1, "loss 2.00")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("  erasing:  25 %, ") and lines[0].endswith(" s left loss 2.00")
    assert lines[-1].startswith("  erasing: done in ")


def test_plain_lines_are_not_printed_more_often_than_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with Plain(every=3600).task("erasing", 100) as task:
        for _ in range(100):
            task.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_text_with_brackets_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Bars().say("key [3] of [bold]")
    assert "key [3] of [bold]" in capsys.readouterr().err


def test_quiet_is_silent_and_no_terminal_means_plain_lines() -> None:
    assert isinstance(make_progress(quiet=True), Silent)
    assert isinstance(make_progress(), Plain)  # pytest's standard error is no terminal
