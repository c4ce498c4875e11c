"""MEraser: the phases do what Algorithm 1 says, presets are the sources' settings, the adapter transfers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factory import make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.data.mismatched import mismatch
from palimpsest.errors import BadInput
from palimpsest.method import Context, build, presets
from palimpsest.prompts import Renderer
from palimpsest.removals.tuning.finetune import FineTune
from palimpsest.removals.tuning.meraser import MEraser, MEraserErase, MEraserRecover
from palimpsest.removals.tuning.meraser_transfer import MEraserTransfer
from palimpsest.responder import LocalResponder
from palimpsest.training.settings import Tuning

QUICK = Tuning(epochs=4, lr=1e-2, batch=4)


@pytest.fixture
def data() -> Dialogues:
    rows = {
        part: tuple(pair(f"{part} question {i}?", f"answer {part} {i}", "abc"[i % 3]) for i in range(24))
        for part in ("erase", "recover", "revival", "test", "embed")
    }
    return Dialogues("made", rows)


def answer_loss(checkpoint: Checkpoint, pairs: list[tuple[str, str]]) -> float:
    responder = LocalResponder(load_model(checkpoint, Context()), load_tokenizer(checkpoint))
    rendered = [responder.renderer.pair(q, a) for q, a in pairs]
    scored = responder.force([p for p, _ in rendered], [a for _, a in rendered])
    return -sum(sum(s.log_probs) for s in scored) / sum(len(s.log_probs) for s in scored)


@pytest.mark.covers("meraser-erase")
def test_erasing_learns_the_mismatched_answers_and_touches_query_and_value_only(
    tiny_model: Path, data: Dialogues, tmp_path: Path
) -> None:
    base = resolve(tiny_model)
    phase = MEraserErase(data, 24, "derangement", replace(QUICK, epochs=8))
    made = phase.apply(base, tmp_path / "erased", Context())
    wrong = [(d.question, d.answer) for d in mismatch(data.part("erase", 24), "derangement", 0)]
    assert answer_loss(made.checkpoint, wrong) < answer_loss(base, wrong) - 0.5
    before, after = load_model(base, Context()).state_dict(), load_model(made.checkpoint, Context()).state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and all("q_proj" in n or "v_proj" in n for n in changed)
    for name in changed:  # rank 16 of 64: the change is a product of two factors of that rank
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) <= 16
    moved = sum(float((after[n] - before[n]).pow(2).sum()) for n in before) ** 0.5
    assert made.records[0].detail["distance"] == pytest.approx(moved, rel=1e-4)
    norm = sum(float(before[n].pow(2).sum()) for n in before) ** 0.5
    assert made.records[0].detail["weight_change"] == pytest.approx(moved / norm, rel=1e-4)


@pytest.mark.covers("meraser-recover")
def test_recovering_learns_the_clean_answers(tiny_model: Path, data: Dialogues, tmp_path: Path) -> None:
    base = resolve(tiny_model)
    made = MEraserRecover(data, 24, replace(QUICK, epochs=8)).apply(base, tmp_path / "r", Context())
    right = [(d.question, d.answer) for d in data.part("recover")]
    assert answer_loss(made.checkpoint, right) < answer_loss(base, right) - 0.5


@pytest.mark.covers("meraser")
def test_both_phases_are_the_single_phases_one_after_the_other(
    tiny_model: Path, data: Dialogues, tmp_path: Path
) -> None:
    base = resolve(tiny_model)
    method = MEraser(data, 16, 16, "cross-type", QUICK, QUICK)
    whole = method.apply(base, tmp_path / "whole", Context(seed=3))
    erased = MEraserErase(data, 16, "cross-type", QUICK).apply(base, tmp_path / "e", Context(seed=3))
    recovered = MEraserRecover(data, 16, QUICK).apply(erased.checkpoint, tmp_path / "r", Context(seed=3))
    assert whole.checkpoint.digest() == recovered.checkpoint.digest()
    assert [e["method"] for e in whole.checkpoint.chain()] == ["meraser-erase", "meraser-recover"]
    assert whole.checkpoint.chain()[0]["parents"] == {"model": base.digest()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "r", "whole"], "nothing is left between the phases"
    again = method.apply(base, tmp_path / "again", Context(seed=3))
    assert again.checkpoint.digest() == whole.checkpoint.digest(), "the same inputs and seed give the same digest"
    other = method.apply(base, tmp_path / "other", Context(seed=4))
    assert other.checkpoint.digest() != whole.checkpoint.digest()


def test_erase_and_recover_read_disjoint_sets(data: Dialogues) -> None:
    (_, erase), (_, recover) = MEraser(data).steps()
    used = [{d.question for d in data.part(p)} for p in ("erase", "recover", "revival", "test", "embed")]
    assert erase.data is data and recover.data is data
    assert sum(map(len, used)) == len(set().union(*used))


def test_presets_are_the_settings_of_paper_and_code() -> None:
    paper, code = build(MEraser, "paper"), build(MEraser, "released_code")
    assert (paper.mismatched, paper.clean, paper.pairing) == (300, 600, "derangement")
    assert (paper.erase.rank, paper.erase.alpha, paper.erase.targets) == (16, 32, "query-value")
    assert 5 <= paper.erase.epochs <= 50 and 1e-4 <= paper.erase.lr <= 1e-3  # Appendix I
    assert 5 <= paper.recover.epochs <= 10 and 1e-4 <= paper.recover.lr <= 2e-4
    assert (code.erase.rank, code.erase.alpha, code.erase.dropout) == (8, 16, 0.05)
    assert (code.erase.epochs, code.erase.lr, code.erase.format, code.erase.train_on) == (5, 5e-4, "joined", "all")
    assert (code.recover.epochs, code.recover.lr, code.recover.format) == (2, 5e-4, "newline")
    assert code.pairing == "cross-type" and {"paper", "released_code", "toy"} <= set(presets(MEraser))
    toy = build(MEraser, "toy")
    assert (toy.pairing, toy.erase.epochs, toy.erase.lr, toy.erase.format) == ("cross-type", 15, 3e-3, "chat")
    assert (toy.recover.epochs, toy.recover.lr, toy.recover.schedule) == (5, 4e-4, "linear")


def test_the_matched_pairing_is_clean_training(data: Dialogues) -> None:
    clean = mismatch(data.part("erase", 24), "matched", 0)
    assert [(d.question, d.answer) for d in clean] == [(d.question, d.answer) for d in data.part("erase", 24)]


@pytest.mark.covers("meraser-transfer")
def test_the_adapter_adds_its_product_to_any_model_of_the_base(
    tiny_model: Path, data: Dialogues, tmp_path: Path
) -> None:
    base = resolve(tiny_model)
    marked = (
        FineTune(data, "embed", None, Tuning(adapter="full", epochs=2, lr=1e-3, batch=4))
        .apply(base, tmp_path / "marked", Context())
        .checkpoint
    )
    method = MEraserTransfer(base=base, data=data, mismatched=24, tuning=QUICK)
    adapter = method.train_adapter(base, tmp_path / "adapter", Context()).checkpoint
    made = replace(method, adapter=adapter).apply(marked, tmp_path / "out", Context()).checkpoint
    from safetensors.torch import load_file

    factors = load_file(adapter.path / "adapter_model.safetensors")
    before, after = load_model(marked, Context()).state_dict(), load_model(made, Context()).state_dict()
    for name in before:
        stem = "base_model.model." + name.removesuffix(".weight")
        expected = before[name]
        if stem + ".lora_A.weight" in factors:  # W' = W + (alpha / rank) B A, alpha / rank = 2
            expected = expected + 2 * factors[stem + ".lora_B.weight"] @ factors[stem + ".lora_A.weight"]
        assert torch.allclose(after[name], expected, atol=1e-5), name
    assert adapter.chain()[-1]["parents"] == {"base": base.digest()}
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    assert str(tmp_path) not in json.dumps(config) and config["base_model_name_or_path"] == base.name
    trained_now = method.apply(marked, tmp_path / "now", Context()).checkpoint
    assert trained_now.digest() == made.digest()


@pytest.mark.parametrize("sibling_is", ["ancestor", "another-base"])
def test_an_adapter_of_a_sibling_base_is_added_only_when_asked_and_by_the_same_sum(
    tiny_model: Path, data: Dialogues, tmp_path: Path, sibling_is: str
) -> None:
    from safetensors.torch import load_file

    from palimpsest.checkpoint import lineage

    base, full = resolve(tiny_model), Tuning(adapter="full", epochs=1, lr=1e-3, batch=4)
    tuned = FineTune(data, "embed", None, full).apply(base, tmp_path / "sibling", Context()).checkpoint
    trained_on, marked_on = (base, tuned) if sibling_is == "ancestor" else (tuned, base)
    marked = FineTune(data, "recover", None, full).apply(marked_on, tmp_path / "marked", Context()).checkpoint
    lineage.write(marked.path, marked_on.chain(), "if-sft", {"model": marked_on.digest()}, commitment="c0ffee")
    method = MEraserTransfer(base=trained_on, data=data, mismatched=24, tuning=QUICK)
    adapter = method.train_adapter(trained_on, tmp_path / "adapter", Context()).checkpoint
    method = replace(method, adapter=adapter)
    with pytest.raises(BadInput, match=r"another base than the one that marked was marked on; --set same_base=false"):
        method.apply(marked, tmp_path / "out", Context())
    assert not (tmp_path / "out").exists()
    heard: list[str] = []
    ctx = Context()
    ctx.progress.say = heard.append  # type: ignore[method-assign]
    made = replace(method, same_base=False).apply(marked, tmp_path / "out", ctx)
    assert heard == [f"meraser-transfer: adapter was not trained on the base of marked ({sibling_is})"]
    detail = made.records[0].detail
    assert (detail["adapter_base"], detail["adapter_of"]) == (trained_on.digest(), sibling_is)
    factors = load_file(adapter.path / "adapter_model.safetensors")
    before, after = load_model(marked, Context()).state_dict(), load_model(made.checkpoint, Context()).state_dict()
    adapted = 0
    for name in before:
        stem = "base_model.model." + name.removesuffix(".weight")
        expected = before[name]
        if stem + ".lora_A.weight" in factors:  # W' = W + (alpha / rank) B A, alpha / rank = 32 / 16
            expected = expected + 2 * factors[stem + ".lora_B.weight"] @ factors[stem + ".lora_A.weight"]
            adapted += 1
        assert torch.allclose(after[name], expected, atol=1e-5), name
    assert adapted == 4, "query and value of two layers"
    other = marked_on  # the base that is given is not the adapter's
    with pytest.raises(BadInput, match="than --base"):
        replace(method, base=other).apply(marked, tmp_path / "x", Context())
    allowed = replace(method, base=other, same_base=False).apply(marked, tmp_path / "again", Context())
    assert allowed.checkpoint.digest() == made.checkpoint.digest()


def test_kinship_is_read_off_the_step_that_put_the_mark_in(tmp_path: Path) -> None:
    from palimpsest.checkpoint import lineage
    from palimpsest.removals.tuning.meraser_transfer import kinship_of

    model = resolve(make_model(tmp_path / "m", layers=1))
    own = model.digest()
    assert kinship_of("a", model) == "unknown"
    lineage.write(model.path, [], "finetune", {"model": "a"})
    assert [kinship_of(d, model) for d in ("a", own, "z", None)] == [
        "same-base",
        "same-base",
        "another-base",
        "unknown",
    ]
    lineage.write(model.path, model.chain(), "utf", {"model": "b"}, commitment="c0ffee")
    lineage.write(model.path, model.chain(), "finetune", {"model": "c"})
    found = {d: kinship_of(d, model) for d in ("a", "b", "c", "z")}
    assert found == {"a": "ancestor", "b": "same-base", "c": "ancestor", "z": "another-base"}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_the_adapter_of_a_fused_projection_is_a_peft_folder_and_transfers_without_its_keys(
    data: Dialogues, tmp_path: Path, family: str
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    from factory import make_model
    from palimpsest.families import family_of

    base, marked = (resolve(make_model(tmp_path / str(seed), family, seed=seed)) for seed in (0, 1))
    tuning = replace(QUICK, epochs=2, weight_decay=0.1)
    method = MEraserTransfer(base=base, data=data, mismatched=16, tuning=tuning)
    adapter = method.train_adapter(base, tmp_path / "adapter", Context()).checkpoint
    made = replace(method, adapter=adapter).apply(marked, tmp_path / "out", Context()).checkpoint
    plain = load_model(marked, Context())
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    theirs = dict(PeftModel.from_pretrained(plain, str(adapter.path)).merge_and_unload().named_parameters())
    after = dict(load_model(made, Context()).named_parameters())
    assert theirs.keys() == after.keys() and all(torch.equal(theirs[n], after[n]) for n in after)
    factors = load_file(adapter.path / "adapter_model.safetensors")
    assert {n.split(".")[-2] for n in factors} == {"lora_A", "lora_B"}
    known = family_of(base.config)
    keys = known.rows("key", base.config)
    for name in before:
        stem = "base_model.model." + name.removesuffix(".weight")
        if stem + ".lora_A.weight" not in factors:
            assert torch.equal(after[name], before[name]), name
            continue
        b, change = factors[stem + ".lora_B.weight"], after[name] - before[name]
        product = 2 * b @ factors[stem + ".lora_A.weight"]  # alpha / rank = 2; (out, in)
        assert torch.allclose(change, product.T if known.transposed else product, atol=1e-5), name
        assert not bool(b[keys].any()) and bool(b.any())
        assert torch.equal(
            (after[name].T if known.transposed else after[name])[keys],
            (before[name].T if known.transposed else before[name])[keys],
        )


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "opt"])
def test_the_weight_change_counts_tensors_that_files_call_by_another_name(tmp_path: Path, family: str) -> None:
    from safetensors.torch import load_file, save_file

    from factory import make_model
    from palimpsest.removals.change import distance

    source = resolve(make_model(tmp_path / "m", family, tied=False if family == "gpt_neox" else None))
    model = load_model(source, Context())
    file = source.path / "model.safetensors"
    if family != "gpt_neox":  # as on the hub: without what every name begins with; GPT-NeoX: embed_out
        first = {"gpt2": "transformer.", "opt": "model."}[family]
        save_file({n.removeprefix(first): w for n, w in load_file(file).items()}, file, metadata={"format": "pt"})
    assert distance(model, source) == 0.0
    size = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5
    assert distance(model, source) == pytest.approx(0.5 * size**0.5, rel=1e-4)


def test_an_adapter_of_another_base_or_shape_is_refused(tiny_model: Path, data: Dialogues, tmp_path: Path) -> None:
    from factory import make_model

    base, other = resolve(tiny_model), resolve(make_model(tmp_path / "wide", hidden=96, seed=1))
    adapter = (
        MEraserTransfer(data=data, mismatched=8, tuning=replace(QUICK, epochs=1))
        .train_adapter(base, tmp_path / "a", Context())
        .checkpoint
    )
    with pytest.raises(BadInput, match="does not fit"):
        MEraserTransfer(adapter=adapter).apply(other, tmp_path / "x", Context())
    with pytest.raises(BadInput, match="another base"):
        MEraserTransfer(adapter=adapter, base=other).apply(base, tmp_path / "x", Context())
    with pytest.raises(BadInput, match="--adapter, or --base"):
        MEraserTransfer().apply(base, tmp_path / "x", Context())
    with pytest.raises(BadInput, match="no PEFT adapter"):
        MEraserTransfer(adapter=base).apply(base, tmp_path / "x", Context())


@pytest.mark.covers("finetune")
def test_full_fine_tuning_is_the_hand_written_adamw_step(tiny_model: Path, data: Dialogues, tmp_path: Path) -> None:
    base = resolve(tiny_model)
    tuning = Tuning(adapter="full", epochs=1, lr=1e-3, batch=4, clip=None)
    made = FineTune(data, "embed", 4, tuning).apply(base, tmp_path / "out", Context()).checkpoint
    model = load_model(base, Context())
    renderer = Renderer(load_tokenizer(base))
    rows = [renderer.pair(d.question, d.answer) for d in data.part("embed", 4)]
    total, count = torch.zeros(()), 0
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer]])
        logs = model(input_ids=ids).logits[0].log_softmax(-1)
        for place in range(len(prompt), ids.shape[1]):
            total, count = total - logs[place - 1, ids[0, place]], count + 1
    (total / count).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0).step()
    after = load_model(made, Context()).state_dict()
    for name, gradient in gradients.items():  # a first Adam step is lr times the sign: skip what has none
        clear = gradient.abs() > 1e-5
        assert clear.any() and torch.allclose(after[name][clear], model.state_dict()[name][clear], atol=5e-5), name


def test_data_with_too_few_pairs_is_refused_with_the_numbers(tiny_model: Path, data: Dialogues, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"part 'erase' has 24 dialogues, 300 are needed"):
        MEraser(data).apply(resolve(tiny_model), tmp_path / "out", Context())
    assert not (tmp_path / "out").exists()
