"""MergeBarrier's attention part: energies and flips by hand, the reflection against its definition, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from factory import make_model
from merging.folders import weights_of
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.protections.mergebarrier import MergeBarrier, flips, pair_energies, reflection
from protections.conftest import Models


@pytest.mark.covers("mergebarrier")
def test_energies_and_flips_of_a_head_of_two_pairs() -> None:
    # One group of two query heads, a head of 4: pair 0 is rows 0 and 2, pair 1 is rows 1 and 3.
    query = torch.tensor(
        [[[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [2.0, 0.0]]]]
    )
    key = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [0.0, 1.0], [4.0, 0.0]]])
    # Rows' squares: query heads 1 4 9 0 and 1 2 0 4, keys 4 1 1 16.
    energy = pair_energies(query, key, 2)
    assert energy.tolist() == [[(1 + 9) + (1 + 0) + (4 + 1), (4 + 0) + (2 + 4) + (1 + 16)]] == [[16.0, 27.0]]
    assert flips(energy, 0.5).tolist() == [[1.0, -1.0]]
    assert flips(energy, 0.0).tolist() == [[1.0, 1.0]] and flips(energy, 1.0).tolist() == [[-1.0, -1.0]]
    assert flips(torch.tensor([[3.0, 3.0, 1.0]]), 1 / 3).tolist() == [[-1.0, 1.0, 1.0]], "of equals the first"


def test_the_written_rows_are_negated_and_no_other(models: Models, tmp_path: Path) -> None:
    expert = resolve(models.expert("llama"))  # 4 query heads of 16 dimensions, 2 groups
    MergeBarrier(k=0.25).apply(expert, tmp_path / "out", Context())
    before, after = weights_of(expert.path), weights_of(tmp_path / "out")
    for layer in range(2):
        query, key = (before[f"model.layers.{layer}.self_attn.{r}_proj.weight"].double() for r in "qk")
        for group in range(2):
            energy = torch.zeros(8, dtype=torch.float64)
            heads = [query[16 * h : 16 * h + 16] for h in (2 * group, 2 * group + 1)] + [
                key[16 * group : 16 * group + 16]
            ]
            for rows in heads:
                for pair in range(8):
                    energy[pair] += rows[pair].square().sum() + rows[pair + 8].square().sum()
            chosen = set(energy.argsort(descending=True)[:2].tolist())
            for role, places in (("q", (2 * group, 2 * group + 1)), ("k", (group,))):
                old, new = (w[f"model.layers.{layer}.self_attn.{role}_proj.weight"] for w in (before, after))
                for head, row in itertools.product(places, range(16)):
                    sign = -1 if row % 8 in chosen else 1
                    assert torch.equal(new[16 * head + row], sign * old[16 * head + row])
    assert all(torch.equal(before[n], after[n]) for n in before if "q_proj" not in n and "k_proj" not in n)


def test_no_other_pair_flips_with_as_many_pairs_go_further() -> None:
    drawn = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 2, 8, 5, generator=drawn), torch.randn(1, 8, 5, generator=drawn)

    def distance(signs: torch.Tensor) -> float:  # ||(P - 1) W_q||^2 + ||(P - 1) W_k||^2
        rows = torch.cat([signs, signs])[:, None]
        return float(((rows - 1) * query[0]).square().sum() + ((rows - 1) * key[0]).square().sum())

    chosen = flips(pair_energies(query, key, 4), 0.5)[0].float()
    others = [
        torch.tensor([-1.0 if i in pairs else 1.0 for i in range(4)]) for pairs in itertools.combinations(range(4), 2)
    ]
    assert distance(chosen) == pytest.approx(max(distance(o) for o in others))


def test_the_reflection_negates_the_strongest_directions_and_is_orthogonal() -> None:
    drawn = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 3, 6, 9, generator=drawn), torch.randn(2, 6, 9, generator=drawn)
    found = reflection(query, key, 1 / 3)
    eye = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    assert torch.allclose(found @ found.transpose(1, 2), eye) and torch.allclose(found, found.transpose(1, 2))
    for group in range(2):
        gram = sum(
            (query[group, h].double() @ query[group, h].double().T for h in range(3)),
            key[group].double() @ key[group].double().T,
        )
        _, vectors = torch.linalg.eigh(gram)
        for number in range(6):
            sign = -1.0 if number >= 4 else 1.0  # two of six, energies rising
            assert torch.allclose(found[group] @ vectors[:, number], sign * vectors[:, number])
        scores = (found[group] @ query[group, 0].double()).T @ (found[group] @ key[group].double())
        assert torch.allclose(scores, query[group, 0].double().T @ key[group].double()), "products stay"


def test_what_is_not_legal_is_refused_with_the_reason(models: Models, tmp_path: Path) -> None:
    for kind in ("llama", "gpt_neox"):
        with pytest.raises(BadInput, match="mixes rotary pairs changes its function; use --set form=pairs"):
            MergeBarrier.literal().apply(resolve(models.expert(kind)), tmp_path / kind, Context())
    with pytest.raises(BadInput, match="has no rotary positions"):
        MergeBarrier(form="pairs").apply(resolve(models.expert("gpt2")), tmp_path / "gpt2", Context())
    normed = make_model(tmp_path / "phi", "phi", qk_layernorm=True)
    with pytest.raises(BadInput, match="takes their mean away"):
        MergeBarrier().apply(resolve(normed), tmp_path / "p", Context())
    assert [p.name for p in tmp_path.iterdir()] == ["phi"], "nothing was written"


def test_the_literal_form_is_what_auto_takes_without_rotary_positions(models: Models, tmp_path: Path) -> None:
    expert = resolve(models.expert("gpt2"))
    first = MergeBarrier.literal().apply(expert, tmp_path / "a", Context())
    second = MergeBarrier().apply(expert, tmp_path / "b", Context())
    assert first.records[0].detail["form"] == "literal"
    assert first.checkpoint.digest() == second.checkpoint.digest()
