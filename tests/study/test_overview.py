"""The table over seeds says what each seed's own table says, and pools nothing."""

from __future__ import annotations

from pathlib import Path

import fakes
import pytest

from palimpsest.method import Context
from palimpsest.study import tables
from palimpsest.study.overview import overviews
from palimpsest.study.report import write_report
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two marks and two seeds."""
    tmp = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        fakes.install(patch.setattr)
        run_study(parse_spec(fakes.full(tmp, seeds=[4, 9])), tmp / "out", Context())
    return tmp / "out"


def test_each_value_is_that_of_the_seed_it_stands_for(folder: Path) -> None:
    blocks = tables.blocks(Store.open(folder).records())
    found = overviews(blocks)
    assert [(o.title, o.seeds) for o in found] == [
        ("fake-mark, fake-eraser", [4, 9]),
        ("other-mark, fake-eraser", [4, 9]),
    ]
    for overview, name in zip(found, ("fake-mark", "other-mark"), strict=True):
        own = [b for b in blocks if b.cell.implant == name]
        assert [b.cell.seed for b in own] == [4, 9]
        for line in overview.lines:
            for number, value in enumerate(line.values):
                parts = [next(ln for ln in b.lines if ln.title == line.title).values[number] for b in own]
                records = [p.record for p in parts]
                if line.title.startswith("FSR"):
                    counts = ["–" if r is None else str(r.count) for r in records]
                    sizes = {r.n for r in records if r is not None}
                    assert value.text == f"{', '.join(counts)} of {sizes.pop()}" if sizes else value.text == "–"
                elif line.title.startswith("perplexity"):
                    assert value.text in (", ".join(p.text for p in parts), "–")
        words = dict(overview.verdicts)
        assert words["removal"] == [b.verdict.verdict for b in own if b.verdict is not None]


def test_the_reports_show_it_and_one_seed_has_none(folder: Path, tmp_path: Path) -> None:
    paths = write_report(folder)
    assert "## fake-mark, fake-eraser, seeds 4, 9" in paths["md"].read_text()
    assert "Over the seeds" in paths["html"].read_text()
    blocks = tables.blocks(Store.open(folder).records())
    assert overviews([b for b in blocks if b.cell.seed == 4]) == []
