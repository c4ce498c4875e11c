"""Equal work stands once in the graph, and whatever changes a result changes the step's identity."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import fakes
import pytest

from palimpsest.study import builder, graph
from palimpsest.study.graph import check, plan
from palimpsest.study.spec import parse_spec


def kinds(steps: list[graph.PlannedStep]) -> Counter[str]:
    return Counter(s.kind for s in steps)


def test_shared_prefixes_stand_once_counted_by_hand(tmp_path: Path) -> None:
    # 1 mark; eraser A and B share the erase phase (they differ in recovery): 1 + 2 phases; so 4 transforms.
    # Hit rate: base, marked, erased, A recovered, B recovered = 5. Perplexity: the same five = 5.
    removals = [{"fake-eraser": {"clean": 100, "id": "a"}}, {"fake-eraser": {"clean": 200, "id": "b"}}]
    steps = check(parse_spec(fakes.study(tmp_path, removals=removals)))
    assert kinds(steps) == {"transform": 4, "measure": 10}
    mark = next(s for s in steps if s.name == "tiny > fake-mark")
    # Lines of the tables that need the mark: its own, the clean base's hit rate (by its keys), a, and b.
    assert mark.shared == 4


def test_the_controls_add_what_they_say(tmp_path: Path) -> None:
    plain = kinds(check(parse_spec(fakes.study(tmp_path))))
    assert plain == {"transform": 3, "measure": 8}
    controls = ["clean-same-schedule", "revival", "clean-base"]
    steps = check(parse_spec(fakes.study(tmp_path, controls=controls)))
    # clean-same-schedule: 2 phases; revival 1; unmarked base: 2 phases and its revival 1.
    assert kinds(steps)["transform"] == plain["transform"] + 6
    assert kinds(steps)["measure"] == plain["measure"] + 2 * 6


def test_negative_controls_are_asked_for_hits_only(tmp_path: Path) -> None:
    negatives = ["clean-base", "sibling", "unrelated-model", "other-owner"]
    spec = parse_spec(fakes.study(tmp_path, negatives=negatives, unrelated=str(tmp_path / "stranger")))
    found = kinds(check(spec))
    # Sibling: 1 transform. Hits of sibling, stranger and marked model with other keys: 3; the base's are there.
    assert found == {"transform": 4, "measure": 11, "keys": 1}


def test_base_measures_are_shared_by_seeds_and_marks_are_not(tmp_path: Path) -> None:
    one, three = (plan(parse_spec(fakes.study(tmp_path, seeds=s))) for s in ([0], [0, 1, 2]))

    def named(p: graph.Plan, name: str) -> int:
        return sum(s.name.startswith(name) and s.kind == "transform" for s in p.steps.values())

    assert named(three, "tiny > fake-mark") == 3 * named(one, "tiny > fake-mark")
    assert sum(s.name == "perplexity: tiny" for s in three.steps.values()) == 1
    assert len({s.key_seed for s in three.steps.values() if s.key_seed is not None}) == 3
    assert three.requested > len(three.steps)


def test_the_identity_follows_what_a_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def marks(**fields: object) -> set[str]:
        steps = plan(parse_spec(fakes.study(tmp_path, **fields))).steps.values()
        return {s.id for s in steps if s.kind == "transform" and s.name.split(" (seed")[0] == "tiny > fake-mark"}

    first = marks()
    assert marks() == first
    assert marks(measures=["perplexity"]) == first, "a mark does not depend on what is measured"
    assert marks(implants=[{"fake-mark": {"strength": 0.5}}]) != first
    assert marks(seeds=[7]) != first
    with monkeypatch.context() as patch:
        patch.setattr(builder, "code_version", lambda cls: "another")
        assert marks() != first
    fakes.clear(tmp_path / "base")
    fakes.tiny_folder(tmp_path / "base", 9)
    assert marks() != first, "another model of the same name is another input"


def test_parents_stand_before_their_children(tmp_path: Path) -> None:
    order = list(plan(parse_spec(fakes.full(tmp_path))).steps.values())
    seen: set[str] = set()
    for step in order:
        assert set(step.parents) <= seen
        seen.add(step.id)


def test_a_removal_without_mismatch_is_noted(tmp_path: Path) -> None:
    made = plan(parse_spec(fakes.study(tmp_path, removals=["finetune"], controls=["clean-same-schedule"])))
    assert made.notes == ["finetune has no mismatched phase, so clean-same-schedule does not apply to it"]


@pytest.mark.parametrize("preset", ["auto", "paper"])
def test_controls_of_auto_take_the_strength_that_the_run_found(tmp_path: Path, preset: str) -> None:
    controls = ["clean-same-schedule", "clean-base"]
    removals = [{"meraser": {"preset": preset, "mismatched": 4, "clean": 4}}]
    made = plan(parse_spec(fakes.study(tmp_path, removals=removals, controls=controls)))
    erasing = [s for s in made.steps.values() if s.method_name.startswith("meraser-erase")]
    assert [s.name for s in erasing] == [
        "tiny > fake-mark > meraser-erase",
        "tiny > fake-mark > meraser-erase (clean pairs)",
        "tiny > meraser-erase",
    ]
    run, *rest = erasing
    assert run.inputs == ()
    wanted = (("schedule", run.id),) if preset == "auto" else ()
    assert [s.inputs for s in rest] == [wanted, wanted]


def test_the_code_version_of_a_method_covers_what_it_inherits_from() -> None:
    from palimpsest.removals.weights import by_magnitude, prune_l1

    own, inherited = (Path(str(module.__file__)).read_bytes() for module in (prune_l1, by_magnitude))
    assert builder.code_version(prune_l1.PruneL1) == hashlib.sha256(own + inherited).hexdigest()
    assert builder.code_version(by_magnitude.ByMagnitude) == hashlib.sha256(inherited).hexdigest()
