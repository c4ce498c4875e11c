"""Noise: as large as asked for in every tensor, normal, and the same whatever the chunks are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merging.folders import weights_of
from palimpsest.checkpoint import resolve
from palimpsest.merging import engine
from palimpsest.method import Context
from palimpsest.removals.weights.noise import Noise, gaussian


def test_draws_are_standard_normal_and_belong_to_their_positions() -> None:
    drawn = gaussian(7, "a", 0, 200_000).double()
    assert abs(float(drawn.mean())) < 4 / 200_000**0.5
    assert float(drawn.var()) == pytest.approx(1, abs=4 * (2 / 200_000) ** 0.5)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=4 * (96 / 200_000) ** 0.5)
    for bound in (-1.5, 0.0, 0.7):  # the distribution function itself
        share = float((drawn < bound).double().mean())
        assert share == pytest.approx(float(torch.special.ndtr(torch.tensor(bound))), abs=4 * 0.5 / 200_000**0.5)
    assert torch.equal(gaussian(7, "a", 1003, 50), drawn[1003:1053].float())
    assert not torch.equal(gaussian(8, "a", 0, 50), gaussian(7, "a", 0, 50))
    assert not torch.equal(gaussian(7, "b", 0, 50), gaussian(7, "a", 0, 50))


@pytest.mark.covers("noise")
def test_every_tensor_gets_noise_of_its_own_standard_deviation(tiny_model: Path, tmp_path: Path) -> None:
    source = resolve(tiny_model)
    made = Noise(scale=0.2).apply(source, tmp_path / "out", Context(seed=5))
    before, after = weights_of(source.path), weights_of(made.checkpoint.path)
    for name, weight in before.items():
        noise = (after[name] - weight).double()
        expected = 0.2 * float(weight.double().std(correction=0))
        spread = 4 * (2 / weight.numel()) ** 0.5 / 2  # four standard errors of a standard deviation
        assert float(noise.square().mean().sqrt()) == pytest.approx(expected, rel=spread), name
        drawn = gaussian(5, name, 0, weight.numel()).view_as(weight)
        assert torch.allclose(after[name], weight + expected * drawn, rtol=0, atol=1e-6), name
    distance = sum(float((after[n] - before[n]).double().square().sum()) for n in before) ** 0.5
    assert made.records[0].detail["distance"] == pytest.approx(distance, rel=1e-5)


def test_noise_follows_from_the_seed_alone_and_may_leave_all_but_linear_layers_as_they_are(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve(tiny_model)
    first = Noise().apply(source, tmp_path / "a", Context(seed=1)).checkpoint.digest()
    other = Noise().apply(source, tmp_path / "b", Context(seed=2)).checkpoint.digest()
    monkeypatch.setattr(engine, "CHUNK", 1 << 9)
    cut = Noise().apply(source, tmp_path / "c", Context(seed=1)).checkpoint
    before, after = weights_of(tmp_path / "a"), weights_of(cut.path)
    assert first != other
    assert all(torch.allclose(before[n], after[n], rtol=0, atol=1e-6) for n in before), "sums are cut in other places"
    linear = weights_of(Noise(tensors="linear").apply(source, tmp_path / "d", Context()).checkpoint.path)
    kept = {n for n, w in weights_of(source.path).items() if torch.equal(w, linear[n])}
    assert kept == {n for n in linear if "_proj" not in n}
    still = Noise(scale=0).apply(source, tmp_path / "e", Context()).checkpoint
    assert all(torch.equal(w, weights_of(still.path)[n]) for n, w in weights_of(source.path).items())
