"""Protections that keep the function keep it: logits in float32, on every architecture, and only legal changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from factory import make_model
from kin import moved
from merging.folders import weights_of
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.method import Context
from palimpsest.protections.mergebarrier import MergeBarrier
from palimpsest.protections.mergelock import MergeLock
from palimpsest.protections.params import PaRaMS
from palimpsest.protections.secret import Secret
from protections.conftest import KINDS, Models

METHODS: dict[str, Any] = {"mergebarrier": MergeBarrier, "mergelock": MergeLock, "params": PaRaMS}
IDS = torch.randint(6, 380, (2, 24), generator=torch.Generator().manual_seed(3))


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(resolve(folder), Context())(input_ids=IDS).logits  # type: ignore[no-any-return]


def relative(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_logits_stay(models: Models, tmp_path: Path, kind: str, name: str) -> None:
    base, expert = resolve(models.base(kind)), resolve(models.expert(kind))
    instance = PaRaMS(base=base, up_scale=kind in ("llama", "opt")) if name == "params" else METHODS[name]()
    made = instance.apply(expert, tmp_path / "out", Context(key_seed=4))
    assert relative(logits(expert.path), logits(made.checkpoint.path)) < 1e-4
    record = made.records[0]
    assert record.value is not None and record.value > 0.1, "the weights must really have moved"
    assert record.detail["exact"] is True and record.seed is None
    changed = {n for n, t in weights_of(expert.path).items() if not torch.equal(t, weights_of(tmp_path / "out")[n])}
    assert changed and not [n for n in changed if "embed" in n or "wte" in n or "lm_head" in n or "ln" in n.split(".")]
    entry = made.checkpoint.chain()[-1]
    assert entry["method"] == name and entry["parents"]["model"] == expert.digest()
    assert ("base" in entry["parents"]) == (name == "params")


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_in_shards_keeps_its_answers(tmp_path: Path, name: str) -> None:
    base = make_model(tmp_path / "b", "qwen2", dtype="bfloat16", shards=3, layers=3)
    expert = make_model(tmp_path / "m", "qwen2", dtype="bfloat16", shards=2, layers=3, seed=1)
    given = {"base": resolve(base)} if name == "params" else {}
    made = METHODS[name](**given).apply(resolve(expert), tmp_path / "out", Context(key_seed=1))
    assert {str(t.dtype) for t in weights_of(tmp_path / "out").values()} == {"torch.bfloat16"}
    bound = 1e-6 if name == "mergebarrier" else 0.05  # signs are exact to the bit, scales round to 8 bits
    assert relative(logits(expert), logits(made.checkpoint.path)) < bound


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_alone_decides_and_without_one_nothing_repeats(models: Models, tmp_path: Path, name: str) -> None:
    base, expert = resolve(models.base("llama")), resolve(models.expert("llama"))
    instance = PaRaMS(base=base) if name == "params" else METHODS[name]()
    drawn = [
        instance.apply(expert, tmp_path / str(i), Context(key_seed=seed)).checkpoint.digest()
        for i, seed in enumerate((7, 7, 8, None, None))
    ]
    assert drawn[0] == drawn[1]
    if name == "mergebarrier":  # it draws nothing
        assert len(set(drawn)) == 1
    else:
        assert len(set(drawn)) == 4


def test_the_secret_undoes_the_protection(models: Models, tmp_path: Path) -> None:
    from palimpsest.symmetry.editing import edit_for
    from palimpsest.symmetry.group import inverse

    expert = resolve(models.expert("qwen2"))
    made = PaRaMS(base=resolve(models.base("qwen2"))).apply(expert, tmp_path / "out", Context())
    assert isinstance(made.secret, Secret)
    edit, names, _ = edit_for(inverse(made.secret.gauge(), expert.config), made.checkpoint)
    before, after = weights_of(expert.path), weights_of(tmp_path / "out")
    for name in names:
        edit(name, after[name])
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before)


def test_layers_that_differ_get_gauges_of_their_own(tmp_path: Path) -> None:
    base = make_model(tmp_path / "b", layers=3)
    expert = moved(base, tmp_path / "m", (1, 0.05))
    made = PaRaMS(base=resolve(base)).apply(resolve(expert), tmp_path / "out", Context())
    assert isinstance(made.secret, Secret)
    orders = [layer.neurons.tolist() for layer in made.secret.gauge().layers if layer.neurons is not None]
    assert len(orders) == 3 and len({tuple(o) for o in orders}) == 3
