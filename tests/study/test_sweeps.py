"""A sweep is as many entries as its axes multiply to, and the report shows them on their axis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fakes
import pytest

from palimpsest import registry
from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues
from palimpsest.errors import BadInput
from palimpsest.method import Context, param, takes
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


# -- lists of values -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of a method."""

    lr: float = param(0.1, "rate")
    names: tuple[str, ...] = param((), "names")


@dataclass(frozen=True)
class Many:
    """Parameters of every shape."""

    base: Checkpoint | None = takes("a model")
    others: tuple[Checkpoint, ...] = takes("models")
    data: Dialogues | None = takes("dialogues")
    share: float | None = param(None, "a number")
    word: Literal["a", "b"] | int = param("a", "a word")
    several: tuple[float, ...] | None = param((1.0,), "numbers")
    part: Part = param(Part(), "a part")


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ({"share": [0.4, 0.5]}, [{"share": 0.4}, {"share": 0.5}]),
        ({"share": [None, 1]}, [{"share": None}, {"share": 1}]),
        ({"word": ["a", 3]}, [{"word": "a"}, {"word": 3}]),
        ({"several": [1, 2]}, None),
        ({"several": [[1, 2], [3]]}, [{"several": [1, 2]}, {"several": [3]}]),
        ({"base": ["toy", "tiny"]}, [{"base": "toy"}, {"base": "tiny"}]),
        ({"others": ["toy", "tiny"]}, None),
        ({"data": ["a.jsonl", "b.jsonl"]}, None),
        ({"data": [["a.jsonl"], ["b.jsonl"]]}, [{"data": ["a.jsonl"]}, {"data": ["b.jsonl"]}]),
        ({"part": {"lr": [1, 2], "names": ["x", "y"]}}, [{"part.lr": 1}, {"part.lr": 2}]),
        ({"part.lr": [1, 2]}, [{"part.lr": 1}, {"part.lr": 2}]),
        ({"part": [{"lr": 1}, {"lr": 2}]}, [{"part": {"lr": 1}}, {"part": {"lr": 2}}]),
        ({"part": {"names": ["x", "y"]}}, None),
        ({"preset": ["x", "y"], "controls": ["revival"]}, [{"preset": "x"}, {"preset": "y"}]),
        ({"unknown": [1, 2]}, None),
        (
            {"share": [0.1, 0.2], "sweep": {"several": [1.0, 2.0]}},
            [{"share": s, "several": v} for s in (0.1, 0.2) for v in (1.0, 2.0)],
        ),
    ],
)
def test_a_list_is_an_axis_where_a_single_value_belongs(
    given: dict[str, Any], at: list[dict[str, Any]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find", lambda name, *kinds: Many)
    made = expanded({"many": given}, ("removals",))
    if at is None:
        assert made == [{"many": given}]
    else:
        assert [m["many"]["point"]["at"] for m in made] == at
        assert all(m["many"]["point"]["of"] == "many" for m in made)
        if "part" in given and isinstance(given["part"], dict):
            assert made[0]["many"]["part"] == {"names": ["x", "y"]}, "what is no axis stays where it is"


def test_lists_of_values_are_what_a_sweep_of_them_is(tmp_path: Path) -> None:
    lists = [{"fake-eraser": {"clean": [10, 20], "erase": {"seconds": [0, 1]}}}]
    swept = [{"fake-eraser": {"sweep": {"clean": [10, 20], "erase.seconds": [0, 1]}}}]
    specs = [parse_spec(fakes.study(tmp_path, removals=r)) for r in (lists, swept)]
    assert specs[0].removals == specs[1].removals and len(specs[0].removals) == 4
    assert set(plan(specs[0]).steps) == set(plan(specs[1]).steps)


def test_the_axes_of_a_chain_multiply_and_are_told_apart(tmp_path: Path) -> None:
    chain = [{"averaging": {"expert": "base", "share": [0.4, 0.6]}}, {"fake-recover": {"clean": [1, 2]}}]
    spec = parse_spec(fakes.study(tmp_path, removals=[chain, {"chain": chain, "id": "x", "measure": "every"}]))
    assert [r.id for r in spec.removals[:4]] == [
        f"averaging > fake-recover share={share} clean={clean}" for share in (0.4, 0.6) for clean in (1, 2)
    ]
    assert [r.id for r in spec.removals[4:]] == [
        f"x share={share} clean={clean}" for share in (0.4, 0.6) for clean in (1, 2)
    ]
    last = spec.removals[-1]
    assert last.point is not None and (last.point.of, last.point.at) == ("x", {"share": 0.6, "clean": 2})
    assert last.measure == "every" and [link.id for link in last.links] == [
        "averaging share=0.6",
        "fake-recover clean=2",
    ]
    assert [link.point for link in last.links] == [None, None]
    transforms = [s for s in plan(spec).steps.values() if s.kind == "transform"]
    assert len(transforms) == 1 + 2 + 4, "a mark, two merges, two recoveries of each"
    twice = [{"averaging": {"expert": "base", "share": [0.4, 0.6]}}] * 2
    (first, *_) = parse_spec(fakes.study(tmp_path, removals=[twice])).removals
    assert first.id == "averaging > averaging 1 averaging.share=0.4 2 averaging.share=0.4"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"fake-eraser": {"clean": []}}, "sweep of fake-eraser: clean: the list is empty"),
        ({"fake-eraser": {"clean": [1, 1]}}, "sweep of fake-eraser: clean: one value is given twice"),
        ({"fake-eraser": {"clean": list(range(1, 102))}}, "101 entries are more than the 100"),
        (["breaks", {"fake-eraser": {"clean": list(range(1, 102))}}], "101 entries are more than the 100"),
        ({"fake-eraser": {"clean": [5, 0]}}, "removals[1]: fake-eraser: clean: 0 is out of range"),
        ({"fake-eraser": {"clean": [5], "sweep": {"clean": [1]}}}, "sweep of fake-eraser: 'clean' is given"),
        ({"fake-eraser": {"claen": [5, 6]}}, "removals[0]: fake-eraser: claen: unknown parameter 'claen'"),
        ({"fake-erasr": {"clean": [5, 6]}}, "removals[0]: there is no removal, protection or realignment"),
    ],
)
def test_wrong_lists_are_refused(tmp_path: Path, entry: Any, expected: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_spec(fakes.study(tmp_path, removals=[entry]), "s.yaml")
    assert str(refused.value).startswith("s.yaml: removals") and expected in str(refused.value)
