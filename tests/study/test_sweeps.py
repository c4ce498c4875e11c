"""A sweep is as many entries as its axes multiply to, and the report shows them on their axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.study.graph import plan
from palimpsest.study.report import write_report
from palimpsest.study.run import run_study
from palimpsest.study.spec import instance_of, parse_spec
from palimpsest.study.store import Store
from palimpsest.study.sweeps import axes_of, expanded
from palimpsest.study.view import View


def test_axes_multiply_and_the_last_one_is_the_fastest() -> None:
    entry = {"fake_eraser": {"clean": 5, "sweep": {"pairing": ["a", "b"], "erase": {"seconds": [0.5, 1e-3]}}}}
    made = expanded(entry)
    assert [next(iter(m.values()))["id"] for m in made] == [
        "fake-eraser pairing=a erase.seconds=0.5",
        "fake-eraser pairing=a erase.seconds=0.001",
        "fake-eraser pairing=b erase.seconds=0.5",
        "fake-eraser pairing=b erase.seconds=0.001",
    ]
    assert made[1]["fake_eraser"] | {"id": "", "point": {}} == {
        "clean": 5,
        "pairing": "a",
        "erase.seconds": 0.001,
        "id": "",
        "point": {},
    }
    assert expanded("none") == ["none"] and expanded({"fake-eraser": None}) == [{"fake-eraser": None}]


def test_nested_and_dotted_axes_are_the_same() -> None:
    assert axes_of({"erase": {"tuning": {"lr": [1, 2]}}}) == axes_of({"erase.tuning.lr": [1, 2]})


def test_points_reach_the_methods_and_an_id_names_the_family(tmp_path: Path) -> None:
    removals = [{"fake-eraser": {"id": "short", "sweep": {"clean": [10, 20], "erase.seconds": [0, 1]}}}, "fake-eraser"]
    spec = parse_spec(fakes.study(tmp_path, removals=removals))
    assert [r.id for r in spec.removals] == [
        "short clean=10 erase.seconds=0",
        "short clean=10 erase.seconds=1",
        "short clean=20 erase.seconds=0",
        "short clean=20 erase.seconds=1",
        "fake-eraser",
    ]
    made = [instance_of(r, "removals") for r in spec.removals]
    assert [(m.clean, m.erase.seconds) for m in made] == [(10, 0), (10, 1), (20, 0), (20, 1), (600, 0)]
    assert spec.removals[0].point is not None and spec.removals[0].point.of == "short"
    assert spec.removals[4].point is None
    erase = [s for s in plan(spec).steps.values() if s.method_name == "fake-erase"]
    assert len(erase) == 2, "points that differ in the recovery alone share their erase phase"


def test_what_moves_together_is_one_axis(tmp_path: Path) -> None:
    removals = [{"fake-eraser": {"sweep": {"erase": [{"seconds": 1, "pairing": "a"}, {"seconds": 2, "pairing": "b"}]}}}]
    spec = parse_spec(fakes.study(tmp_path, removals=removals))
    assert [r.id for r in spec.removals] == [
        "fake-eraser erase=seconds:1,pairing:a",
        "fake-eraser erase=seconds:2,pairing:b",
    ]
    assert [instance_of(r, "removals").erase for r in spec.removals] == [fakes.Erase("a", 1.0), fakes.Erase("b", 2.0)]


def test_inputs_and_presets_are_axes_too(tmp_path: Path) -> None:
    removals = [
        {"hush": {"sweep": {"reference": ["base", "sibling"]}}},
        {"fake-eraser": {"sweep": {"preset": ["toy"]}}},
    ]
    spec = parse_spec(fakes.study(tmp_path, removals=removals))
    assert [r.settings.get("reference") for r in spec.removals] == ["base", "sibling", None]
    assert spec.removals[2].preset == "toy"


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({"clean": 3}, "sweep of fake-eraser: clean: write each axis as `parameter: [value, value]`"),
        ({"clean": []}, "clean: write each axis"),
        ([1, 2], "sweep of fake-eraser: write each axis"),
        ({"clean": [1, 1]}, "clean: one value is given twice"),
        ({"clean": list(range(1, 102))}, "101 entries are more than the 100"),
        ({"claen": [1, 2]}, "removals[0]: fake-eraser: claen: unknown parameter 'claen'; did you mean clean?"),
        ({"clean": [10, 0]}, "removals[1]: fake-eraser: clean: 0 is out of range"),
    ],
)
def test_wrong_sweeps_are_refused(tmp_path: Path, sweep: Any, expected: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_spec(fakes.study(tmp_path, removals=[{"fake-eraser": {"sweep": sweep}}]), "s.yaml")
    assert str(refused.value).startswith("s.yaml: removals") and expected in str(refused.value)


def test_a_parameter_stands_in_the_sweep_or_beside_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'clean' is given beside the sweep as well"):
        parse_spec(fakes.study(tmp_path, removals=[{"fake-eraser": {"clean": 3, "sweep": {"clean": [1, 2]}}}]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two axes on a removal, one on a mark, two seeds."""
    tmp = tmp_path_factory.mktemp("sweeps")
    with pytest.MonkeyPatch.context() as patch:
        fakes.install(patch.setattr)
        values = fakes.study(
            tmp,
            implants=["fake-mark", {"other-mark": {"sweep": {"strength": [0.6, 1.0]}}}],
            removals=[
                "none",
                {"fake-eraser": {"sweep": {"clean": [10, 20], "pairing": ["derangement", "matched"]}}},
                {"averaging": {"id": "half", "expert": "base"}},
            ],
            measures=["hit-rate", "perplexity", "accuracy"],
            seeds=[4, 9],
        )
        run_study(parse_spec(values), tmp / "out", Context())
    write_report(tmp / "out")
    return tmp / "out"


def test_a_sweep_is_one_table_on_its_axis(folder: Path) -> None:
    store = Store.open(folder)
    view = View.of(store.study(), store.records())
    shown = {s.title: s for s in view.sweeps}
    assert set(shown) == {
        "fake-eraser, fake-mark",
        "fake-eraser, other-mark strength=0.6",
        "fake-eraser, other-mark strength=1",
        "half, other-mark",
        "other-mark, no removal",
    }
    eraser = shown["fake-eraser, fake-mark"]
    assert eraser.axes == ["clean", "pairing"]
    assert [line.title for line in eraser.table.lines] == [
        "clean=10 pairing=derangement",
        "clean=10 pairing=matched",
        "clean=20 pairing=derangement",
        "clean=20 pairing=matched",
    ]
    hits = {line.title: line.cells["hits"].text for line in eraser.table.lines}
    assert hits["clean=10 pairing=derangement"] == "0, 0" and hits["clean=20 pairing=matched"] == "9, 9"
    assert [(axis, [v for v, _ in points]) for _, axis, points in eraser.plots] == [("clean", [10, 20])] * 2
    marks = shown["other-mark, no removal"]
    assert [line.cells["hits"].text for line in marks.table.lines] == ["6, 6", "10, 10"]
    assert [t.implant for t in view.removals] == ["fake-mark"]
    assert [line.title for line in view.removals[0].lines] == ["no removal", "half"], "points stand in their own table"


def test_the_reports_show_sweeps(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "along an axis" in text and "over clean" in text and "clean=10 pairing=derangement" in text
    assert "## fake-eraser, fake-mark, over clean and pairing" in (folder / "report.md").read_text(encoding="utf-8")
