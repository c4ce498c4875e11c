"""CKA against centring matrices written out; what leaves it alone; what few prompts do to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.measures.intrinsic import cka as module
from palimpsest.measures.intrinsic.cka import chance, cka, median_width


def written_out(x: torch.Tensor, y: torch.Tensor, kernel: str) -> float:
    """tr(K H L H) / sqrt(tr(K H K H) tr(L H L H)) with the matrices themselves, in numpy."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    grams = []
    for t in (x.double().numpy(), y.double().numpy()):
        gram = t @ t.T
        if kernel == "rbf":
            squared = np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram
            apart = squared[~np.eye(n, dtype=bool)]
            gram = np.exp(-squared / (2 * np.median(apart)))
        grams.append(h @ gram @ h)
    k, kernel_l = grams
    return float((k * kernel_l).sum() / np.sqrt((k * k).sum() * (kernel_l * kernel_l).sum()))


def unbiased_by_terms(x: torch.Tensor, y: torch.Tensor) -> float:
    """HSIC_1 as a U-statistic over ordered quadruples of different prompts, for a handful of them."""
    from itertools import permutations

    k, kernel_l = (t.double() @ t.double().T for t in (x, y))

    def hsic(a: torch.Tensor, b: torch.Tensor) -> float:
        terms = [a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q]) for i, j, q, r in permutations(range(len(a)), 4)]
        return float(sum(terms) / len(terms))

    return hsic(k, kernel_l) / (hsic(k, k) * hsic(kernel_l, kernel_l)) ** 0.5


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(40, 7)
    return x, x @ torch.randn(7, 12) + torch.randn(40, 12)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_cka_is_that_of_the_centred_kernels(pair: tuple[torch.Tensor, torch.Tensor], kernel: str) -> None:
    assert cka(*pair, kernel) == pytest.approx(written_out(*pair, kernel), abs=1e-10)
    assert cka(pair[0], pair[0], kernel) == pytest.approx(1)


def test_unbiased_cka_is_the_u_statistic() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(7, 3), torch.randn(7, 4)
    y[:, 0] += x[:, 0]
    assert cka(x, y, unbiased=True) == pytest.approx(unbiased_by_terms(x, y), abs=1e-10)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_permuting_rotating_shifting_and_rescaling_change_nothing(
    pair: tuple[torch.Tensor, torch.Tensor], kernel: str, unbiased: bool
) -> None:
    x, y = pair[0].double(), pair[1].double()
    before = cka(x, y, kernel, unbiased)
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    for changed in (y[:, torch.randperm(12)], y @ rotation, 7.5 * y, y + torch.randn(12), -y):
        assert cka(x, changed, kernel, unbiased) == pytest.approx(before, abs=1e-9)
    each_its_own = y * torch.linspace(0.1, 3, 12)
    assert cka(x, each_its_own, kernel, unbiased) != pytest.approx(before, abs=1e-3)


def test_blocks_change_nothing(pair: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    before = [cka(*pair, kernel, unbiased) for kernel in ("linear", "rbf") for unbiased in (False, True)]
    monkeypatch.setattr(module, "BLOCK", 7)
    after = [cka(*pair, kernel, unbiased) for kernel in ("linear", "rbf") for unbiased in (False, True)]
    assert after == pytest.approx(before, abs=1e-12)


def test_few_prompts_make_strangers_alike_but_not_for_the_unbiased_estimate() -> None:
    torch.manual_seed(2)
    x, y = torch.randn(20, 500), torch.randn(20, 500)
    assert cka(x, y) > 0.9, "20 prompts of width 500"
    draws = [cka(torch.randn(20, 500), torch.randn(20, 500), unbiased=True) for _ in range(30)]
    assert abs(sum(draws) / 30) < 0.05
    assert chance(x, y, "linear", False, 5, 0) == pytest.approx(cka(x, y), abs=0.05)


def test_constant_states_and_too_few_prompts() -> None:
    assert cka(torch.ones(5, 3), torch.randn(5, 3)) == 0
    assert median_width(torch.ones(5, 3)) == 1
    with pytest.raises(ValueError, match="too few"):
        cka(torch.ones(3, 3), torch.ones(3, 3), unbiased=True)
    with pytest.raises(ValueError, match="different prompts"):
        cka(torch.ones(3, 3), torch.ones(4, 3))
