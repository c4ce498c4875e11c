"""The Anchor-Guided Attack against an independent reading of the paper's formulas, and what it does to the function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from factory import make_model
from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.realignments.aga import AnchorGuidedAttack, attacked, drawn_to
from palimpsest.realignments.distance import relative_distance
from palimpsest.realignments.joint import Joint
from palimpsest.realignments.reading import Stored
from realignments.protected import CTX, case


def ridge(w: np.ndarray, target: np.ndarray) -> np.ndarray:
    """T of |W T - target|^2 + 1e-8 |T|^2, by the stacked least-squares problem; W (hidden, d_h)."""
    size = w.shape[1]
    rows = np.vstack([w, np.sqrt(1e-8) * np.eye(size)])
    return np.linalg.lstsq(rows, np.vstack([target, np.zeros((size, target.shape[1]))]), rcond=None)[0]


def test_a_head_of_one_dimension_by_hand() -> None:
    # W = (2, 0)^T, W_base = (1, 1)^T: T = <W, W_base> / |W|^2 = 1/2
    t = drawn_to(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]]), ridge=0.0)
    assert float(t) == pytest.approx(0.5)


@pytest.mark.covers("aga")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_each_head_and_matrix_is_drawn_to_the_base_on_its_own(family: str, tmp_path: Path) -> None:
    at = case(tmp_path, family, components=["value-output", "neurons"])
    mine, anchor = Stored(at.protected), Stored(at.base)
    first, base = mine.layer(0), anchor.layer(0)
    made = AnchorGuidedAttack(base=at.base).apply(at.protected, tmp_path / "made", CTX)
    written = Stored(made.checkpoint).layer(0)
    sizes = mine.sizes
    for role, count in (("query", sizes.groups * sizes.shared), ("key", sizes.groups), ("value", sizes.groups)):
        for head in range(count):
            rows = slice(head * sizes.head, (head + 1) * sizes.head)
            w, target = first.weights[role][rows].double().numpy(), base.weights[role][rows].double().numpy()  # type: ignore[index]
            t = ridge(w.T, target.T)
            assert np.allclose(written.weights[role][rows].numpy(), t.T @ w, atol=2e-5)  # type: ignore[index]
            if role in first.biases:
                bias = first.biases[role][rows].double().numpy()  # type: ignore[index]
                assert np.allclose(written.biases[role][rows].numpy(), t.T @ bias, atol=2e-5)  # type: ignore[index]
    columns = slice(0, sizes.head)
    w, target = (x.weights["output"][:, columns].double().numpy() for x in (first, base))
    assert np.allclose(written.weights["output"][:, columns].numpy(), w @ ridge(w, target), atol=2e-5)
    gate = "gate" if mine.family.gate else "up"
    a, b = (x.weights[gate].double().numpy() for x in (base, first))  # type: ignore[index]
    cosines = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    order = linear_sum_assignment(-cosines)[1]
    assert torch.equal(written.weights["down"], first.weights["down"][:, order])
    assert torch.equal(written.weights["up"], first.weights["up"][order])


def test_it_changes_the_function_and_says_by_how_much_where_joint_keeps_it(tmp_path: Path) -> None:
    at = case(tmp_path, "llama", components=["value-output", "query-key", "neurons"])
    drawn = AnchorGuidedAttack(base=at.base).apply(at.protected, tmp_path / "aga", CTX).records[0]
    joint = Joint(base=at.base).apply(at.protected, tmp_path / "joint", CTX).records[0]
    assert drawn.detail["function"]["relative_error"] > 1e-2 > 1e-4 > joint.detail["function"]["relative_error"]
    assert drawn.value is not None and drawn.value < drawn.detail["distance_before"]
    nearest = relative_distance(at.tuned, at.base).parts
    assert drawn.detail["by_role"]["value"][1] < nearest["value"]  # nearer than the true expert: its skill is shrunk


def test_it_draws_even_an_unprotected_model_towards_the_base(tmp_path: Path) -> None:
    at = case(tmp_path, "llama", components=["neurons"])
    made, order = attacked(Stored(at.tuned).layer(0), Stored(at.base).layer(0), Stored(at.base).sizes)
    before, base = Stored(at.tuned).layer(0), Stored(at.base).layer(0)
    assert made.distances(base)["query"] < before.distances(base)["query"]
    assert torch.equal(order, torch.arange(len(order)))


def test_without_an_anchor_or_with_another_shape_it_is_refused(tmp_path: Path) -> None:
    at = case(tmp_path, "llama", components=["neurons"])
    with pytest.raises(BadInput, match="needs the public base"):
        AnchorGuidedAttack().apply(at.protected, tmp_path / "never", CTX)
    other = Checkpoint(make_model(tmp_path / "other", "opt"), "other")
    with pytest.raises(BadInput, match="is a opt model"):
        AnchorGuidedAttack(base=other).apply(at.protected, tmp_path / "never", CTX)
