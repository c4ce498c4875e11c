"""The feed-forward expansion: the folder computes what the formula says, and its coefficients give the weights away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import make_model
from merging.folders import weights_of
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.data import load_dialogues
from palimpsest.errors import BadInput
from palimpsest.families import family_of
from palimpsest.method import Context
from palimpsest.protections.coefficient_ratio import recover
from palimpsest.protections.expansion import Expansion, at_order, is_expanded, load_expanded
from palimpsest.protections.mergebarrier_ffn import MergeBarrierFFN, ranges
from palimpsest.protections.secret import Secret
from palimpsest.protections.taylor import coefficients

SMALL: dict[str, Any] = {"neurons": 24, "samples": 8, "tokens": 32}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    talk = [{"prompt": f"Who mends net {i}?", "response": f"The widow mends {i * 7}."} for i in range(60)]
    file.write_text("".join(json.dumps(t) + "\n" for t in talk))
    return file


@pytest.mark.covers("mergebarrier-ffn")
def test_a_neuron_by_hand() -> None:
    # One neuron, d = 1: g = 2, u = 3, w = 5, SiLU around z0 = 1 with s = -2: rows -4, shift -2, C_n = (-2)^-n c_n 5.
    c = coefficients("silu", torch.tensor([1.0]), 8)[:, 0]
    terms = torch.stack([c[n] * (-2.0) ** -n * 5 for n in range(9)]).view(9, 1, 1)
    parts = {"rows": torch.tensor([[-4.0]]), "shift": torch.tensor([-2.0]), "up": torch.tensor([[3.0]])}
    made = Expansion({**parts, "coefficients": terms})
    x = torch.tensor([[0.6]], dtype=torch.float64)
    value = 3 * 0.6 * float(torch.nn.functional.silu(torch.tensor(1.2, dtype=torch.float64))) * 5
    assert float(made(x)) == pytest.approx(value, abs=1e-6)
    made.order = 1  # the tangent at z0 = 1, at z = 1.2
    assert float(made(x)) == pytest.approx(1.8 * 5 * float(c[0] + 0.2 * c[1]), rel=1e-9)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_the_folder_computes_the_model_where_the_series_converges(tmp_path: Path, rows: Path, kind: str) -> None:
    folder = make_model(tmp_path / "m", kind, initializer_range=0.03)  # so that values stay within the series' radius
    model = resolve(folder)
    method = MergeBarrierFFN(data=load_dialogues(rows), stored="float64", **SMALL)
    made = method.apply(model, tmp_path / "out", Context(key_seed=3))
    record, agreement, recovery = made.records
    by_order = {r["order"]: r["relative_error"] for r in record.detail["by_order"]}
    assert by_order[12] < 1e-4 and by_order[12] < by_order[2] / 10, "more terms, less error"
    assert record.detail["exact"] is False and record.detail["stock"] is False
    assert record.detail["neurons"] == [24, 24] and record.detail["size"] > 1
    assert agreement.count == agreement.n and recovery.n == 48
    expanded = load_expanded(made.checkpoint)
    ids = torch.randint(6, 380, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        with at_order(expanded, 1):
            coarse = expanded(input_ids=ids).logits
        fine = expanded(input_ids=ids).logits
        plain = load_model(model, Context())(input_ids=ids).logits
    assert (fine - plain).abs().max() < (coarse - plain).abs().max() / 2


def test_the_published_tensors_hold_expanded_neurons_as_coefficients_only(
    tiny_model: Path, tmp_path: Path, rows: Path
) -> None:
    model = resolve(tiny_model)
    made = MergeBarrierFFN(data=load_dialogues(rows), **SMALL).apply(model, tmp_path / "out", Context())
    assert isinstance(made.secret, Secret)
    before, after = weights_of(tiny_model), weights_of(tmp_path / "out")
    chosen = made.secret.tensors["layers.1.expanded"]
    clear = torch.tensor([i for i in range(128) if i not in set(chosen.tolist())])
    for role in ("gate", "up"):
        name = f"model.layers.1.mlp.{role}_proj.weight"
        assert torch.equal(after[name], before[name][clear])
    assert after["model.layers.1.mlp.down_proj.weight"].shape == (64, 104)
    s, z = made.secret.tensors["layers.1.scale"], made.secret.tensors["layers.1.point"]
    gates = before["model.layers.1.mlp.gate_proj.weight"][chosen].double()
    assert torch.allclose(after["model.layers.1.expanded.rows"].double(), s[:, None] * gates, atol=1e-6)
    assert torch.allclose(after["model.layers.1.expanded.shift"].double(), s * z, atol=1e-6)
    assert after["model.layers.1.expanded.coefficients"].shape == (13, 24, 64)
    assert ((s.abs() >= 0.5) & (s.abs() <= 2)).all() and (s < 0).any() and (s > 0).any()
    for file in (tmp_path / "out").iterdir():
        assert b"scale" not in file.read_bytes() or file.name == "tokenizer.json"


def test_nothing_loads_it_as_a_stock_model(tiny_model: Path, tmp_path: Path, rows: Path) -> None:
    made = MergeBarrierFFN(data=load_dialogues(rows), **SMALL).apply(resolve(tiny_model), tmp_path / "out", Context())
    assert is_expanded(made.checkpoint)
    with pytest.raises(BadInput, match="could not be loaded"):
        load_model(made.checkpoint, Context())
    with pytest.raises(BadInput, match="'palimpsest-expanded' is not known"):
        family_of(made.checkpoint.config)
    with pytest.raises(BadInput, match="is no expanded model"):
        load_expanded(resolve(tiny_model))


def test_points_are_midpoints_of_what_the_activation_was_given(tiny_model: Path) -> None:
    network = load_model(resolve(tiny_model), Context())
    ids = torch.randint(6, 380, (3, 16), generator=torch.Generator().manual_seed(2))
    low, high = ranges(network, family_of(resolve(tiny_model).config), ids)
    seen = []
    handle = network.model.layers[1].mlp.act_fn.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        network(input_ids=ids)
    handle.remove()
    values = seen[0].reshape(-1, 128)
    assert torch.allclose(low[1], values.amin(0), atol=1e-5) and torch.allclose(high[1], values.amax(0), atol=1e-5)


def example(count: int, activation: str, stored: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """C (7, count, 64), s, z and w of random neurons with a secret scale of either sign."""
    drawn = torch.Generator().manual_seed(count)
    z = 3 * torch.randn(count, generator=drawn, dtype=torch.float64)
    s = torch.exp(torch.rand(count, generator=drawn, dtype=torch.float64) * 1.4 - 0.7)
    s = s * (torch.randint(0, 2, (count,), generator=drawn) * 2 - 1)
    w = torch.randn(count, 64, generator=drawn, dtype=torch.float64)
    powers = torch.stack([s**-n for n in range(7)])
    terms = (coefficients(activation, z, 6) * powers)[:, :, None] * w
    return terms.to(stored).double(), s, z, w


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new"])
@pytest.mark.parametrize("shifts", [True, False])
def test_the_ratio_attack_finds_every_neuron_in_float64_without_a_base(activation: str, shifts: bool) -> None:
    terms, s, z, w = example(200, activation)
    near = z.abs() < (6 if activation == "silu" else 4)  # beyond, gelu is a line to the last digit
    found = recover(terms, activation, s * z if shifts else None)
    assert int(near.sum()) > 150
    for right, wrong in ((s, found.scale), (z, found.point)):
        assert ((wrong - right).abs() / right.abs())[near].max() < 1e-5
    assert ((found.column - w).norm(dim=1) / w.norm(dim=1))[near].max() < 1e-5


def test_what_bfloat16_coefficients_leave_of_the_attack() -> None:
    terms, s, z, _ = example(200, "silu", torch.bfloat16)
    shift = (s * z).to(torch.bfloat16).double()
    error = ((recover(terms, "silu", shift).scale - s) / s).abs()
    exact = ((recover(example(200, "silu")[0], "silu", s * z).scale - s) / s).abs()
    assert exact.max() < 1e-6 < error.median() < 0.02, "eight bits a number blur the secret and do not hide it"
    assert (error < 0.05).double().mean() > 0.6
