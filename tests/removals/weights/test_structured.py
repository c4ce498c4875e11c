"""Structured pruning: what goes together, how it is chosen, and that zeros compute what a smaller model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from factory import FAMILIES, copy_of, make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, store_probe
from palimpsest.cli import app
from palimpsest.errors import BadInput
from palimpsest.families import family_of
from palimpsest.method import Context, build
from palimpsest.removals.weights.choosing import choose, kept_of, local_count
from palimpsest.removals.weights.coupling import Group, Part, coupled, layers_between
from palimpsest.removals.weights.prune_l1 import PruneL1
from palimpsest.removals.weights.prune_l2 import PruneL2
from palimpsest.removals.weights.prune_random import PruneRandom
from palimpsest.removals.weights.rewriting import read_tensor
from palimpsest.removals.weights.scoring import magnitude_scores
from palimpsest.removals.weights.structured import blocks_of, zero

IDS = torch.tensor([[7, 31, 200, 45, 3, 90, 12, 60]])


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Llama with four heads of 16 in two KV groups, two layers, 128 channels."""
    folder = tmp_path_factory.mktemp("models") / "grouped"
    return resolve(make_model(folder, num_key_value_heads=2, head_dim=16, attention_bias=True, mlp_bias=True))


def weights(model: Checkpoint) -> dict[str, torch.Tensor]:
    return {t.name: read_tensor(t).float() for t in model.tensors()}


def logits(model: Checkpoint) -> torch.Tensor:
    with torch.no_grad():
        return load_model(model, Context(), "float32")(input_ids=IDS).logits


# -- groups ------------------------------------------------------------------------------------------------


def test_a_unit_is_a_kv_group_with_all_queries_that_read_it(grouped: Checkpoint) -> None:
    names = {t.name for t in grouped.tensors()}
    heads, channels = coupled(grouped.config, 1, names)
    blocks = blocks_of([heads, channels], [np.array([1]), np.array([5, 9])])
    where = "model.layers.1."
    said = {n.removeprefix(where): [(b.out, b.into) for b in found] for n, found in blocks.items()}
    second_half, kv_half = list(range(32, 64)), list(range(16, 32))
    for role, rows in (("q", second_half), ("k", kv_half), ("v", kv_half)):
        for tensor in ("weight", "bias"):
            ((out, into),) = said.pop(f"self_attn.{role}_proj.{tensor}")
            assert out.tolist() == rows and into is None
    ((out, into),) = said.pop("self_attn.o_proj.weight")
    assert out is None and into.tolist() == second_half
    for role in ("gate", "up"):
        for tensor in ("weight", "bias"):
            assert said.pop(f"mlp.{role}_proj.{tensor}")[0][0].tolist() == [5, 9]
    assert said.pop("mlp.down_proj.weight")[0][1].tolist() == [5, 9]
    assert not said, "the biases behind output and down belong to no head and no channel"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_zeroing_a_group_takes_just_its_contribution_away(family: str, tmp_path: Path) -> None:
    """Whatever the layout: without a unit, a layer's output differs by that unit's alone, computed through hooks."""
    model = resolve(make_model(tmp_path / "m", family))
    network, reference = load_model(model, Context()), load_model(model, Context())
    known = family_of(model.config)
    groups = coupled(model.config, 0, {n for n, _ in network.named_parameters()})
    for group, role in zip(groups, ("output", "down"), strict=True):
        unit = np.array([group.units - 1])
        width = group.parts[-1].places.size
        share = torch.ones(width)
        share[torch.from_numpy(group.parts[-1].places[unit].reshape(-1))] = 0
        parameters = dict(network.named_parameters())
        for name, blocks in blocks_of([group], [unit]).items():
            assert name in parameters
            zero(parameters[name].data, blocks, known.transposed)
        # the reference keeps its weights; what goes into the projection behind the unit is silenced instead
        module = reference.get_submodule(known.layers)[0].get_submodule(known.name(role))
        module.register_forward_pre_hook(lambda _, inputs, share=share: (inputs[0] * share,))
        with torch.no_grad():
            assert torch.allclose(network(input_ids=IDS).logits, reference(input_ids=IDS).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "ratio", "changes"),
    [
        ("llama", 0.5, {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": True}),
        ("qwen2", 0.5, {}),
        ("phi3", 0.5, {"head_dim": 16}),
        ("phi", 0.5, {}),
        ("gemma3_text", 0.5, {}),
        ("gpt2", 0.2, {}),  # heads of 4 do not go at 20 %
        ("gpt_neox", 0.2, {}),
        ("opt", 0.2, {}),
    ],
)
def test_zeroed_and_compacted_models_give_the_same_logits(
    family: str, ratio: float, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = resolve(make_model(tmp_path / "m", family, **changes))
    method = PruneL1(ratio=ratio, start=0.0, end=1.0)
    zeroed = method.apply(model, tmp_path / "zeroed", Context())
    small = build(PruneL1, None, {"ratio": ratio, "start": 0, "end": 1, "compact": True}).apply(
        model, tmp_path / "small", Context()
    )
    record, other = zeroed.records[0], small.records[0]
    assert record.count and record.count == other.count
    sizes = [sum(t.count for t in m.checkpoint.tensors()) for m in (zeroed, small)]
    assert sizes[0] == record.n and sizes[0] - sizes[1] == record.count
    assert torch.allclose(logits(zeroed.checkpoint), logits(small.checkpoint), atol=1e-5)
    assert not torch.allclose(logits(zeroed.checkpoint), logits(model), atol=1e-2)
    heads, channels = record.detail["heads"], record.detail["channels"]
    assert heads["removed"] == (heads["of"] // 2 if ratio == 0.5 else 0)
    assert channels["removed"] == (channels["of"] - 2 * int(channels["of"] / 2 * (1 - ratio)))
    shapes = {t.name: t.shape for t in model.tensors()}
    assert {t.name: t.shape for t in zeroed.checkpoint.tensors()} == shapes


def test_compacting_is_refused_where_no_configuration_says_it(tmp_path: Path) -> None:
    whole = {"start": 0.0, "end": 1.0, "compact": True}
    neox = resolve(make_model(tmp_path / "n", "gpt_neox"))
    with pytest.raises(BadInput, match="gpt_neox cannot express num_attention_heads 2"):
        PruneL1(ratio=0.5, **whole).apply(neox, tmp_path / "o", Context())
    llama = resolve(make_model(tmp_path / "l"))
    with pytest.raises(BadInput, match=r"cannot express num_attention_heads 3.*not a multiple"):
        PruneL1(ratio=0.25, **whole).apply(llama, tmp_path / "o", Context())
    with pytest.raises(BadInput, match="layer 0 keeps 4 and layer 1 2 of 4 KV groups"):
        PruneL1(ratio=0.5, compact=True).apply(llama, tmp_path / "o", Context())
    with pytest.raises(BadInput, match="units=coupled"):
        PruneL1(units="columns", compact=True).apply(llama, tmp_path / "o", Context())
    olmo2 = resolve(make_model(tmp_path / "o2", "olmo2"))
    with pytest.raises(BadInput, match="normalises queries over all heads"):
        PruneL1(ratio=0.5, **whole).apply(olmo2, tmp_path / "o", Context())
    assert not (tmp_path / "o").exists()


# -- scores and budgets ------------------------------------------------------------------------------------


@pytest.mark.covers("prune-l1")
@pytest.mark.covers("prune-l2")
@pytest.mark.parametrize("power", [1, 2])
def test_scores_by_hand(power: int) -> None:
    """Two units of two rows in `a` (4, 2) and two columns in `b` (2, 4)."""
    a = torch.tensor([[1.0, -1.0], [1.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
    b = torch.tensor([[1.0, 1.0, -2.0, 0.0], [1.0, -1.0, 0.0, 3.0]])
    places = np.arange(4).reshape(2, 2)
    group = Group(0, "heads", (Part("a", "out", places), Part("b", "in", places)), size=2)
    scores = magnitude_scores(group, {"a": a, "b": b}.__getitem__, power)
    # power 1: unit 0 (4 + 4) / 2, unit 1 (3.5 + 5) / 2; power 2: (4 + 4) / 2, (9.25 + 13) / 2
    assert scores.tolist() == ([4.0, 4.25] if power == 1 else [4.0, 11.125])
    assert choose([group], [scores], 0.5, "local", "x")[0].tolist() == [0]


def test_the_local_budget_rounds_as_llm_pruner_does() -> None:
    def group(units: int, size: int) -> Group:
        return Group(0, "heads", (Part("a", "out", np.zeros((units, size), dtype=np.int64)),), size)

    assert [local_count(group(4, 64), r) for r in (0.05, 0.2, 0.25, 0.5)] == [0, 0, 1, 2]
    assert [local_count(group(11008, 1), r) for r in (0.05, 0.2)] == [11008 - 10457, 11008 - 8806]
    assert kept_of(10, 0.9) == 1, "10 * (1 - 0.9) is a hair below 1"


def test_the_global_budget_is_one_pool() -> None:
    groups = [Group(0, "channels", (Part("a", "out", np.arange(n)[:, None]),)) for n in (3, 3)]
    scores = [torch.tensor([1.0, 5.0, 2.0]), torch.tensor([2.0, 9.0, 8.0])]
    # 6 - int(6 * 0.6) = 3; the third smallest is 2.0, and all at or under it go
    assert [u.tolist() for u in choose(groups, scores, 0.4, "global", "x")] == [[0, 2], [0]]
    # 6 - int(6 * 0.7) = 2: the second smallest is 2.0 as well, and both that equal it go
    assert [u.tolist() for u in choose(groups, scores, 0.3, "global", "x")] == [[0, 2], [0]]
    with pytest.raises(BadInput, match="leaves no channel of the feed-forward in layer 0"):
        choose(groups, [scores[0], scores[1] + 10], 0.5, "global", "x")


def test_the_layer_range_is_half_open_and_relative() -> None:
    def config(layers: int) -> dict[str, Any]:
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 9, "intermediate_size": 8}
        return {"model_type": "llama", "num_hidden_layers": layers, **sizes}

    assert layers_between(config(32), 3 / 32, 31 / 32, "x") == range(3, 31)
    assert layers_between(config(64), 3 / 32, 31 / 32, "x") == range(6, 62)
    assert layers_between(config(4), 3 / 32, 31 / 32, "x") == range(1, 4)
    with pytest.raises(BadInput, match="no layer of 2"):
        layers_between(config(2), 0.6, 0.9, "x")


def test_the_units_with_the_smallest_sums_go_and_nothing_else_changes(grouped: Checkpoint, tmp_path: Path) -> None:
    """Recomputed from the tensors alone, without the code under test."""
    made = PruneL2(ratio=0.5, start=0.0, end=1.0).apply(grouped, tmp_path / "o", Context())
    before, after = weights(grouped), weights(made.checkpoint)
    for layer in range(2):
        w = {n.removeprefix(f"model.layers.{layer}."): t for n, t in before.items()}
        sums = []
        for g in range(2):
            parts = [
                w["self_attn.q_proj.weight"][32 * g : 32 * g + 32],
                w["self_attn.o_proj.weight"][:, 32 * g : 32 * g + 32],
            ]
            parts += [w[f"self_attn.{r}_proj.weight"][16 * g : 16 * g + 16] for r in "kv"]
            sums.append(sum(float(p.pow(2).sum()) for p in parts) / 4)
        gone = int(np.argmin(sums))
        where = f"model.layers.{layer}.self_attn."
        assert not after[where + "q_proj.weight"][32 * gone : 32 * gone + 32].any()
        assert not after[where + "o_proj.weight"][:, 32 * gone : 32 * gone + 32].any()
        assert not after[where + "v_proj.bias"][16 * gone : 16 * gone + 16].any()
        kept = slice(32 * (1 - gone), 32 * (1 - gone) + 32)
        assert torch.equal(after[where + "q_proj.weight"][kept], before[where + "q_proj.weight"][kept])
        score = w["mlp.gate_proj.weight"].pow(2).sum(1) + w["mlp.up_proj.weight"].pow(2).sum(1)
        score += w["mlp.down_proj.weight"].pow(2).sum(0)
        dead = set(np.flatnonzero(~after[f"model.layers.{layer}.mlp.up_proj.weight"].any(1).numpy()).tolist())
        assert dead == set(score.argsort()[:64].tolist())
    same = [n for n in before if "layers" not in n or "norm" in n or n.endswith(("o_proj.bias", "down_proj.bias"))]
    assert len(same) == 11 and all(torch.equal(before[n], after[n]) for n in same)
    (record,) = made.records
    moved = sum(float((after[n] - before[n]).pow(2).sum()) for n in before) ** 0.5
    norm = sum(float(t.pow(2).sum()) for t in before.values()) ** 0.5
    assert record.detail["weight_change"] == pytest.approx(moved / norm, rel=1e-6)
    assert record.count == sum(int((after[n] != before[n]).sum()) for n in before)
    assert record.n == sum(t.numel() for t in before.values()) and record.value == record.count / record.n
    assert record.detail["heads"] == {"removed": 4, "of": 8}
    assert made.checkpoint.chain()[-1] == {
        **made.checkpoint.chain()[-1],
        "method": "prune-l2",
        "parents": {"model": grouped.digest()},
    }


def test_appendix_h_zeroes_whole_columns_by_their_norm_over_their_matrixs_mean(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", num_key_value_heads=2, head_dim=16)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"] *= 0.01  # a small matrix, which normalising protects
    tensors["model.layers.0.mlp.up_proj.weight"][:, 7] *= 1e-3
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    model = resolve(source)
    for cls, power in ((PruneL1, 1), (PruneL2, 2)):
        made = build(cls, "appendix_h").apply(model, tmp_path / f"o{power}", Context())
        after = weights(made.checkpoint)
        roles = [f"self_attn.{r}_proj" for r in "qkv"] + [f"mlp.{r}_proj" for r in ("gate", "up", "down")]
        scores = {}
        for layer in range(2):
            for role in roles:
                name = f"model.layers.{layer}.{role}.weight"
                norms = tensors[name].abs().pow(power).sum(0)
                scores |= {(name, j): v for j, v in enumerate((norms / norms.mean()).tolist())}
        number = len(scores) - int(len(scores) * 0.95 + 1e-9)
        gone = sorted(scores, key=lambda at: scores[at])[:number]
        assert ("model.layers.0.mlp.up_proj.weight", 7) in gone
        found = {(n, j) for n in {n for n, _ in scores} for j in np.flatnonzero(~after[n].any(0).numpy()).tolist()}
        assert found == set(gone)
        assert made.records[0].detail["columns"] == {"removed": number, "of": 2 * (5 * 64 + 128)}


def test_columns_of_a_fused_projection_are_its_roles(tmp_path: Path) -> None:
    model = resolve(make_model(tmp_path / "m", "gpt2"))
    made = build(PruneL1, "appendix_h", {"ratio": 0.3}).apply(model, tmp_path / "o", Context())
    fused = weights(made.checkpoint)["transformer.h.0.attn.c_attn.weight"]  # (in, out): [query | key | value]
    dead = [set(np.flatnonzero(~part.any(1).numpy()).tolist()) for part in fused.split(64, dim=1)]
    assert dead[0] and dead[1] and dead[0] != dead[1], "a column of the queries goes without that of the keys"
    before, after = weights(model), weights(made.checkpoint)
    assert made.records[0].count == sum(int((after[n] != before[n]).sum()) for n in before)


# -- random ------------------------------------------------------------------------------------------------


@pytest.mark.covers("prune-random")
def test_random_units_follow_the_seed_and_come_from_all_places(grouped: Checkpoint, tmp_path: Path) -> None:
    def gone(seed: int) -> list[int]:
        made = PruneRandom(start=0.0, end=0.5).apply(grouped, tmp_path / str(seed), Context(seed=seed))
        assert made.records[0].detail["channels"] == {"removed": 26, "of": 128}
        assert made.records[0].detail["heads"] == {"removed": 0, "of": 4}, "20 % of two KV groups are none"
        up = weights(made.checkpoint)["model.layers.0.mlp.up_proj.weight"]
        shutil.rmtree(tmp_path / str(seed))
        return np.flatnonzero(~up.any(1).numpy()).tolist()

    assert gone(1) == gone(1) and gone(1) != gone(2)
    often = np.bincount(np.concatenate([gone(s) for s in range(40)]), minlength=128)
    assert often.sum() == 40 * 26 and often.max() < 22 and (often > 0).all()  # 8.1 expected of each


def test_appendix_hs_random_pruning_is_a_coin_for_every_weight(grouped: Checkpoint, tmp_path: Path) -> None:
    made = build(PruneRandom, "appendix_h").apply(grouped, tmp_path / "o", Context(seed=3))
    before, after = weights(grouped), weights(made.checkpoint)
    pruned = [n for n in before if "_proj.weight" in n]
    for name, tensor in after.items():
        if name in pruned:
            share = float((tensor == 0).float().mean())
            assert abs(share - 0.5) < 5 * 0.5 / tensor.numel() ** 0.5
            assert torch.equal(tensor[tensor != 0], before[name][tensor != 0]), "what stays is not rescaled"
        else:
            assert torch.equal(tensor, before[name])
    first, second = after[pruned[0]] == 0, after[pruned[0].replace("layers.0", "layers.1")] == 0
    assert not torch.equal(first, second), "each tensor has its own draws"
    assert made.records[0].count == sum(int((after[n] == 0).sum()) for n in pruned)


# -- what is refused, and what is said -----------------------------------------------------------------------


def test_a_ratio_that_leaves_nothing_is_bad_input_and_one_that_removes_nothing_is_said(
    grouped: Checkpoint, tmp_path: Path
) -> None:
    for cls in (PruneL1, PruneL2, PruneRandom):
        with pytest.raises(BadInput, match=r"ratio 1\.0 leaves no head in layer 1 \(of 2\)"):
            cls(ratio=1.0).apply(grouped, tmp_path / "o", Context())
        with pytest.raises(BadInput, match="out of range"):
            build(cls, None, {"ratio": 1.5})
    assert not (tmp_path / "o").exists()
    with pytest.raises(BadInput, match="leaves no weight"):
        PruneRandom(ratio=1.0, units="weights").apply(grouped, tmp_path / "o", Context())
    made = PruneL1(ratio=0.0).apply(grouped, tmp_path / "o", Context())
    (record,) = made.records
    assert record.count == 0 and "removes nothing" in record.detail["remark"]
    assert torch.equal(logits(made.checkpoint), logits(grouped))


def test_an_unknown_architecture_and_quantised_weights_are_one_line(tmp_path: Path, tiny_model: Path) -> None:
    for field, value, message in (
        ("model_type", "mamba", "architecture 'mamba' is not known"),
        ("quantization_config", {"quant_method": "awq"}, "is quantised"),
    ):
        spoiled = copy_of(tiny_model, tmp_path / field)
        config = json.loads((spoiled / "config.json").read_text())
        (spoiled / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(BadInput, match=message):
            PruneL1().apply(resolve(spoiled), tmp_path / "o", Context())


def test_weights_that_are_not_finite_and_stale_probe_values_do_no_harm(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m")
    model = resolve(source)
    store_probe(load_model(model, Context()), model)
    made = PruneL1(ratio=0.5, start=0.0, end=1.0).apply(model, tmp_path / "o", Context())
    assert logits(made.checkpoint).isfinite().all(), "the probe of the source would refuse the pruned model"
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="scores of layer 1 are not finite"):
        PruneL1().apply(resolve(source), tmp_path / "p", Context())


def test_shards_and_half_precision_stay_as_they_are(tmp_path: Path) -> None:
    model = resolve(make_model(tmp_path / "m", dtype="bfloat16", shards=2))
    made = PruneL1(ratio=0.5).apply(model, tmp_path / "o", Context())
    assert {t.dtype for t in made.checkpoint.tensors()} == {"BF16"}
    before, after = weights(model), weights(made.checkpoint)
    assert all(torch.equal(after[n][after[n] != 0], before[n][after[n] != 0]) for n in before)
    again = PruneL1(ratio=0.5).apply(model, tmp_path / "p", Context())
    assert again.checkpoint.digest() == made.checkpoint.digest()


def test_from_the_command_line(grouped: Checkpoint, tmp_path: Path) -> None:
    def run(*args: str) -> Any:
        words = [
            "remove",
            *args,
            "--model",
            str(grouped.path),
            "--out",
            str(tmp_path / "o"),
            "--json",
            "--threads",
            "1",
        ]
        return CliRunner().invoke(app, words)

    refused = run("prune-l1", "--set", "ratio=1")
    assert refused.exit_code == 2 and "leaves no head" in refused.stderr and not (tmp_path / "o").exists()
    assert "no layer of 2" in run("prune-random", "--set", "start=0.9").stderr
    assert run("prune-l2", "--set", "ratio=2").exit_code == 2
    done = run("prune-l1", "--preset", "llm_pruner", "--set", "ratio=0.5")
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)["records"]
    assert record["measure"] == "pruning" and record["task"] == "prune-l1" and len(record["digest"]) == 64
    assert record["detail"]["heads"] == {"removed": 2, "of": 4} and record["detail"]["layers"] == 1
