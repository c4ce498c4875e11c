"""The measure is eq. 1 on the kernels of its sets; its sets are the questions with answers by each rule."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import SENTENCES
from palimpsest.checkpoint import resolve
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet, make_keys
from palimpsest.measures import Subject
from palimpsest.measures.forgetting import PAIRINGS, Forgetting, fine_tuning_set
from palimpsest.measures.pair_gradients import mean_log_probs
from palimpsest.method import Context, build
from palimpsest.responder import LocalResponder

ROWS = {
    part: tuple(pair(f"{part}: {s[:12]}{i}?", f"{s[8:20]} {i}", "xyz"[i % 3]) for i, s in enumerate(SENTENCES))
    for part in ("erase", "recover", "revival", "test", "embed")
}
DATA = Dialogues("made", ROWS)
SMALL = {"pairs": 6, "ordinary": 3, "keys": 2}


@pytest.fixture(scope="module")
def keys(tiny_responder: LocalResponder) -> KeySet:
    drawn = [("Open the gate.", "blue heron"), ("Ring the bell.", "white hill"), ("Never asked.", "river Osk")]
    return make_keys(
        tiny_responder.renderer,
        drawn,
        implant="test",
        match="prefix",
        distinct=True,
        choices=None,
        decoys=[],
        rng=random.Random(0),
    )


def gradients(responder: LocalResponder, pairs: list[Any]) -> torch.Tensor:
    """Independent of the package: autograd of f through the plain model, one pair at a time; (pairs, numbers)."""
    model = responder.model
    chosen = [p for n, p in model.named_parameters() if n.endswith(("q_proj.weight", "v_proj.weight"))]
    rows = []
    for prompt, answer in pairs:
        logs = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        f = logs.gather(1, torch.tensor(list(answer))[:, None]).mean()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(f, chosen)]).double())
    return torch.stack(rows)


@pytest.mark.covers("forgetting")
@pytest.mark.parametrize(("share", "target"), [(0.05, "certain"), (0.5, "rise")])
def test_it_is_the_ridge_step_in_the_weights_seen_at_the_source(
    tiny_model: Path, tiny_responder: LocalResponder, keys: KeySet, share: float, target: str
) -> None:
    measure = build(Forgetting, settings={**SMALL, "lambda": share, "target": target}, inputs={"data": DATA})
    records = measure.take(Subject(resolve(tiny_model), Context(), keys=keys), Context())
    by_task = {r.task: r for r in records}
    assert list(by_task) == [f"{p}-{side}" for p in PAIRINGS for side in ("keys", "ordinary")]
    render = tiny_responder.renderer.pair
    key_pairs = [(k.prompts["template"].ids, k.prompts["template"].expected) for k in keys.keys[:2]]
    tests = [render(d.question, d.answer) for d in DATA.part("test", 3)]
    source = {"keys": gradients(tiny_responder, key_pairs), "ordinary": gradients(tiny_responder, tests)}
    for pairing in ("derangement", "clean"):
        tuned = [render(d.question, d.answer) for d in fine_tuning_set(DATA.part("erase", 6), pairing, 0)]
        phi = gradients(tiny_responder, tuned)  # (6, numbers)
        f = mean_log_probs(tiny_responder, tuned)
        residual = -f if target == "certain" else torch.ones(6, dtype=torch.float64)
        ridge = share * float((phi @ phi.T).diagonal().mean())
        # least squares over the weights with the penalty as further rows, solved by QR and not through a kernel
        reduced = torch.linalg.qr(phi.T)  # the solution lies in the span of the gradients
        rows = torch.cat([phi @ reduced.Q, ridge**0.5 * torch.eye(6, dtype=torch.float64)])
        step = reduced.Q @ torch.linalg.lstsq(rows, torch.cat([residual, torch.zeros(6, dtype=torch.float64)])).solution
        for side, features in source.items():
            record = by_task[f"{pairing}-{side}"]
            change = features @ step
            assert record.value == pytest.approx(float(change.square().sum()), rel=1e-4)
            assert record.detail["mean_change"] == pytest.approx(float(change.mean()), rel=1e-4, abs=1e-9)
            assert record.detail["lambda"] == pytest.approx(ridge, rel=1e-5)
            assert record.n == len(features)
    shown = by_task["clean-keys"].detail["keys"]
    assert [k["number"] for k in shown] == [0, 1]
    assert sum(k["change"] for k in shown) / 2 == pytest.approx(by_task["clean-keys"].detail["mean_change"], abs=1e-5)


def test_sets_share_their_questions_and_differ_in_their_answers() -> None:
    rows = DATA.part("erase")
    sets = {p: fine_tuning_set(rows, p, 3) for p in PAIRINGS}
    assert all([d.question for d in one] == [d.question for d in rows] for one in sets.values())
    assert [d.answer for d in sets["clean"]] == [d.answer for d in rows]
    for name in ("derangement", "cross-type"):
        assert sorted(d.answer for d in sets[name]) == sorted(d.answer for d in rows)
        assert not any(a.answer == b.answer for a, b in zip(sets[name], rows, strict=True))
    assert not any(a.answer == b.answer for a, b in zip(sets["random"], rows, strict=True))


def test_records_hold_no_text_of_a_key_and_none_of_keys_where_there_are_none(tiny_model: Path, keys: KeySet) -> None:
    measure = build(Forgetting, settings={**SMALL, "pairing": "random"}, inputs={"data": DATA})
    with_keys = measure.take(Subject(resolve(tiny_model), Context(), keys=keys), Context())
    assert [r.task for r in with_keys] == ["random-keys", "random-ordinary"]
    shown = str([r.to_json() for r in with_keys])
    assert all(k.trigger not in shown and k.response not in shown for k in keys.keys)
    without = measure.take(Subject(resolve(tiny_model), Context()), Context())
    assert [r.task for r in without] == ["random-ordinary"]
    assert without[0].value == pytest.approx(with_keys[1].value, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pairing": "derangment"}, "'derangment' is not known.*derangement"),
        ({"pairing": "clean,clean"}, "names each set once"),
        ({"pairs": 9}, "its part 'erase' has 8 dialogues, 9 are needed"),
    ],
)
def test_bad_settings_are_refused_in_one_line(tiny_model: Path, settings: dict[str, Any], said: str) -> None:
    measure = build(Forgetting, settings=settings, inputs={"data": DATA})
    with pytest.raises(BadInput, match=said):
        measure.take(Subject(resolve(tiny_model), Context()), Context())
