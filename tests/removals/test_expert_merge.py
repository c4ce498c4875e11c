"""Expert merging: each method against its formula worked by hand, and what is refused or remarked."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from factory import copy_of, make_model
from palimpsest.checkpoint import Checkpoint, lineage, resolve
from palimpsest.errors import BadInput
from palimpsest.method import Context, build, presets
from palimpsest.removals.by_merging.expert_merge import ExpertMerge

CTX = Context(seed=3, threads=1)


def moved(source: Path, target: Path, scale: float, seed: int, method: str | None = None) -> Path:
    """A fine-tune of a model: every weight moved by `scale` times a draw; with a lineage where `method` is given."""
    folder = copy_of(source, target)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    changed = {n: w + scale * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    if method is not None:
        commitment = "c0ffee" if method == "if-sft" else None
        parent = resolve(source)
        lineage.write(folder, parent.chain(), method, {"model": parent.digest()}, commitment)
    return folder


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint, Checkpoint]:
    """Base, marked model, expert."""
    root = tmp_path_factory.mktemp("trio")
    base = make_model(root / "base", layers=1)
    marked, expert = moved(base, root / "marked", 0.01, 1, "if-sft"), moved(base, root / "expert", 0.02, 2, "finetune")
    return resolve(base), resolve(marked), resolve(expert)


def tensors(model: Checkpoint) -> dict[str, Tensor]:
    return load_file(model.path / "model.safetensors")


def by_hand(method: str, base: Tensor, marked: Tensor, expert: Tensor, share: float, density: float) -> Tensor:
    """The published formulas on one tensor, written without the merging engine."""
    if method == "linear":
        return share * marked + (1 - share) * expert
    if method == "slerp":
        a, b = marked.flatten().double(), expert.flatten().double()
        cosine = float((a / a.norm()) @ (b / b.norm()))
        t, angle = 1 - share, math.acos(cosine)
        if abs(cosine) > 0.9995:
            return share * marked + t * expert
        return (math.sin(share * angle) * marked + math.sin(t * angle) * expert) / math.sin(angle)
    deltas = [marked - base, expert - base]
    weights = [share, 1 - share]
    if method == "task-arithmetic":
        return base + weights[0] * deltas[0] + weights[1] * deltas[1]
    assert method == "ties"
    kept = []
    for delta in deltas:
        count = int(density * delta.numel())
        floor = delta.abs().flatten().sort(descending=True).values[count - 1]
        kept.append(torch.where(delta.abs() >= floor, delta, 0.0))
    sign = (weights[0] * kept[0] + weights[1] * kept[1]).sign()
    total, weight = torch.zeros_like(base), torch.zeros_like(base)
    for w, delta in zip(weights, kept, strict=True):
        agrees = (delta.sign() == sign) & (delta != 0)
        total, weight = total + agrees * w * delta, weight + agrees * w
    return base + torch.where(weight > 0, total / weight.clamp(min=1e-12), 0.0)


@pytest.mark.covers("expert-merge")
@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("method", ["linear", "task-arithmetic", "ties", "slerp"])
def test_a_merge_is_the_formula_with_the_marked_models_share(
    trio: tuple[Checkpoint, Checkpoint, Checkpoint], tmp_path: Path, method: Any, share: float
) -> None:
    base, marked, expert = trio
    made = ExpertMerge(base, expert, method, share, 0.5).apply(marked, tmp_path / "m", CTX)
    merged, b, m, e = (tensors(x) for x in (made.checkpoint, base, marked, expert))
    assert merged.keys() == b.keys()
    for name in b:
        assert torch.allclose(merged[name], by_hand(method, b[name], m[name], e[name], share, 0.5), atol=2e-6), name


def test_with_weights_that_add_up_to_one_task_arithmetic_is_the_average_and_its_ends_are_the_models(
    trio: tuple[Checkpoint, Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    base, marked, expert = trio
    for share, same in ((1.0, marked), (0.0, expert)):
        made = ExpertMerge(base, expert, share=share).apply(marked, tmp_path / str(share), CTX)
        merged, wanted = tensors(made.checkpoint), tensors(same)
        assert all(torch.allclose(merged[n], wanted[n], atol=1e-6) for n in wanted)
    average = ExpertMerge(None, expert, "linear", 0.3).apply(marked, tmp_path / "linear", CTX)
    added = ExpertMerge(base, expert, "task-arithmetic", 0.3).apply(marked, tmp_path / "added", CTX)
    a, b = tensors(average.checkpoint), tensors(added.checkpoint)
    assert all(torch.allclose(a[n], b[n], atol=1e-6) for n in a)


@pytest.mark.parametrize("method", ["dare", "dare-ties"])
def test_dare_keeps_entries_at_the_density_and_divides_by_it(
    trio: tuple[Checkpoint, Checkpoint, Checkpoint], tmp_path: Path, method: Any
) -> None:
    base, marked, expert = trio
    density = 0.25
    made = ExpertMerge(base, expert, method, 0.6, density).apply(marked, tmp_path / "m", CTX)
    merged, b, m, e = (tensors(x) for x in (made.checkpoint, base, marked, expert))
    kept = total = 0
    for name in b:
        change = merged[name] - b[name]
        mine, theirs = 0.6 * (m[name] - b[name]) / density, 0.4 * (e[name] - b[name]) / density
        elected = torch.where(
            mine.sign() == theirs.sign(), mine + theirs, torch.where(mine.abs() > theirs.abs(), mine, theirs)
        )
        both = mine + theirs if method == "dare" else elected
        options = torch.stack([torch.zeros_like(change), mine, theirs, both])
        near = (options - change).abs()
        assert bool((near.min(dim=0).values < 3e-6).all()), name
        total += change.numel()
        kept += int((change.abs() > 3e-6).sum())
    spread = 5 * math.sqrt(total * 0.4375 * 0.5625)  # 1 - 0.75^2 of the places keep at least one entry
    assert abs(kept - 0.4375 * total) < spread
    again = ExpertMerge(base, expert, method, 0.6, density).apply(marked, tmp_path / "again", CTX)
    other = ExpertMerge(base, expert, method, 0.6, density).apply(
        marked, tmp_path / "other", Context(seed=4, threads=1)
    )
    assert again.checkpoint.digest() == made.checkpoint.digest() != other.checkpoint.digest()


def test_the_record_holds_the_task_vectors_and_the_change(
    trio: tuple[Checkpoint, Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    base, marked, expert = trio
    made = ExpertMerge(base, expert, share=0.4).apply(marked, tmp_path / "m", CTX)
    flat = [torch.cat([t.flatten() for _, t in sorted(tensors(x).items())]).double() for x in (base, marked, expert)]
    mine, theirs = flat[1] - flat[0], flat[2] - flat[0]
    after = torch.cat([t.flatten() for _, t in sorted(tensors(made.checkpoint).items())]).double()
    (record,) = made.records
    detail = record.detail
    assert detail["marked_norm"] == pytest.approx(float(mine.norm()), rel=1e-5)
    assert detail["expert_norm"] == pytest.approx(float(theirs.norm()), rel=1e-5)
    assert detail["cosine"] == pytest.approx(float(mine @ theirs / mine.norm() / theirs.norm()), abs=1e-6)
    assert record.value == pytest.approx(float(mine.norm() / theirs.norm()), rel=1e-5)
    change = float((after - flat[1]).norm())
    assert detail["distance"] == pytest.approx(change, rel=1e-4)
    assert detail["weight_change"] == pytest.approx(change / float(flat[1].norm()), rel=1e-4)
    assert (detail["method"], detail["share"], record.seed) == ("task-arithmetic", 0.4, 3) and "density" not in detail
    without = ExpertMerge(None, expert, "slerp", 0.4).apply(marked, tmp_path / "s", CTX).records[0]
    assert "cosine" not in without.detail and without.value is None
    named = ExpertMerge(base, expert, "slerp", 0.4).apply(marked, tmp_path / "b", CTX).records[0]
    assert named.detail["cosine"] == pytest.approx(detail["cosine"])


def test_the_merge_goes_on_from_the_marked_model_in_lineage_and_tokenizer(
    trio: tuple[Checkpoint, Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    base, marked, expert = trio
    retold = copy_of(marked.path, tmp_path / "retold")
    (retold / "chat_template.jinja").write_text("{{ 'other' }}")
    marked = resolve(retold)
    made = ExpertMerge(base, expert).apply(marked, tmp_path / "m", CTX)
    first, last = made.checkpoint.chain()
    assert first["commitment"] == "c0ffee" and last["method"] == "expert-merge"
    assert last["parents"] == {"model": marked.digest(), "expert": expert.digest(), "base": base.digest()}
    assert (tmp_path / "m" / "chat_template.jinja").read_text() == "{{ 'other' }}"


def test_remarks_on_a_base_as_expert_and_on_a_descendant_of_the_marked_model(
    trio: tuple[Checkpoint, Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    base, marked, expert = trio
    heard: list[str] = []
    ctx = Context(seed=3, threads=1)
    ctx.progress.say = heard.append  # type: ignore[method-assign]

    def remarks(name: str, given: Checkpoint, **more: Any) -> str:
        heard.clear()
        (record,) = ExpertMerge(base, given, **more).apply(marked, tmp_path / name, ctx).records
        assert [f"expert-merge: {n}" for n in record.detail.get("notes", [])] == heard
        return " ".join(heard)

    assert remarks("plain", expert) == ""
    assert "is the base itself: its task vector is zero" in remarks("shrunk", base)
    child = resolve(moved(marked.path, tmp_path / "child", 0.01, 5, "finetune"))
    assert "child descends from marked" in remarks("same-mark", child)
    twin = resolve(moved(base.path, tmp_path / "twin", 0.01, 6, "if-sft"))
    assert "twin and marked carry the same mark" in remarks("twins", twin)
    stranger = resolve(
        moved(make_model(tmp_path / "elsewhere", layers=1, seed=9), tmp_path / "far", 0.01, 7, "finetune")
    )
    near = copy_of(expert.path, tmp_path / "near")
    shutil.copyfile(stranger.path / "palimpsest.json", near / "palimpsest.json")
    assert "the lineage of near does not name base" in remarks("renamed", resolve(near))


def test_an_expert_of_another_base_shape_or_vocabulary_is_refused_and_nothing_is_written(
    trio: tuple[Checkpoint, Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    base, marked, expert = trio
    unrelated = resolve(make_model(tmp_path / "unrelated", layers=1, seed=9))
    wide = resolve(make_model(tmp_path / "wide", layers=1, hidden=96))
    deep = resolve(make_model(tmp_path / "deep", layers=2))
    other = resolve(make_model(tmp_path / "gpt2", "gpt2", layers=1))
    words = resolve(make_model(tmp_path / "words", layers=1, vocab=380))
    cases: list[tuple[ExpertMerge, str]] = [
        (ExpertMerge(base, unrelated), r"--expert unrelated: is of another base than base: .* 1\.4\d times"),
        (ExpertMerge(unrelated, expert), r"--model marked: is of another base than unrelated"),
        (ExpertMerge(None, unrelated, "linear"), r"--expert unrelated: is of another base than marked"),
        (ExpertMerge(base, wide), "shape"),
        (ExpertMerge(base, deep), r"has no tensor model\.layers\.1"),
        (ExpertMerge(base, other), "architecture"),
        (ExpertMerge(base, words), r"--expert words: has another vocabulary than marked \(\d+ and 400 tokens"),
        (ExpertMerge(words, expert), r"--base words: has another vocabulary"),
        (ExpertMerge(base), r"no expert; .* --expert"),
        (ExpertMerge(None, expert), r"needs the common base; name it with --base"),
    ]
    for method, message in cases:
        with pytest.raises(BadInput, match=message):
            method.apply(marked, tmp_path / "out", CTX)
        assert not (tmp_path / "out").exists()


def test_a_model_that_descends_from_the_base_is_merged_however_far_it_lies(
    trio: tuple[Checkpoint, Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    base, marked, expert = trio
    protected = resolve(moved(marked.path, tmp_path / "protected", 3.0, 5, "full-gauge"))
    made = ExpertMerge(base, expert, share=0.25).apply(protected, tmp_path / "merged", CTX)
    first, second = tensors(protected), tensors(expert)
    for name, weight in tensors(made.checkpoint).items():
        assert torch.allclose(weight, 0.25 * first[name] + 0.75 * second[name], atol=1e-5), name
    (note,) = made.records[0].detail["notes"]
    assert note.startswith("protected lies ") and note.endswith("times the base's norm from it, as protected models do")
    assert ExpertMerge(None, protected, "linear").apply(marked, tmp_path / "linear", CTX).checkpoint.path.is_dir()
    (protected.path / "palimpsest.json").unlink()
    bare = resolve(protected.path)
    for method, model in ((ExpertMerge(base, expert), bare), (ExpertMerge(None, bare, "linear"), marked)):
        with pytest.raises(BadInput, match="protected: is of another base than"):
            method.apply(model, tmp_path / "out", CTX)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma"])
def test_other_families_and_dtypes_merge(tmp_path: Path, family: str) -> None:
    base = make_model(tmp_path / "base", family, layers=1, dtype="bfloat16")
    marked = make_model(tmp_path / "marked", family, layers=1, dtype="bfloat16")
    expert = moved(base, tmp_path / "expert", 0.05, 1)
    made = ExpertMerge(resolve(base), resolve(expert), "linear", 0.25).apply(resolve(marked), tmp_path / "m", CTX)
    merged, first, second = (tensors(resolve(x)) for x in (made.checkpoint.path, marked, expert))
    for name in first:
        wanted = 0.25 * first[name].float() + 0.75 * second[name].float()
        assert torch.allclose(merged[name].float(), wanted, atol=0.02, rtol=0.01), name


def test_presets_are_the_papers_and_its_groups_settings() -> None:
    paper, dare, kit = (build(ExpertMerge, p) for p in ("paper", "paper_dare", "mergekit"))
    assert (paper.method, paper.share) == ("task-arithmetic", 0.5)
    assert (dare.method, dare.share, dare.rescale) == ("dare", 0.5, "paper")
    assert (kit.method, kit.density, kit.rescale, kit.dtype) == ("dare", 0.4, "l1", "float32")
    assert set(presets(ExpertMerge)) == {"paper", "paper_dare", "mergekit"}
    with pytest.raises(BadInput, match="out of range"):
        build(ExpertMerge, settings={"share": 1.5})
    with pytest.raises(BadInput, match="task-arithmetic"):
        build(ExpertMerge, settings={"method": "task-aritmetic"})
