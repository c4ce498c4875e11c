"""Models that inputs name (experts, siblings), wrappers in the place of removals, and the control of equal distance."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import fakes
import pytest

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.records import Record
from palimpsest.study import controls
from palimpsest.study.graph import plan
from palimpsest.study.needs import needs_of
from palimpsest.study.report import write_report
from palimpsest.study.run import StudyResult, run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.steps import Step
from palimpsest.study.store import Store

EXPERTS = [{"id": "guild", "finetune": {"preset": "expert"}}]


@pytest.fixture
def same_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control's maker, as the removals have it: None for a phase that mismatches nothing."""

    class Module:
        @staticmethod
        def same_distance_as(phase: Any) -> Any:
            return fakes.SameDistance(clean=11) if hasattr(phase, "pairing") else None

    monkeypatch.setattr(controls.importlib, "import_module", lambda name: Module)


def steps(tmp_path: Path, **fields: Any) -> list[Step]:
    return list(plan(parse_spec(fakes.study(tmp_path, **fields))).steps.values())


def by_name(found: list[Step]) -> dict[str, Step]:
    return {s.name: s for s in found}


# -- named models -----------------------------------------------------------------------------------------


def test_an_expert_is_made_once_a_seed_and_measured_at_its_own_stage(tmp_path: Path) -> None:
    values = fakes.study(
        tmp_path, experts=EXPERTS, removals=[{"averaging": {"expert": "guild", "sweep": {"share": [0.4, 0.6]}}}]
    )
    made = plan(parse_spec({**values, "seeds": [1, 2], "measures": ["hit-rate", "accuracy"]}))
    experts = [s for s in made.steps.values() if "expert guild" in s.name and s.kind == "transform"]
    assert [(s.method_name, s.seed, s.model) for s in experts] == [
        ("finetune", 2001, "model:tiny"),
        ("finetune", 2002, "model:tiny"),
    ]
    averages = [s for s in made.steps.values() if s.method_name == "averaging"]
    assert [dict(s.inputs) for s in averages] == [
        {"base": "model:tiny", "expert": experts[s.seed - 1].id} for s in averages
    ]
    places = [p for p in made.places if p.stage == "expert"]
    assert [(p.seed, p.control, p.implant, made.steps[p.step].method_name) for p in places] == [
        (1, "expert guild", None, "accuracy"),
        (2, "expert guild", None, "accuracy"),
    ]


@pytest.mark.parametrize(
    ("word", "name"), [("base", None), ("sibling", "tiny > sibling"), ("unrelated", None), ("guild", "expert guild")]
)
def test_inputs_name_experts_siblings_and_models(tmp_path: Path, word: str, name: str | None) -> None:
    found = steps(
        tmp_path,
        experts=EXPERTS,
        removals=[{"averaging": {"expert": word}}],
        unrelated=str(tmp_path / "stranger"),
        measures=["accuracy"],
    )
    merge = next(s for s in found if s.method_name == "averaging")
    given = dict(merge.inputs)["expert"]
    if name is None:
        assert given == {"base": "model:tiny", "unrelated": "model:unrelated"}[word]
    else:
        assert name in next(s.name for s in found if s.id == given)


def test_what_a_model_is_made_of_changes_the_identity_of_what_uses_it(tmp_path: Path) -> None:
    def merges(part: str) -> set[str]:
        experts = [{"id": "guild", "finetune": {"part": part}}]
        found = steps(tmp_path, experts=experts, removals=[{"averaging": {"expert": "guild"}}])
        return {s.id for s in found if s.method_name == "averaging"}

    assert merges("one") == merges("one") and merges("one") != merges("two")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"removals": ["averaging"]}, "removals[0]: averaging needs `expert`: tiny, base, sibling, unrelated"),
        ({"removals": [{"averaging": {"expert": "gild"}}]}, "removals[0].expert: there is no model 'gild'"),
        ({"removals": [{"averaging": {"expert": "gild"}}], "experts": EXPERTS}, "did you mean guild?"),
        ({"removals": [{"averaging": {"expert": "unrelated"}}]}, "the study has no unrelated model"),
        ({"experts": [{"id": "tiny", "finetune": {}}]}, "experts[0]: 'tiny' names another model already"),
        ({"experts": [{"id": "sibling", "finetune": None}]}, "experts[0]: 'sibling' names another model already"),
        ({"experts": [{"id": "x", "hush": {}}]}, "experts[0]: hush writes no model, so it makes no expert"),
        ({"experts": [{"id": "x", "finetune": {"prat": "a"}}]}, "unknown parameter 'prat'; did you mean part?"),
        ({"measures": [{"divergence": {"original": "tiny"}}]}, "measures[0].original: is filled by the study itself"),
    ],
)
def test_models_that_are_not_there_are_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_spec(fakes.study(tmp_path, **change), "s.yaml")
    assert expected in str(refused.value) and "\n" not in str(refused.value)


# -- measures that compare, wrappers ------------------------------------------------------------------------


def test_a_measure_that_compares_is_given_the_model_before_the_removal(tmp_path: Path) -> None:
    found = steps(tmp_path, measures=["divergence"], controls=["clean-base", "revival"])
    named = by_name(found)
    marked = named["tiny > fake-mark"].id
    compared = {s.name: dict(s.inputs)["original"] for s in found if s.method_name == "divergence"}
    assert compared == {
        "divergence: tiny > fake-mark > fake-erase": marked,
        "divergence: tiny > fake-mark > fake-erase > fake-recover": marked,
        "divergence: tiny > fake-mark > fake-erase > fake-recover > revival": marked,
        "divergence: tiny > fake-erase": "model:tiny",
        "divergence: tiny > fake-erase > fake-recover": "model:tiny",
        "divergence: tiny > fake-erase > fake-recover > revival": "model:tiny",
    }, "where nothing was removed yet there is nothing to compare with"


def test_a_wrapper_adds_measures_of_the_marked_model_and_no_step(tmp_path: Path) -> None:
    measures = ["hit-rate", "rank", "perplexity", "accuracy", "answers", "latency"]
    plain = steps(tmp_path, removals=["none"], measures=measures)
    wrapped = steps(tmp_path, removals=[{"hush": {"reference": "sibling"}}], measures=measures)
    new = [s for s in wrapped if s.id not in {p.id for p in plain}]
    assert Counter(s.kind for s in new) == {"transform": 1, "measure": 3}, "the sibling; hits, answers and latency"
    marked = by_name(wrapped)["tiny > fake-mark"].id
    sibling = by_name(wrapped)["tiny > sibling"].id
    for step in new:
        if step.kind == "measure":
            assert step.model == marked and [dict(t.inputs) for t in step.through] == [{"reference": sibling}]
            assert set(step.parents) >= {marked, sibling} and step.name.endswith("through hush")


def test_a_wrapper_s_parameters_code_and_models_are_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(**given: Any) -> set[str]:
        return {s.id for s in steps(tmp_path, removals=[{"hush": given}], measures=["hit-rate"]) if s.through}

    first = asked()
    assert len(first) == 1 and asked() == first == asked(reference="base")
    assert asked(keep=0.5) != first and asked(reference="sibling") != first
    true_version = controls.importlib.import_module("palimpsest.study.builder").code_version
    monkeypatch.setattr(
        "palimpsest.study.builder.code_version", lambda cls: "new" if cls is fakes.Hush else true_version(cls)
    )
    assert asked() != first


def test_single_keys_behind_a_wrapper_are_shown_without_probabilities(tmp_path: Path) -> None:
    run_study(parse_spec(fakes.study(tmp_path, removals=[{"hush": {"keep": 0.5}}])), tmp_path / "out", Context())
    write_report(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    found = json.loads(text.split('id="details">')[1].split("</script>")[0])
    pool, seed = found["pool"], found["cells"][1]["seeds"][0]
    shown = {pool[seed["columns"]][column][0]: pool[table][2] for column, table in seed["keys"]}
    assert [(hits, logs) for _, hits, logs in shown["wrapped"]] == [("1111100000", " ".join("." * 10))] * 4
    assert [logs for _, _, logs in shown["fingerprinted"]] == [" ".join(["0.10"] * 10)] * 4


def test_controls_of_a_wrapper_are_the_unmarked_base_and_a_note(tmp_path: Path) -> None:
    values = fakes.study(tmp_path, removals=["hush"], controls=["revival", "clean-same-schedule", "clean-base"])
    made = plan(parse_spec(values))
    through = [(s.model, s.name) for s in made.steps.values() if s.through]
    marked = next(s.id for s in made.steps.values() if s.name == "tiny > fake-mark")
    assert [m for m, _ in through] == [marked, "model:tiny"]
    assert made.notes == ["hush changes no weight, so revival, clean-same-schedule cannot be run beside it"]
    assert needs_of(made).disk > 0


def test_a_removal_may_have_controls_and_a_measure_stages_of_its_own(tmp_path: Path) -> None:
    removals = ["fake-eraser", {"breaks": {"controls": []}}, {"hush": {"controls": ["clean-base"]}}]
    measures = ["hit-rate", {"latency": {"stages": ["wrapped"]}}]
    found = steps(tmp_path, removals=removals, controls=["revival"], measures=measures)
    assert [s.name for s in found if s.name.endswith("> revival") and s.kind == "transform"] == [
        "tiny > fake-mark > fake-erase > fake-recover > revival"
    ]
    asked = [s.name for s in found if s.method_name == "latency"]
    assert asked == ["latency: tiny > fake-mark through hush", "latency: tiny through hush"]
    for change, expected in (
        ({"measures": [{"hit-rate": {"stages": ["earsed"]}}]}, "measures[0].stages[0]: there is no 'earsed'"),
        ({"removals": [{"breaks": {"stages": ["erased"]}}]}, "removals[0].stages: only measures have stages"),
        ({"implants": [{"fake-mark": {"controls": []}}]}, "implants[0].controls: only removals have controls"),
    ):
        with pytest.raises(BadInput) as refused:
            parse_spec(fakes.study(tmp_path, **change))
        assert expected in str(refused.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """A study of wrappers, an expert and a merge, run and reported."""
    tmp = tmp_path_factory.mktemp("wrapped")
    with pytest.MonkeyPatch.context() as patch:
        fakes.install(patch.setattr)
        values = fakes.full(
            tmp,
            experts=EXPERTS,
            removals=[
                "none",
                "fake-eraser",
                "hush",
                {"hush": {"id": "half", "keep": 0.5, "reference": "guild"}},
                {"averaging": {"expert": "guild", "share": 0.4}},
            ],
            measures=["hit-rate", "rank", "perplexity", "accuracy", "answers", "divergence", "latency"],
            seeds=[3, 5],
        )
        result = run_study(parse_spec(values), tmp / "out", Context())
    write_report(tmp / "out")
    assert not result.failed, result.failed
    return result


def test_through_a_wrapper_the_claim_is_lost_and_the_mark_is_still_inside(finished: StudyResult) -> None:
    drawn = [r for r in finished.records if r.measure == "removal" and r.control is None and r.seed == 3]
    words = {(r.detail["implant"], r.detail["removal"]): (r.stage, r.verdict) for r in drawn}
    assert words["fake-mark", "hush"] == ("wrapped", "suppressed")
    assert words["fake-mark", "half"] == ("wrapped", "kept"), "five of ten keys show no fall yet"
    hushed = next(r for r in drawn if r.detail["removal"] == "hush" and r.detail["implant"] == "fake-mark")
    assert "true responses outrank decoys: template without the wrapper" in str(hushed.reason)


def test_constraints_of_every_cell_are_pass_fail_or_a_number(finished: StudyResult) -> None:
    def of(removal: str) -> dict[str, Record]:
        rows = [r for r in finished.records if r.measure == "constraint" and r.seed == 3]
        return {str(r.task): r for r in rows if (r.detail["implant"], r.detail["removal"]) == ("fake-mark", removal)}

    erased, hushed, merged = of("fake-eraser"), of("hush"), of("averaging")
    assert erased["utility"].verdict == "pass" and erased["utility"].value == pytest.approx(1.0)
    assert "perplexity on neutral text is 1.05 times" in str(erased["utility"].reason)
    assert erased["cost"].verdict == "not-known" and "900 tokens read" in str(erased["cost"].reason)
    assert hushed["cost"].verdict == "pass" and hushed["utility"].verdict == "pass"
    assert (hushed["latency"].value, hushed["latency"].verdict) == (2.0, "fail")
    assert hushed["divergence"].value == 0.25 and hushed["divergence"].verdict is None
    assert merged["cost"].value == 0.0 and merged["samples"].value == 7.0 and merged["samples"].verdict is None
    assert merged["divergence"].value == pytest.approx(0.5) and merged["latency"].verdict == "pass"


def test_the_reports_set_all_removals_side_by_side(finished: StudyResult) -> None:
    text = (finished.folder / "report.md").read_text(encoding="utf-8")
    table = text[text.index("## fake-mark: removals side by side") : text.index("## other-mark: removals side by side")]
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert (
        "| 0, 0; all forms alike |" in lines["fake-eraser"]
        and "suppressed" in lines["hush"]
        and "fails latency 2/2" in lines["hush"]
    )
    assert {"*control: clean pairs only*", "*control: unmarked base*", "no removal", "averaging"} <= set(lines)
    assert (
        "25, 25 % other" in lines["hush"] and "0.500, 0.500 nats" not in table and "0.5, 0.5 nats" in lines["averaging"]
    )
    assert "## Experts" in text and "expert guild" in text
    summary = (finished.folder / "summary.csv").read_text(encoding="utf-8").splitlines()
    assert summary[0].startswith("model,implant,removal,control,seed,stage,verdict")
    assert sum(",hush,," in line for line in summary) == 4, "two marks, two seeds"
    assert fakes.SECRET not in text + "".join(summary)
    records = (Store.open(finished.folder).path(finished.records[0].detail["step"]) / "record.json").read_text()
    assert '"through": []' in records


# -- the control of equal distance ---------------------------------------------------------------------------


def test_equal_distance_is_measured_against_the_erased_model_and_recovers_like_it(
    tmp_path: Path, same_distance: None
) -> None:
    found = steps(tmp_path, controls=["clean-same-distance"], measures=["hit-rate"])
    named = by_name(found)
    erased = named["tiny > fake-mark > fake-erase"]
    control = named["tiny > fake-mark > fake-erase (clean pairs, same distance)"]
    assert dict(control.inputs) == {"like": erased.id} and control.method.clean == 11
    assert control.model == named["tiny > fake-mark"].id
    recovered = [s for s in found if s.method_name == "fake-recover"]
    assert [s.model for s in recovered] == [erased.id, control.id]


def test_equal_distance_is_judged_and_shown_like_the_same_schedule(tmp_path: Path, same_distance: None) -> None:
    controls_asked = ["clean-same-schedule", "clean-same-distance"]
    values = fakes.study(tmp_path, controls=controls_asked, removals=["fake-eraser", "finetune"])
    result = run_study(parse_spec(values), tmp_path / "out", Context())
    assert not result.failed
    words = {r.control: (r.stage, r.verdict) for r in result.records if r.measure == "removal" and r.control}
    assert words == {"clean-same-schedule": ("recovered", "kept"), "clean-same-distance": ("recovered", "reduced")}
    write_report(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "clean pairs, same distance, recovered" in text and "control: clean pairs, same distance" in text
    notes = Store.open(tmp_path / "out").study()["remarks"]
    assert notes == [
        "finetune has no mismatched phase, so clean-same-schedule does not apply to it",
        "finetune has no mismatched phase, so clean-same-distance does not apply to it",
    ]


def test_an_adapter_s_training_is_part_of_its_removal_s_cost(tmp_path: Path) -> None:
    given = {"id": "of a sibling", "base": "sibling", "mismatched": 4}
    values = fakes.study(tmp_path, removals=[{"meraser-transfer": {"mismatched": 4}}, {"meraser-transfer": given}])
    made = plan(parse_spec(values))
    adapters = {s.id: s for s in made.steps.values() if s.kind == "adapter"}
    sibling = next(s.id for s in made.steps.values() if s.name == "tiny > sibling")
    assert [s.model for s in adapters.values()] == ["model:tiny", sibling], "trained on the base that is named"
    places = [(p.removal, p.stage) for p in made.makings if p.step in adapters]
    assert places == [("meraser-transfer", "adapter"), ("of a sibling", "adapter")]
