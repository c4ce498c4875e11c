"""Chains: what is done one after the other, with shared beginnings, stages, costs and controls; counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fakes
import pytest

from palimpsest import api
from palimpsest.calls import Run
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.study.graph import plan
from palimpsest.study.report import write_report
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.steps import Plan
from palimpsest.study.store import Store

MERGE = {"averaging": {"expert": "base", "share": 0.6}}


def planned(tmp_path: Path, removals: list[Any], **fields: Any) -> Plan:
    return plan(parse_spec(fakes.study(tmp_path, removals=removals, **fields)))


def transforms(made: Plan) -> list[str]:
    return [s.name for s in made.steps.values() if s.kind == "transform"]


def test_chains_are_written_as_lists_or_with_an_id(tmp_path: Path) -> None:
    removals = [["breaks", {"fake_erase": {"pairing": "matched", "id": "gentle"}}], {"chain": ["breaks"], "id": "one"}]
    spec = parse_spec(fakes.study(tmp_path, removals=[*removals, {"id": "two", "chain": ["breaks", "hush"]}]))
    assert [(r.id, r.name, [link.id for link in r.links]) for r in spec.removals] == [
        ("breaks > gentle", "breaks > fake-erase", ["breaks", "gentle"]),
        ("one", "breaks", ["breaks"]),
        ("two", "breaks > hush", ["breaks", "hush"]),
    ]
    assert spec.removals[0].links[1].settings == {"pairing": "matched"}


def test_what_chains_begin_with_is_done_once(tmp_path: Path) -> None:
    # mark 1; shield 1, after it align 1 and two merges; align is followed by a third merge: 6 transforms, not 1 + 1 +
    # 2 + 3 and three times the mark.
    chains = [["fake-shield", MERGE], ["fake-shield", "fake-align", MERGE]]
    made = planned(tmp_path, ["none", "fake-shield", *chains], measures=["hit-rate"])
    assert transforms(made) == [
        "tiny > fake-mark",
        "tiny > fake-mark > fake-shield",
        "tiny > fake-mark > fake-shield > averaging",
        "tiny > fake-mark > fake-shield > fake-align",
        "tiny > fake-mark > fake-shield > fake-align > averaging",
    ]
    # Hits of base, mark, shield, and the end of each chain; `align` alone is asked nothing.
    assert Counter(s.kind for s in made.steps.values()) == {"transform": 5, "measure": 5}
    # Lines: mark 2 steps, its clean base 2, shield 3, first chain 4, second chain 5: without sharing 16 instead of 10.
    assert (len(made.steps), made.requested) == (10, 16)


def test_every_link_has_its_stage_and_is_measured_where_that_is_asked_for(tmp_path: Path) -> None:
    chain = ["fake-shield", "breaks", "fake-eraser", "fake-align", MERGE]

    def stages(**fields: Any) -> tuple[list[str], list[str]]:
        made = planned(tmp_path, [{"chain": chain, "id": "x", **fields}], measures=["perplexity"])
        ours = [[p.stage for p in places if p.removal == "x"] for places in (made.makings, made.places)]
        return ours[0], ours[1]

    each = ["protected", "breaks", "fake-erase", "fake-recover", "realigned", "erased"]
    assert stages() == (each, ["erased"]) == stages(measure="last")
    assert stages(measure="every") == (each, each)


def test_no_two_links_have_one_stage(tmp_path: Path) -> None:
    chain = {"chain": ["fake-shield", {"fake-shield": {"strength": 0.5}}, "breaks", "breaks", "breaks"], "id": "x"}
    made = planned(tmp_path, [{**chain, "measure": "every"}], measures=["perplexity"])
    stages = [p.stage for p in made.places if p.removal == "x"]
    assert stages == ["protected", "protected (2)", "breaks", "breaks (2)", "erased"]


def test_a_chain_of_toy_commands_is_what_doing_them_by_hand_gives(tmp_path: Path) -> None:
    removals = [["prune-l1", "quantize-int8"]]
    values = {"models": ["toy"], "implants": ["none"], "removals": removals, "measures": ["accuracy"], "seeds": [5]}
    result = run_study(parse_spec(values), tmp_path / "study", Context(threads=1))
    assert not result.failed, result.failed
    run = Run(seed=5, threads=1)
    api.remove("prune-l1", "toy", tmp_path / "pruned", run=run)
    api.remove("quantize-int8", tmp_path / "pruned", tmp_path / "quantised", run=run)
    costs = {str(r.stage): r.digest for r in result.records if r.measure == "cost"}
    by_hand = {"prune-l1": resolve(tmp_path / "pruned").digest(), "erased": resolve(tmp_path / "quantised").digest()}
    assert costs == by_hand


def test_the_cost_of_a_chain_is_that_of_its_links(tmp_path: Path) -> None:
    removals = [["fake-erase", "fake-align", "fake-recover"]]
    result = run_study(parse_spec(fakes.study(tmp_path, removals=removals)), tmp_path / "out", Context())
    assert not result.failed, result.failed
    (cost,) = [r for r in result.records if r.measure == "constraint" and r.task == "cost"]
    assert "940 tokens read" in str(cost.reason), "300 to erase, 40 to align, 600 to recover"
    (verdict,) = [r for r in result.records if r.measure == "removal"]
    assert verdict.detail["removal"] == "fake-erase > fake-align > fake-recover" and verdict.stage == "recovered"
    write_report(tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "fake-erase > fake-align > fake-recover" in text


def test_a_protection_has_a_secret_of_its_own_that_all_its_chains_share(tmp_path: Path) -> None:
    def shields(**fields: Any) -> list[int]:
        made = planned(tmp_path, ["fake-shield", ["fake-shield", MERGE]], **fields)
        found = [s.key_seed for s in made.steps.values() if s.method_name == "fake-shield"]
        return [k for k in found if k is not None]

    one, three = shields(), shields(seeds=[0, 1, 2])
    assert len(one) == 1 and len(set(three)) == 3 and one[0] in three
    result = run_study(
        parse_spec(fakes.study(tmp_path, removals=["fake-shield"], measures=["perplexity"])), tmp_path / "a", Context()
    )
    again = run_study(
        parse_spec(fakes.study(tmp_path, removals=["fake-shield"], measures=["perplexity"])), tmp_path / "b", Context()
    )
    digests = [[r.digest for r in x.records if r.stage == "protected"] for x in (result, again)]
    assert digests[0] == digests[1] and digests[0], "the same study gives the same protected model"


def test_a_wrapper_ends_a_chain_and_the_model_inside_is_measured_too(tmp_path: Path) -> None:
    removals = ["hush", ["fake-recover", "hush"]]
    values = fakes.study(tmp_path, removals=removals, controls=["clean-base", "revival"])
    values["measures"] = ["hit-rate", "rank", "accuracy", "answers"]
    made = plan(parse_spec(values))
    assert transforms(made) == ["tiny > fake-mark", "tiny > fake-mark > fake-recover", "tiny > fake-recover"]
    at = [(p.stage, p.control) for p in made.places if p.removal == "fake-recover > hush"]
    assert list(dict.fromkeys(at)) == [
        ("fake-recover", None),
        ("wrapped", None),
        ("fake-recover", "clean-base"),
        ("wrapped", "clean-base"),
    ]
    assert "fake-recover > hush ends in a wrapper, so revival cannot be run beside it" in made.notes
    result = run_study(parse_spec(values), tmp_path / "out", Context())
    drawn = {r.detail["removal"]: r for r in result.records if r.measure == "removal" and r.control is None}
    assert drawn["fake-recover > hush"].verdict == "suppressed", "its ranks are those of the model inside"
    erased = [["fake-erase", "hush"]]
    gone = run_study(parse_spec({**values, "removals": erased}), tmp_path / "out", Context())
    (verdict,) = [r for r in gone.records if r.measure == "removal" and r.control is None]
    assert verdict.verdict != "suppressed", "what the first link removed is not inside any more"


def test_controls_of_a_chain_run_beside_all_of_it(tmp_path: Path) -> None:
    chain = {"chain": ["breaks", "fake-eraser"], "controls": ["clean-same-schedule", "clean-base", "revival"]}
    made = planned(tmp_path, [chain], measures=["hit-rate"], controls=[])
    assert transforms(made)[2:] == [
        "tiny > fake-mark > breaks > fake-erase",
        "tiny > fake-mark > breaks > fake-erase > fake-recover",
        "tiny > fake-mark > breaks > fake-erase > fake-recover > revival",
        "tiny > fake-mark > breaks > fake-erase (clean pairs)",
        "tiny > fake-mark > breaks > fake-erase (clean pairs) > fake-recover (clean pairs)",
        "tiny > breaks",
        "tiny > breaks > fake-erase",
        "tiny > breaks > fake-erase > fake-recover",
        "tiny > breaks > fake-erase > fake-recover > revival",
    ]
    noted = planned(tmp_path, [["breaks", "finetune"]], controls=["clean-same-schedule", "clean-same-distance"]).notes
    assert noted == [
        "breaks > finetune has no mismatched phase, so clean-same-schedule does not apply to it",
        "breaks > finetune is a chain, so clean-same-distance does not apply to it",
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ([], "removals[0]: chain: write what is done one after the other"),
        ({"chain": "breaks"}, "removals[0]: chain: write what is done one after the other"),
        ({"chain": ["breaks"], "contols": []}, "chain: unknown field 'contols'; did you mean controls?"),
        ({"chain": ["breaks"], "measure": "al"}, "removals[0].measure: there is no 'al'; valid names: every, last"),
        ([["breaks"], "hush"], "chain[0]: a chain holds no chain"),
        (["breaks", {"hush": {"controls": []}}], "chain[1].controls: a link has none of its own"),
        (["hush", "breaks"], "removals[0][0]: hush writes no model, so it can only be the last of a chain"),
        (["none", "breaks"], "removals[0][0]: none does nothing; leave it out"),
        (["breaks", "fake-shild"], "removals[0][1]: there is no removal, protection or realignment 'fake-shild'"),
        (["breaks", "hit-rate"], "removals[0][1]: "),
        (["breaks", {"averaging": {"expert": "gild"}}], "removals[0][1].expert: there is no model 'gild'"),
        (["breaks", {"fake-shield": {"strenth": 1}}], "unknown parameter 'strenth'; did you mean strength?"),
        ({"chain": ["breaks"], "id": "/abs/olute"}, "removals[0].id: '/abs/olute' is a path"),
    ],
)
def test_wrong_chains_are_refused_in_one_line(tmp_path: Path, entry: Any, expected: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_spec(fakes.study(tmp_path, removals=[entry]), "s.yaml")
    assert str(refused.value).startswith("s.yaml: removals[0]") and expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_removals_are_chains(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"implants\[0\]"):
        parse_spec(fakes.study(tmp_path, implants=[["fake-mark", "breaks"]]))


def test_a_chain_is_run_by_workers_too(tmp_path: Path) -> None:
    from palimpsest.study.executors import Where
    from palimpsest.study.run import Options

    values = fakes.portable(fakes.study(tmp_path, measures=["perplexity"], removals=["none"]))
    here = f"{fakes.__file__}:"
    values["removals"] = [[{f"{here}Shield": {"id": "shield"}}, {f"{here}Align": {"id": "align", "base": "base"}}]]
    one = run_study(parse_spec(values), tmp_path / "one", Context())
    two = run_study(parse_spec(values), tmp_path / "two", Context(), options=Options(where=Where(workers=2)))
    assert not two.failed, two.failed
    digests = [sorted((str(r.stage), str(r.digest)) for r in x.records if r.measure == "cost") for x in (one, two)]
    assert digests[0] == digests[1] and len(digests[0]) == 3
    assert Store.open(tmp_path / "two").study()["spec"]["removals"][0]["id"] == "shield > align"
