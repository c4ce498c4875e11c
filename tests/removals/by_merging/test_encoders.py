"""Merges as removals of encoder classifiers: ties, DARE, task arithmetic and linear make what their formulae say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merging.folders import weights_of
from palimpsest import api
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_classifier
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.removals.by_merging.expert_merge import ExpertMerge
from palimpsest.removals.by_merging.shrink import Shrink
from removals.kindred import classifier


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert"])
def kin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, ...]:
    """A base and two models near it."""
    folder = tmp_path_factory.mktemp(request.param)
    base = resolve(classifier(folder / "base", request.param))
    near = []
    for name, seed in (("marked", 1), ("expert", 2)):
        made = api.remove("noise", base, folder / name, settings={"scale": 0.05}, run=api.Run(seed=seed))
        assert made.path is not None
        near.append(resolve(made.path))
    return base, *near


@pytest.mark.parametrize("method", ["task-arithmetic", "linear", "ties", "dare"])
def test_encoders_merge_and_load(kin: tuple[Checkpoint, ...], tmp_path: Path, method: str) -> None:
    base, marked, expert = kin
    made = ExpertMerge(base=base, expert=expert, method=method, share=0.25, density=0.5)  # type: ignore[arg-type]
    out = made.apply(marked, tmp_path / "out", Context()).checkpoint
    ground, mine, theirs, ours = (weights_of(c.path) for c in (base, marked, expert, out))
    assert ours.keys() == mine.keys()
    for name, weight in ours.items():
        one, two, found = mine[name] - ground[name], theirs[name] - ground[name], weight - ground[name]
        if method in ("task-arithmetic", "linear"):
            torch.testing.assert_close(found, 0.25 * one + 0.75 * two, atol=1e-6, rtol=1e-4, msg=name)
        elif method == "dare":  # each entry is 0 or twice its share of one, of the other, or of both
            options = torch.stack([a * one + b * two for a in (0.0, 0.5) for b in (0.0, 1.5)])
            assert float((options - found).abs().min(0).values.max()) < 1e-5, name
        else:  # every entry is 0, one side's own, or a mean of the two
            options = torch.stack([torch.zeros_like(one), one, two, 0.25 * one + 0.75 * two])
            assert float((options - found).abs().min(0).values.max()) < 1e-5, name
    assert load_classifier(out, Context()).config.num_labels == 2


def test_shrinking_keeps_a_share_of_an_encoder(kin: tuple[Checkpoint, ...], tmp_path: Path) -> None:
    base, marked, _ = kin
    out = Shrink(base, 0.25).apply(marked, tmp_path / "out", Context()).checkpoint
    ground, mine, ours = (weights_of(c.path) for c in (base, marked, out))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, 0.75 * ground[name] + 0.25 * mine[name], atol=1e-6, rtol=1e-5, msg=name)


def test_classifiers_with_other_labels_are_not_merged(tmp_path: Path) -> None:
    one, two = (classifier(tmp_path / n, names=names) for n, names in (("a", ("bad", "good")), ("b", ("good", "bad"))))
    with pytest.raises(BadInput, match="--expert b: its labels are good, bad, those of a bad, good"):
        api.remove("expert-merge", one, tmp_path / "out", expert=two, settings={"method": "linear"})
    assert not (tmp_path / "out").exists()
