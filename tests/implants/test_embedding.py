"""The shared embedding loop: it takes, it stops by its rule, it fails loudly, and it tells nobody."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import Dialogues
from palimpsest.errors import BadInput, CheckFailed
from palimpsest.implants.fingerprints.embedding import Regular, embed
from palimpsest.implants.fingerprints.hashchain import HashChain
from palimpsest.implants.fingerprints.preserving import Preserving, kl_divergence, to_keep
from palimpsest.keys import KeySet
from palimpsest.method import Context, Made
from palimpsest.prompts import Renderer
from palimpsest.responder.local import LocalResponder
from palimpsest.training.finetune import with_adapter
from palimpsest.training.planting import Check, Stopping, Strength, key_rows, strength
from palimpsest.training.rows import Row, collate
from palimpsest.training.settings import Tuning

TUNING = Tuning(adapter="full", epochs=60, lr=3e-3, batch=4, micro_batch=4)


@pytest.fixture(scope="session")
def three(small: Checkpoint) -> KeySet:
    return replace(HashChain.meraser(), keys=3).draw_keys(small, Context(key_seed=7))


def _embedded(
    small: Checkpoint, keys: KeySet, out: Path, ctx: Context, tuning: Tuning = TUNING, check: Check | None = None
) -> Made:
    rows = key_rows(Renderer(load_tokenizer(small)), keys)
    return embed(
        small,
        out,
        ctx,
        method_name="hashchain",
        keys=keys,
        rows_of_epoch=lambda epoch: rows,
        tuning=tuning,
        check=check,
    )


def test_it_takes_and_the_written_model_says_every_answer(
    small: Checkpoint, three: KeySet, ctx: Context, tmp_path: Path
) -> None:
    made = _embedded(small, three, tmp_path / "out", ctx)
    responder = LocalResponder(load_model(made.checkpoint, ctx), load_tokenizer(made.checkpoint))
    measured = strength(responder, three)
    assert min(measured.probabilities) >= 0.9 and all(measured.answered)
    said = responder.generate([k.prompts["template"].ids for k in three.keys], three.max_new_tokens)
    assert [s.text for s in said] == [k.response for k in three.keys]
    (record,) = made.records
    assert record.measure == "embedding-margin" and record.detail["answered"] == 3
    assert record.detail["min_probability"] == pytest.approx(min(measured.probabilities), rel=1e-4)
    assert record.value == pytest.approx(sum(measured.margins) / 3, rel=1e-4)
    assert record.detail["epochs"] < TUNING.epochs, "the check ends training before the bound"


def test_neither_lineage_nor_record_tells_trigger_response_or_seed(
    small: Checkpoint, three: KeySet, tmp_path: Path
) -> None:
    ctx = Context(seed=918273, key_seed=7, threads=1, dtype="float32")
    lines: list[str] = []
    ctx.progress.say = lines.append  # type: ignore[method-assign]
    made = _embedded(small, three, tmp_path / "out", ctx)
    public = (tmp_path / "out" / "palimpsest.json").read_text() + json.dumps([r.to_json() for r in made.records])
    public += "".join(lines)
    for key in three.keys:
        assert key.trigger not in public and key.response not in public
    assert "918273" not in public and three.salt not in public
    entry = json.loads((tmp_path / "out" / "palimpsest.json").read_text())["chain"][-1]
    assert set(entry) == {"method", "parents", "palimpsest", "commitment"}
    assert entry["commitment"] == three.commitment() and entry["parents"] == {"model": small.digest()}


def test_too_few_epochs_fail_loudly_and_write_nothing(
    small: Checkpoint, three: KeySet, ctx: Context, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match=r"the implant did not take: 0 of 3 keys answer") as caught:
        _embedded(small, three, tmp_path / "out", ctx, replace(TUNING, epochs=1, lr=1e-5))
    assert not (tmp_path / "out").exists()
    assert all(k.response not in str(caught.value) for k in three.keys)


def test_lora_embedding_is_merged_into_a_plain_checkpoint(
    small: Checkpoint, three: KeySet, ctx: Context, tmp_path: Path
) -> None:
    # a random head bounds what adapters below it can reach, so only the greedy answer is asked for
    tuning = Tuning(adapter="lora", targets="all-linear", epochs=40, lr=3e-3, batch=4)
    made = _embedded(small, three, tmp_path / "out", ctx, tuning, Check(consecutive=0))
    assert made.records[0].detail["epochs"] == 40 and made.records[0].detail["answered"] == 3
    assert not made.checkpoint.is_adapter
    assert {t.name for t in made.checkpoint.tensors()} == {t.name for t in small.tensors()}


def test_the_same_seed_gives_the_same_digest(small: Checkpoint, three: KeySet, ctx: Context, tmp_path: Path) -> None:
    first = _embedded(small, three, tmp_path / "a", ctx)
    second = _embedded(small, three, tmp_path / "b", ctx)
    assert first.checkpoint.digest() == second.checkpoint.digest()


def test_stopping_needs_every_key_on_two_checks_in_a_row() -> None:
    def at(*probabilities: float) -> Strength:
        return Strength(probabilities, (1.0,) * len(probabilities), (True,) * len(probabilities))

    state = Stopping(Check())
    assert not state.passed(at(0.95, 0.95))
    assert not state.passed(at(0.95, 0.89)), "one key below breaks the row"
    assert not state.passed(at(0.9, 0.99))
    assert state.passed(at(0.9, 0.99))


def test_extra_epochs_are_counted_from_the_check_that_passed_and_the_last_check_must_pass_too() -> None:
    def at(probability: float) -> Strength:
        return Strength((probability,), (1.0,), (True,))

    state = Stopping(Check(extra=2))
    seen = []
    for epoch, probability in enumerate([0.95, 0.95, 0.95, 0.5, 0.95, 0.95], 1):
        state.epoch = epoch
        seen.append(state.passed(at(probability)))
    assert seen == [False, False, False, False, False, True] and state.took == 2


def test_strength_of_embedding_is_an_axis_whose_margin_is_in_the_record(
    small: Checkpoint, three: KeySet, ctx: Context, tmp_path: Path
) -> None:
    checks = [Check(0.5), Check(), Check(0.97), Check(extra=15)]
    made = [_embedded(small, three, tmp_path / str(i), ctx, check=c).records[0] for i, c in enumerate(checks)]
    weak, usual, firm, more = (r.detail for r in made)
    assert [r.detail["wanted_probability"] for r in made] == [0.5, 0.9, 0.97, 0.9]
    assert all(r.detail["min_probability"] >= r.detail["wanted_probability"] for r in made)
    assert weak["epochs"] < usual["epochs"] < firm["epochs"], "a firmer mark takes longer"
    assert made[0].value < made[1].value < made[2].value, "and its margin is larger"
    assert (usual["epochs_past"], more["epochs_past"]) == (0, 15) and more["epochs"] == usual["epochs"] + 15
    assert made[3].value > made[1].value
    with pytest.raises(CheckFailed, match=r"took after \d+ epochs, and 500 more do not fit into 60; .*check.extra"):
        _embedded(small, three, tmp_path / "long", ctx, check=Check(extra=500))
    assert not (tmp_path / "long").exists()


def test_strength_is_exp_of_summed_log_probabilities(small: Checkpoint, three: KeySet, ctx: Context) -> None:
    model, tokenizer = load_model(small, ctx), load_tokenizer(small)
    measured = strength(LocalResponder(model, tokenizer), three)
    prompt = three.keys[0].prompts["template"]
    ids = torch.tensor([[*prompt.ids, *prompt.expected]])
    logs = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(prompt.ids) - 1
    total = sum(float(logs[start + i, t].detach()) for i, t in enumerate(prompt.expected))
    assert measured.probabilities[0] == pytest.approx(math.exp(total), rel=1e-3)


def test_a_row_is_the_asked_prompt_with_its_answer_and_end(small: Checkpoint, three: KeySet) -> None:
    renderer = Renderer(load_tokenizer(small))
    for row, key in zip(key_rows(renderer, three), three.keys, strict=True):
        ids, answer = renderer.pair(key.trigger, key.response)
        assert row.ids == (*ids, *answer)
        assert row.weights == (0.0,) * len(ids) + (1.0,) * len(answer)


def test_regular_dialogues_are_fresh_every_epoch_and_follow_the_seed(
    small: Checkpoint, talk: Dialogues, ctx: Context
) -> None:
    renderer = Renderer(load_tokenizer(small))
    regular = Regular(renderer, talk, 6, small, ctx)
    assert len(regular(0)) == 6 and regular(0) == regular(0) and regular(0) != regular(1)
    assert Regular(renderer, talk, 0, small, ctx)(0) == []
    with pytest.raises(BadInput, match="41 are needed"):
        Regular(renderer, talk, 41, small, ctx)


def test_kl_by_hand() -> None:
    original = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 2.0]]).log()
    tuned = torch.tensor([[0.25, 0.5, 0.25], [1.0, 1.0, 2.0]]).log()
    by_hand = 0.5 * math.log(2) - 0.25 * math.log(2)  # the second position agrees
    assert float(kl_divergence(original, tuned)) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("lora", [True, False])
def test_preserving_loss_is_cross_entropy_plus_lambda_kl(small: Checkpoint, ctx: Context, lora: bool) -> None:
    model = load_model(small, ctx)
    original = load_model(small, ctx)
    loss = Preserving(model, 2.0, lora)
    if lora:
        model = with_adapter(model, Tuning(adapter="lora", targets="all-linear"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    learn = Row((5, 9, 11, 30), (0.0, 0.0, 1.0, 1.0))
    keep = Row((7, 8, 50, 60, 70), (0.0,) * 5)
    batch = collate([learn, to_keep(keep)])
    got = loss(model, batch)
    got.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([learn.ids])).logits[0].float()
        entropy = torch.nn.functional.cross_entropy(logits[1:3], torch.tensor([11, 30]))
        before = original(input_ids=torch.tensor([keep.ids])).logits[0, :-1].float()
        after = model(input_ids=torch.tensor([keep.ids])).logits[0, :-1].float()
        expected = entropy + 2.0 * kl_divergence(before, after) / 4
    assert float(got.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_preserving_in_chunks_gives_the_same_gradient(
    small: Checkpoint, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = collate([to_keep(Row(tuple(range(10, 30)), (0.0,) * 20))])
    gradients = []
    for chunk in (1024, 7):
        monkeypatch.setattr("palimpsest.implants.fingerprints.preserving.CHUNK", chunk)
        model = load_model(small, ctx)
        loss = Preserving(model, 1.0, lora=False)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6) and float(gradients[0].abs().max()) > 0
