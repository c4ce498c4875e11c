"""Shrinking: a share of the task vector is kept, and nothing else of the marked model changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from factory import make_model
from merging.folders import make_folder, weights_of
from palimpsest import api
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.method import Context, build
from palimpsest.removals.by_merging.shrink import Shrink
from removals.kindred import adapter


@pytest.mark.covers("shrink")
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_the_task_vector_is_kept(tiny_model: Path, tmp_path: Path, share: float) -> None:
    base, marked = resolve(tiny_model), resolve(make_model(tmp_path / "marked", seed=1))
    made = Shrink(base, share).apply(marked, tmp_path / "out", Context())
    ground, theirs, ours = (weights_of(c.path) for c in (base, marked, made.checkpoint))
    whole = 0.0
    for name, weight in theirs.items():
        delta = weight.double() - ground[name].double()
        whole += float(delta.square().sum())
        assert torch.allclose(ours[name].double(), ground[name].double() + share * delta, rtol=0, atol=1e-6), name
    detail = made.records[0].detail
    assert detail["distance"] == pytest.approx((1 - share) * whole**0.5, rel=1e-5, abs=1e-4)
    if share < 1:
        assert detail["task_vector_left"] == pytest.approx(share * whole**0.5, rel=1e-5)
    assert made.checkpoint.chain()[-1]["parents"] == {"model": marked.digest(), "base": base.digest()}


def test_config_and_tokenizer_are_the_marked_models(tiny_model: Path, tmp_path: Path) -> None:
    marked = resolve(make_model(tmp_path / "marked", seed=1, template="{{ messages[0]['content'] }}!"))
    made = Shrink(resolve(tiny_model)).apply(marked, tmp_path / "out", Context()).checkpoint
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (marked.path / name).is_file():
            assert (made.path / name).read_bytes() == (marked.path / name).read_bytes()


def test_a_base_that_does_not_fit_is_refused_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    marked = resolve(tiny_model)
    wide, gpt2 = (resolve(make_model(tmp_path / n, **k)) for n, k in (("w", {"hidden": 32}), ("g", {"family": "gpt2"})))
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=r"base w: .* has shape \[.*32\], that of tiny \[.*64\]"):
        Shrink(wide).apply(marked, out, Context())
    with pytest.raises(BadInput, match="base g: is a gpt2 model, tiny a llama model"):
        Shrink(gpt2).apply(marked, out, Context())
    with pytest.raises(BadInput, match="shrink: needs the base"):
        api.remove("shrink", tiny_model, out)
    with pytest.raises(BadInput, match="--base w: "):
        api.remove("shrink", tiny_model, out, base=wide.path)
    with pytest.raises(BadInput, match=r"shrink: share: 1\.5 is out of range"):
        build(Shrink, None, {"share": "1.5"})
    assert not out.exists()


def test_an_adapter_adds_a_share_of_what_it_added(tmp_path: Path) -> None:
    model = adapter(tmp_path / "a", torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0], [0.0]]), alpha=2)
    made = Shrink(share=0.25).apply(model, tmp_path / "out", Context())
    found = weights_of(made.checkpoint.path)
    a, b = (next(t for n, t in found.items() if f"lora_{w}." in n) for w in "AB")
    assert (b @ a).tolist() == [[0.5, 1.0], [0.0, 0.0]]
    detail = made.records[0].detail  # 2 B A = [4 8; 0 0], of the norm sqrt(80)
    assert detail["distance"] == pytest.approx(0.75 * 80**0.5)
    assert detail["task_vector_left"] == pytest.approx(0.25 * 80**0.5)


def test_a_head_that_an_adapter_brings_needs_the_base(tmp_path: Path) -> None:
    head = torch.tensor([[4.0, 0.0]])
    model = adapter(tmp_path / "a", torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0], [0.0]]), alpha=2, head=head)
    with pytest.raises(BadInput, match=r"shrink: a brings score.weight whole; name the base"):
        api.remove("shrink", model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    base = make_folder(tmp_path / "base", {"score.weight": torch.tensor([[0.0, 8.0]])})
    made = api.remove("shrink", model, tmp_path / "out", base=base, settings={"share": 0.25})
    assert made.path is not None
    assert next(t for n, t in weights_of(made.path).items() if "score" in n).tolist() == [[1.0, 6.0]]
