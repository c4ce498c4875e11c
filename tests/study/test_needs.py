"""What a study will take: every step's memory and all kept checkpoints, less what is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory import make_model
from palimpsest import machine
from palimpsest.errors import BadInput
from palimpsest.machine import Memory
from palimpsest.method import Context
from palimpsest.preflight.jobs import model_bytes
from palimpsest.study.graph import plan
from palimpsest.study.needs import check_needs, needs_of, root_of
from palimpsest.study.spec import parse_spec
from palimpsest.study.steps import Plan
from palimpsest.study.store import Store

SPEC = {
    "models": ["toy"],
    "implants": [{"hashchain": {"preset": "toy"}}],
    "removals": ["none", {"meraser": {"preset": "toy"}}, "meraser-transfer"],
    "negatives": ["clean-base", "unrelated-model"],
    "measures": ["hit-rate"],
}


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(parse_spec(SPEC))


def test_every_kept_checkpoint_counts_once(planned: Plan) -> None:
    needs = needs_of(planned)
    toy = planned.models["toy"]
    transforms = [s for s in planned.steps.values() if s.kind == "transform"]
    (adapter,) = [s for s in planned.steps.values() if s.kind == "adapter"]
    assert root_of(planned, transforms[-1]) is toy
    kept, weights = len(transforms) * model_bytes(toy), 4 * 1_049_728
    assert kept + 3 * weights < needs.disk < kept + 4 * weights, "with the state of a full fine-tune"
    trained = [e.what for e, job in needs.work if job is not None]
    assert [w for w in trained if w.startswith("hashchain, all weights")] and adapter.kind == "adapter"
    assert sum(w.startswith("meraser-transfer") for w in trained) == 1, (
        "the adapter is trained, adding it trains nothing"
    )
    assert needs.largest is not None and needs.largest.total == max(e.total for e, _ in needs.work)


def test_what_is_done_takes_nothing(planned: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for id in planned.steps:
        store.path(id).mkdir(parents=True)
        (store.path(id) / "record.json").write_text(json.dumps({"status": "done"}))
    needs = needs_of(planned, "cpu", store)
    assert needs.disk == 0 and not needs.work and needs.largest is None


def test_a_study_that_cannot_fit_is_refused(planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_needs(planned, tmp_path, Context())
    monkeypatch.setattr(machine, "disk", lambda path: (1, 1 << 20))
    with pytest.raises(BadInput, match="are needed on that disk"):
        check_needs(planned, tmp_path, Context())
    monkeypatch.setattr(machine, "memory", lambda: Memory(1 << 20, 1 << 20))
    with pytest.raises(BadInput, match="alone take"):
        check_needs(planned, tmp_path, Context())


def test_an_unrelated_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = make_model(tmp_path / "other")
    made = plan(parse_spec({**SPEC, "unrelated": str(other), "removals": ["none"]}))
    with pytest.raises(BadInput, match="unrelated unrelated: has another tokenizer"):
        check_needs(made, tmp_path, Context())


@pytest.mark.parametrize(
    ("removal", "said"),
    [
        ({"gri": {"keywords": False, "instruction": False}}, "gri: both stages are off"),
        ({"cleangen": {"reference": "other"}}, "cleangen"),
    ],
)
def test_a_wrapper_that_cannot_stand_around_the_model_is_refused(
    removal: dict[str, Any], said: str, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other")
    models = ["toy", {"id": "other", "path": str(other)}]
    spec = {**SPEC, "models": models, "on": ["toy"], "removals": ["none", removal], "negatives": ["clean-base"]}
    made = plan(parse_spec(spec))
    with pytest.raises(BadInput, match=said):
        needs_of(made)


@pytest.mark.parametrize(
    ("removal", "said"),
    [
        ({"meraser": {"mismatched": 100000}}, r"meraser-erase: data toy: its part 'erase' has \d+ dialogues"),
        ({"finetune": {"part": "recover", "samples": 100000}}, r"finetune: data toy: its part 'recover' has \d+"),
        ({"finetune": {"part": "recovr"}}, r"finetune: part 'recovr' is not valid; did you mean recover"),
    ],
)
def test_rows_that_the_data_does_not_have_are_refused(
    removal: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real methods
    with pytest.raises(BadInput, match=f"s.yaml: {said}"):
        needs_of(plan(parse_spec({**SPEC, "removals": [removal], "negatives": []}, "s.yaml")))
