"""Studies as calls: run one, look how far one is, report one, compare two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.calls import DEFAULT_RUN, Run


def run_study(
    spec: str | Path,
    out: str | Path,
    *,
    retry_failed: bool = False,
    keep: str = "all",
    max_disk: int | None = None,
    where: Mapping[str, Any] | None = None,
    run: Run = DEFAULT_RUN,
) -> Any:
    """Run a study file (or a shipped recipe by name) into `out`; goes on where it was. Writes the report.

    keep: `all` checkpoints, or `results` only (a checkpoint goes when nothing needs it any more). max_disk: bytes that
    the study's folder may take. where: `workers`, `ray`, `slurm`, `memory` (bytes), `minutes`, `gpus`: see
    `palimpsest.study.executors.Where`. Raises BadInput before anything runs.
    """
    from palimpsest.study import run as runner
    from palimpsest.study.executors import Where
    from palimpsest.study.report import write_report
    from palimpsest.study.spec import load_spec

    loaded = load_spec(spec)
    with run.context() as ctx:
        options = runner.Options(retry_failed, keep, max_disk, Where(**(where or {})))
        result = runner.run_study(loaded, Path(out), ctx, options=options)
    if result.records or result.failed:
        write_report(Path(out))
    return result


def study_check(
    spec: str | Path, *, out: str | Path | None = None, like: Sequence[str | Path] = (), device: str = "auto"
) -> Any:
    """What a study would do, checked completely; runs nothing: a `palimpsest.study.outlook.Outlook`.

    out: its folder, where it may have begun. like: folders of earlier studies that time is taken from. Raises BadInput.
    """
    from palimpsest.study.outlook import outlook
    from palimpsest.study.spec import load_spec

    return outlook(load_spec(spec), None if out is None else Path(out), [Path(p) for p in like], device)


def study_status(folder: str | Path) -> Any:
    """What of a study is done, failed, left out, open, and what runs now: a `palimpsest.study.status.Status`."""
    from palimpsest.study.status import status

    return status(folder)


def study_report(folder: str | Path) -> dict[str, Path]:
    """Write report.html, report.md and report.csv of a study folder."""
    from palimpsest.records import collected_later
    from palimpsest.study.report import write_report

    with collected_later():
        return write_report(Path(folder))


def study_compare(first: str | Path, second: str | Path, *, test: str = "exact", out: str | Path | None = None) -> Any:
    """What two study folders differ in, and how sure that is: a `palimpsest.study.compare.Comparison`.

    test: of five seeds and more, `exact` (sign flips) or `t`. out: a folder for comparison.md and comparison.csv.
    """
    from palimpsest.study.compare import compare_studies
    from palimpsest.study.compare_text import check_out, write_comparison

    if out is not None:
        check_out(Path(out))
    made = compare_studies(first, second, test)
    if out is not None:
        write_comparison(made, Path(out))
    return made
