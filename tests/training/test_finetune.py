"""Fine-tuning: adapters alone are trained and merge into the same model; full training learns."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import FAMILIES, make_model
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model, write_model
from palimpsest.errors import BadInput, PalimpsestError
from palimpsest.families import FAMILIES as KNOWN
from palimpsest.method import Context
from palimpsest.training.finetune import Stopwatch, merged, tune, with_adapter
from palimpsest.training.precision import autocast_dtype, bf16_is_faster
from palimpsest.training.rows import Row
from palimpsest.training.settings import Tuning

PROBE = torch.arange(3, 60)[None, :]  # (1, time)
CTX = Context(dtype="float32")


def rows_of(count: int, seed: int = 0) -> list[Row]:
    """Random rows of 12 tokens, all of them trained."""
    rng = random.Random(seed)
    return [Row(tuple(rng.randrange(6, 400) for _ in range(12)), (1.0,) * 12) for _ in range(count)]


def logits(model: Any) -> torch.Tensor:
    """Logits of the probe: (1, time, vocabulary)."""
    with torch.inference_mode():
        return model.eval()(input_ids=PROBE).logits  # type: ignore[no-any-return]


def model_at(folder: Path) -> Any:
    """The model of a folder, in float32."""
    return load_model(resolve(folder), Context())


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_the_adapter_alone_and_merges_into_the_same_model(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path / "m", family)
    model = model_at(folder)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    start = logits(model)
    tuning = Tuning(rank=4, alpha=8, epochs=2, lr=5e-3, batch=4)
    adapted, log = tune(model, rows_of(12), tuning, CTX)
    assert log.steps == 6 and log.tokens == 2 * 12 * 12
    names = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert names and all("lora_" in n for n in names)
    inner = dict(adapted.get_base_model().named_parameters())
    for name, old in before.items():
        head, _, tail = name.rpartition(".")
        now = inner[name] if name in inner else inner[f"{head}.base_layer.{tail}"]
        assert torch.equal(now, old), name
    after = logits(adapted)
    assert not torch.allclose(after, start, atol=1e-3)
    plain = merged(adapted)
    torch.testing.assert_close(logits(plain), after, atol=1e-4, rtol=1e-4)
    changed = {n for n, p in plain.named_parameters() if not torch.equal(p, before[n])}
    wanted = KNOWN[family].targets(tuning.targets)
    assert changed and all(n.split(".")[-2] in wanted for n in changed)
    assert all(p.requires_grad for p in plain.parameters())


@pytest.mark.parametrize("count", [8, 12, 40])
def test_steps_hold_whatever_the_number_of_rows(tiny_model: Path, count: int) -> None:
    tuning = Tuning(rank=2, epochs=50, steps=5, lr=1e-3, batch=4)
    _, log = tune(model_at(tiny_model), rows_of(count), tuning, CTX)
    assert log.steps == 5 and log.tokens == 5 * 4 * 12
    seen: list[int] = []
    tune(model_at(tiny_model), rows_of(count), tuning, CTX, epoch_done=lambda epoch: seen.append(epoch))
    assert seen == list(range(1, 5 // (count // 4) + 1)), "only whole epochs are told"


def test_a_merged_model_is_written_as_a_whole_model(tmp_path: Path, tiny_model: Path) -> None:
    source = resolve(tiny_model)
    adapted, _ = tune(model_at(tiny_model), rows_of(8), Tuning(rank=4, epochs=1), CTX)
    plain = merged(adapted)
    written = write_model(plain, source, tmp_path / "out", "example", {})
    assert not written.is_adapter and {t.name for t in written.tensors()} == {t.name for t in source.tensors()}
    assert torch.equal(logits(model_at(tmp_path / "out")), logits(plain))


def test_a_fresh_adapter_changes_nothing(tiny_model: Path) -> None:
    model = model_at(tiny_model)
    start = logits(model)
    assert torch.equal(logits(with_adapter(model, Tuning(rank=4))), start)


def test_the_update_is_alpha_over_rank_times_b_a(tiny_model: Path) -> None:
    model = model_at(tiny_model)
    old = model.model.layers[1].self_attn.v_proj.weight.detach().clone()  # (out, in)
    adapted, _ = tune(model, rows_of(8), Tuning(rank=4, alpha=6, epochs=1, lr=1e-2), CTX)
    layer = adapted.get_base_model().model.layers[1].self_attn.v_proj
    a, b = (getattr(layer, f"lora_{n}")["default"].weight.detach().clone() for n in "AB")  # (4, in), (out, 4)
    plain = merged(adapted)
    torch.testing.assert_close(plain.model.layers[1].self_attn.v_proj.weight, old + 6 / 4 * b @ a)


def test_a_merge_that_is_not_the_adapter_is_found(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, _ = tune(model_at(tiny_model), rows_of(8), Tuning(rank=4, epochs=1, lr=1e-2), CTX)
    untouched = model_at(tiny_model)
    monkeypatch.setattr(type(adapted.base_model), "merge_and_unload", lambda self: untouched)
    with pytest.raises(PalimpsestError, match="does not answer like the model with its adapter"):
        merged(adapted)


def test_full_training_reduces_the_loss_and_needs_no_merge(tiny_model: Path) -> None:
    model = model_at(tiny_model)
    before = copy.deepcopy(model.state_dict())
    tuned, log = tune(model, rows_of(16), Tuning(adapter="full", epochs=30, lr=3e-3, batch=8), CTX)
    assert tuned is model and merged(tuned) is model
    assert log.losses[-1][1] < 0.2 * log.losses[0][1]
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_model: Path) -> None:
    def run(seed: int) -> torch.Tensor:
        tuning = Tuning(rank=4, dropout=0.1, epochs=1, lr=1e-2)
        return logits(merged(tune(model_at(tiny_model), rows_of(16), tuning, Context(seed=seed, dtype="float32"))[0]))

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_a_killed_fine_tuning_goes_on_to_the_bit(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palimpsest.training import finetune

    real = finetune.train_steps
    monkeypatch.setattr(finetune, "train_steps", lambda *a, **o: real(*a, **o, state_seconds=0.0))
    tuning = Tuning(rank=4, dropout=0.1, epochs=3, lr=1e-2, batch=4)

    class Killed(BaseException):
        pass

    def die(epoch: int) -> None:
        if epoch == 2:
            raise Killed

    ctx = Context(dtype="float32", scratch=tmp_path)
    whole, log = tune(model_at(tiny_model), rows_of(12), tuning, CTX)
    with pytest.raises(Killed):
        tune(model_at(tiny_model), rows_of(12), tuning, ctx, what="the erasing", epoch_done=die)
    assert [p.name for p in tmp_path.iterdir()] == ["the-erasing.state"]
    epochs: list[int] = []
    again, second = tune(
        model_at(tiny_model), rows_of(12), tuning, ctx, what="the erasing", epoch_done=lambda e: epochs.append(e)
    )
    assert torch.equal(logits(merged(again)), logits(merged(whole)))
    assert epochs == [2, 3] and second.steps == log.steps == 9 and list(tmp_path.iterdir()) == []


def test_fresh_rows_each_epoch_and_a_stop_after_one(tiny_model: Path) -> None:
    asked: list[int] = []

    def rows(epoch: int) -> list[Row]:
        asked.append(epoch)
        return rows_of(8, seed=epoch)

    seen: list[int] = []

    def done(epoch: int) -> bool:
        seen.append(epoch)
        return epoch == 2

    _, log = tune(model_at(tiny_model), rows, Tuning(rank=4, epochs=5, batch=4), CTX, epoch_done=done)
    assert seen == [1, 2] and log.steps == 4 and set(asked) == {0, 1}


@pytest.mark.parametrize(("batch", "micro"), [(8, 32), (8, 4), (8, 3), (12, 8), (7, 2)])
def test_a_step_reads_the_rows_it_is_told_to_however_they_are_accumulated(
    tiny_model: Path, batch: int, micro: int
) -> None:
    tuning = Tuning(rank=4, epochs=1, batch=batch, micro_batch=micro)
    widths: list[int] = []

    def loss_of(model: Any, made: Any) -> torch.Tensor:
        from palimpsest.training.loop import batch_loss

        widths.append(len(made.input_ids))
        return batch_loss(model, made)

    _, log = tune(model_at(tiny_model), rows_of(batch * 3), tuning, CTX, loss_of=loss_of)
    assert max(widths) <= micro or micro >= batch
    assert batch <= sum(widths) / log.steps < batch + micro


def test_no_epochs_train_nothing(tiny_model: Path) -> None:
    model = model_at(tiny_model)
    start = logits(model)
    tuned, log = tune(model, rows_of(4), Tuning(epochs=0), CTX)
    assert log.steps == 0 and torch.equal(logits(merged(tuned)), start)


FUSED = [name for name in FAMILIES if KNOWN[name].fused]


def fused_weights(model: Any, name: str) -> dict[str, torch.Tensor]:
    """Weights (out, in) of the projections that hold query, key and value."""
    family = KNOWN[name]
    found = {n: p.detach() for n, p in model.named_parameters() if n.endswith(f"{family.query}.weight")}
    assert found
    return {n: p.T if family.transposed else p for n, p in found.items()}


def still_factors(adapted: Any, name: str) -> list[torch.Tensor]:
    """Rows of every B that belong to keys; the others must not be zero."""
    family, config = KNOWN[name], adapted.get_base_model().config.to_dict()
    found = []
    for parameter_name, b in adapted.named_parameters():
        if ".lora_B." in parameter_name:
            for role in ("query", "value"):
                assert bool((b[family.rows(role, config)] != 0).any()), (role, parameter_name)  # type: ignore[arg-type]
            found.append(b.detach()[family.rows("key", config)])
    assert len(found) == 2
    return found


@pytest.mark.parametrize("name", FUSED)
def test_an_adapter_on_a_fused_projection_moves_queries_and_values_and_never_a_key(tmp_path: Path, name: str) -> None:
    model = model_at(make_model(tmp_path / "m", name))
    before = {n: w.clone() for n, w in fused_weights(model, name).items()}
    tuning = Tuning(rank=4, alpha=8, dropout=0.1, epochs=3, lr=1e-2, batch=4, weight_decay=0.1)
    adapted, _ = tune(model, rows_of(12), tuning, CTX)
    assert all(torch.equal(rows, torch.zeros_like(rows)) for rows in still_factors(adapted, name))
    family, config = KNOWN[name], model.config.to_dict()
    for parameter_name, after in fused_weights(merged(adapted), name).items():
        change = after - before[parameter_name]
        assert torch.equal(change[family.rows("key", config)], torch.zeros(32 if name == "phi3" else 64, 64))
        for role in ("query", "value"):
            assert bool((change[family.rows(role, config)].abs().amax(dim=1) > 0).all())  # type: ignore[arg-type]


def test_a_fused_adapter_is_two_separate_ones_with_one_a(tmp_path: Path) -> None:
    """Phi-3 is Llama with its projections joined: the same weights apart give the same logits and gradients."""
    from transformers import AutoModelForCausalLM

    from factory import make_config
    from palimpsest.training.loop import batch_loss
    from palimpsest.training.rows import collate

    joined = model_at(make_model(tmp_path / "m", "phi3"))
    config = joined.config.to_dict()
    apart = AutoModelForCausalLM.from_config(
        make_config("llama", 2, 64, 400, None, 256, num_key_value_heads=2, rms_norm_eps=config["rms_norm_eps"])
    )
    family, state = KNOWN["phi3"], joined.state_dict()
    for name in list(state):
        for whole, parts in (("qkv_proj", ("query", "key", "value")), ("gate_up_proj", ("gate", "up"))):
            if whole in name:
                weight = state.pop(name)
                for role in parts:
                    part = KNOWN["llama"].name(role).rpartition(".")[2]  # type: ignore[arg-type]
                    state[name.replace(whole, part)] = weight[family.rows(role, config)]  # type: ignore[arg-type]
    apart.load_state_dict(state)
    torch.testing.assert_close(logits(apart), logits(joined), atol=1e-5, rtol=1e-4)
    tuning, batch = Tuning(rank=4, alpha=8), collate(rows_of(4))
    joined, apart = with_adapter(joined, tuning), with_adapter(apart, tuning)
    rows = {role: family.rows(role, config) for role in ("query", "value")}  # type: ignore[arg-type]
    pairs = []
    for layer in range(2):
        one = joined.get_base_model().model.layers[layer].self_attn.qkv_proj
        two = {r: apart.get_base_model().model.layers[layer].self_attn.get_submodule(f"{r[0]}_proj") for r in rows}
        with torch.no_grad():
            for role, chosen in rows.items():
                one.lora_B["default"].weight[chosen] = 0.1 * torch.randn(len(chosen), 4)
                two[role].lora_B["default"].weight.copy_(one.lora_B["default"].weight[chosen])
                two[role].lora_A["default"].weight.copy_(one.lora_A["default"].weight)
        pairs.append((one, two))
    for model in (joined, apart):
        batch_loss(model, batch).backward()
    for one, two in pairs:
        for role, chosen in rows.items():
            torch.testing.assert_close(
                one.lora_B["default"].weight.grad[chosen], two[role].lora_B["default"].weight.grad, atol=1e-6, rtol=1e-4
            )
        both = sum(two[role].lora_A["default"].weight.grad for role in rows)
        torch.testing.assert_close(one.lora_A["default"].weight.grad, both, atol=1e-6, rtol=1e-4)
        assert bool((both != 0).any())


def test_keys_stay_still_when_a_killed_fine_tuning_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from palimpsest.training import finetune

    real = finetune.train_steps
    monkeypatch.setattr(finetune, "train_steps", lambda *a, **o: real(*a, **o, state_seconds=0.0))
    folder, tuning = make_model(tmp_path / "m", "gpt_neox"), Tuning(rank=4, epochs=3, lr=1e-2, batch=4)
    ctx = Context(dtype="float32", scratch=tmp_path / "scratch")

    def die(epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    whole, _ = tune(model_at(folder), rows_of(8), tuning, CTX)
    with pytest.raises(KeyboardInterrupt):
        tune(model_at(folder), rows_of(8), tuning, ctx, epoch_done=die)
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == ["training.state"]
    again, _ = tune(model_at(folder), rows_of(8), tuning, ctx)
    assert all(torch.equal(rows, torch.zeros_like(rows)) for rows in still_factors(again, "gpt_neox"))
    assert torch.equal(logits(merged(again)), logits(merged(whole)))


@pytest.mark.parametrize("name", FUSED)
def test_the_gradient_of_key_rows_is_zero_before_anything_averages_or_clips_it(tmp_path: Path, name: str) -> None:
    from palimpsest.training.loop import batch_loss
    from palimpsest.training.rows import collate

    adapted = with_adapter(model_at(make_model(tmp_path / "m", name)), Tuning(rank=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch_loss(adapted, collate(rows_of(4))).backward()
    family, config = KNOWN[name], adapted.get_base_model().config.to_dict()
    gradients = [p.grad for n, p in adapted.named_parameters() if ".lora_B." in n]
    assert len(gradients) == 2
    for gradient in gradients:
        assert gradient is not None and not bool(gradient[family.rows("key", config)].any())
        assert bool(gradient[family.rows("query", config)].any()) and bool(gradient[family.rows("value", config)].any())
    assert not [n for n, _ in adapted.named_buffers() if n in adapted.state_dict()], "the mask is in no file"


def test_precision_is_chosen_by_name_or_probe_and_the_probe_is_kept(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palimpsest.training import precision

    model = model_at(tiny_model)
    assert autocast_dtype(model, Context(dtype="float32")) is None
    assert autocast_dtype(model, Context(dtype="bfloat16")) is torch.bfloat16
    assert autocast_dtype(model.to(torch.bfloat16), Context(dtype="auto")) is None
    with pytest.raises(BadInput, match="none of auto, float32, bfloat16"):
        autocast_dtype(model_at(tiny_model), Context(dtype="float8"))
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    times = iter([1.0, 2.0])  # bf16, then fp32
    monkeypatch.setattr(precision, "_seconds", lambda *_: next(times))
    assert bf16_is_faster("cpu", 64) and bf16_is_faster("cpu", 64)  # the second answer is the kept one
    monkeypatch.setattr(precision, "_seconds", lambda device, width, dtype: 0.9 if dtype == torch.bfloat16 else 1.0)
    assert not bf16_is_faster("cpu", 128)


def test_the_probe_leaves_the_runs_random_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))  # or a first run would not be like the second
    state = torch.get_rng_state()
    bf16_is_faster("cpu", 32)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stopwatch_runs() -> None:
    assert 0.0 <= Stopwatch().seconds < 5.0
