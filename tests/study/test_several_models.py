"""An input of several models is a list in a study file, and its models keep their order."""

from __future__ import annotations

from pathlib import Path

import fakes
import pytest

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.study.graph import plan
from palimpsest.study.spec import parse_spec
from palimpsest.study.store import Store
from palimpsest.study.work import Workshop


def planned(folder: Path, words: list[object]) -> dict[str, object]:
    """Models of the given ids beside the one that is marked, and a removal by WAG with the words."""
    models = [{"id": "tiny", "path": str(fakes.tiny_folder(folder / "tiny"))}]
    models += [{"id": i, "path": str(fakes.tiny_folder(folder / i, n))} for n, i in enumerate("zab", 1)]
    return fakes.study(folder, models=models, on=["tiny"], removals=[{"wag": {"with": words}}])


def test_models_come_in_their_order_into_the_step(tmp_path: Path) -> None:
    made = plan(parse_spec(planned(tmp_path, ["z", "a", "b"])))
    (step,) = [s for s in made.steps.values() if s.method_name == "wag"]
    assert dict(step.inputs)["with_.001"] == "model:a"
    filled = Workshop(made, Store.create(tmp_path / "study"), Context())._filled(step)
    assert [m.name for m in filled.with_] == ["z", "a", "b"]
    assert filled.base == made.models["tiny"]


def test_lists_of_lists_are_an_axis(tmp_path: Path) -> None:
    spec = parse_spec(planned(tmp_path, [["a"], ["a", "b"]]))
    assert [r.id for r in spec.attacks] == ["wag with=a", "wag with=a+b"]


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"removals\[0\].with: there is no model 'c'"):
        parse_spec(planned(tmp_path, ["a", "c"]))
