"""The terms by hand: a layer small enough to work out, and sums over tokens one at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from factory import make_model
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.measures.intrinsic import stored
from palimpsest.measures.intrinsic.invariants import last_layers, layer_terms, opened
from palimpsest.measures.intrinsic.terms import Norm, as_published, cosine, match, pearson, repeated, turned, unit
from palimpsest.measures.intrinsic.tokens import picks, shared_rows


def test_match_and_turned_of_one_rotary_pair() -> None:
    q = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])  # token 0 is 1 + 2i, token 1 is 3
    k = torch.tensor([[[0.0, 1.0]], [[2.0, -1.0]]])  # i, 2 - i
    assert match(q, k).tolist() == [[2.0, 0.0], [0.0, 6.0]]  # Re(conj(q) k): (1 - 2i) i = 2 + i, (1 - 2i)(2 - i) = -5i
    assert turned(q, k, 2).tolist() == [[1.0, -5.0], [3.0, -3.0]]


def test_the_score_at_a_distance_is_cosine_times_match_plus_sine_times_turned() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(3, 1, 2), torch.randn(3, 1, 2)
    angle = 0.7
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float32)
    score = q[:, 0] @ (k[:, 0] @ turn.T).T  # keys turned by the angle between the two positions
    expected = np.cos(angle) * match(q, k) - np.sin(angle) * turned(q, k, 2)
    assert torch.allclose(score, expected, atol=1e-6)


def test_queries_of_a_group_meet_its_key() -> None:
    torch.manual_seed(1)
    q, k = torch.randn(2, 4, 6), torch.randn(2, 2, 6)
    by_hand = sum(q[:, h] @ k[:, h // 2].T for h in range(4))
    assert torch.allclose(match(q, k), by_hand, atol=1e-5)
    halves = sum(q[:, h, :2] @ k[:, h // 2, 2:4].T - q[:, h, 2:4] @ k[:, h // 2, :2].T for h in range(4))
    assert torch.allclose(turned(q, k, 4), halves, atol=1e-5)


def test_norms_are_those_of_torch() -> None:
    torch.manual_seed(2)
    x, weight, bias = torch.randn(5, 8), torch.randn(8), torch.randn(8)
    assert torch.allclose(Norm("layer", weight, bias)(x), torch.layer_norm(x, (8,), weight, bias), atol=1e-4)
    assert torch.allclose(Norm("layer-bare")(x), torch.layer_norm(x, (8,)), atol=1e-4)
    assert torch.allclose(Norm("rms", weight)(x), torch.rms_norm(x, (8,), weight), atol=1e-4)
    assert torch.allclose(Norm("rms-plus-one", weight)(x), torch.rms_norm(x, (8,), 1 + weight), atol=1e-4)
    assert unit(torch.zeros(1, 4), False).tolist() == [[0, 0, 0, 0]]


def test_correlation_and_cosine() -> None:
    assert pearson(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[2.0, 4.0], [6.0, 10.0]])) == pytest.approx(1)
    a, b = np.array([1.0, 2, 3, 5]), np.array([2.0, -1, 0, 4])
    assert pearson(torch.tensor(a), torch.tensor(b)) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert pearson(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])) == 0
    assert cosine(3, 4, 9) == 0.5
    assert cosine(1, 0, 4) == 0


def test_terms_of_a_llama_layer_are_the_layers_own_functions(tmp_path: Path) -> None:
    """By the model of transformers: its projections and norms applied to each token's embedding."""
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / "m", "qwen2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    rows = np.array([7, 30, 200])
    with opened([resolve(folder)]) as (read,), torch.no_grad():
        found = layer_terms(read, 1, rows)
        layer = model.model.layers[1]
        e = model.model.embed_tokens.weight[rows]
        x = layer.input_layernorm(e)
        heads = 4
        q = layer.self_attn.q_proj(x).view(3, heads, 16)
        k = layer.self_attn.k_proj(x).view(3, 2, 16).repeat_interleave(2, 1)
        v = layer.self_attn.v_proj(x).view(3, 2, 16).repeat_interleave(2, 1)
        out = layer.self_attn.o_proj(v.flatten(1))
        y = layer.post_attention_layernorm(e)
        inner = layer.mlp.down_proj(layer.mlp.gate_proj(y) * layer.mlp.up_proj(y))
        directions = e / e.pow(2).mean(-1, keepdim=True).sqrt() / float(e.pow(2).mean().sqrt())
    expected = {
        "match": torch.einsum("ahd,bhd->ab", q, k),
        "turned": torch.einsum("ahd,bhd->ab", q[..., :8], k[..., 8:])
        - torch.einsum("ahd,bhd->ab", q[..., 8:], k[..., :8]),
        "value": out @ directions.T,
        "inner": inner @ directions.T,
    }
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        assert torch.allclose(found[name].double(), term, rtol=1e-3, atol=1e-3 * float(term.abs().max())), name


def test_published_terms_multiply_raw_weights() -> None:
    torch.manual_seed(3)
    e = torch.randn(4, 6)
    q, k, v = (torch.randn(8, 6) for _ in "qkv")
    o, inner, down = torch.randn(6, 8), torch.randn(10, 6), torch.randn(6, 10)
    found = as_published(e, q, k, v, o, inner, down)
    assert torch.allclose(found["match"], e @ q.T @ k @ e.T, atol=1e-4)
    assert torch.allclose(found["value"], e @ v.T @ o.T @ e.T, atol=1e-4)
    assert torch.allclose(found["inner"], e @ inner.T @ down.T @ e.T, atol=1e-4)
    assert repeated(torch.arange(4.0)[:, None], 2, 4)[:, 0].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("llama", "gpt2", "gpt_neox", "phi3"):
        folder = make_model(tmp_path / family, family)
        with opened([resolve(folder)]) as (model,):
            monkeypatch.setattr(stored, "BLOCK", 1 << 24)
            whole = layer_terms(model, 0, np.arange(40))
            monkeypatch.setattr(stored, "BLOCK", 700)
            pieces = layer_terms(model, 0, np.arange(40))
        for name, term in whole.items():
            assert torch.allclose(pieces[name], term, rtol=1e-3, atol=1e-4 * float(term.abs().max())), (family, name)


def test_tokens_are_matched_by_what_they_spell(tmp_path: Path) -> None:
    first = make_model(tmp_path / "a")
    second = make_model(tmp_path / "b")
    file = second / "tokenizer.json"
    said = json.loads(file.read_text())
    said["model"]["vocab"]["ze"], moved = 5000, said["model"]["vocab"].get("a")
    file.write_text(json.dumps(said))
    models = [resolve(first), resolve(second)]
    rows = shared_rows(models, [400, 400])
    assert (rows[0] == rows[1]).all()
    assert moved in rows[0]
    assert 1 not in rows[0], "special tokens are left out"
    swapped = json.loads(file.read_text())
    vocabulary = swapped["model"]["vocab"]
    one, two = sorted(vocabulary, key=lambda t: vocabulary[t])[50:52]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(swapped))
    rows = shared_rows(models, [400, 400])
    assert len(rows[0]) == len(rows[1])
    assert (rows[0] != rows[1]).sum() == 2
    (second / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"b: has no tokenizer\.json"):
        shared_rows(models, [400, 400])


def test_choices_of_tokens() -> None:
    assert picks(10, 3, "rare").tolist() == [7, 8, 9]
    assert picks(10, 3, "frequent").tolist() == [0, 1, 2]
    assert picks(10, 3, "spread").tolist() == [0, 3, 6]
    assert picks(3, 9, "rare").tolist() == [0, 1, 2]


def test_layers_are_counted_from_the_end(tmp_path: Path) -> None:
    models = [resolve(make_model(tmp_path / f"{n}", layers=n)) for n in (2, 3)]
    with opened(models) as read:
        assert last_layers(read, 2) == [(0, 1), (1, 2)]
        with pytest.raises(BadInput, match="different numbers of layers"):
            last_layers(read, 0)
