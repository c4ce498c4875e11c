"""Which changes of the weights that keep the function the terms see: none, to 1e-5, in every family; and what does."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from factory import make_model
from gauges import Weights, gauged, invertible, stream
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.errors import BadInput
from palimpsest.measures import Subject
from palimpsest.measures.intrinsic.invariants import layer_terms, opened, rows_for
from palimpsest.measures.intrinsic.terms import pearson
from palimpsest.measures.intrinsic.weight_cosine import WeightCosine
from palimpsest.method import Context

EVERY = ("value-output", "query-key", "heads", "neurons", "gains", "stream-permutation", "stream-scale")
LEGAL: dict[str, tuple[str, ...]] = {
    "llama": (*EVERY, "stream-rotation"),
    "mistral": (*EVERY, "stream-rotation"),
    "qwen2": (*EVERY, "stream-rotation"),
    "qwen3": ("value-output", "query-key", "head-scale", "heads", "neurons", "gains", "stream-permutation"),
    "gemma": EVERY,
    "gemma2": ("value-output", "query-key", "heads", "neurons", "gains", "stream-permutation"),
    "gemma3_text": ("value-output", "query-key", "head-scale", "heads", "neurons", "gains", "stream-permutation"),
    "gpt2": (*EVERY, "key-bias"),
    "opt": (*EVERY, "key-bias"),
    "gpt_neo": EVERY,
    "gpt_neox": (*EVERY, "stream-mean"),
    "phi": (*(e for e in EVERY if e != "gains"), "stream-mean"),
    "phi3": (*EVERY, "stream-rotation"),
    "olmo2": ("value-output", "neurons", "stream-permutation"),
}
UNTIED = {"llama": False, "mistral": False, "qwen2": False, "qwen3": False, "phi3": False, "gpt_neox": False}
# A factor on the stream is exact but for the norms' epsilon: make it small.
EPSILON = {"gpt2": "layer_norm_epsilon", "gpt_neo": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}
EPSILON |= {"phi": "layer_norm_eps"}


@cache
def made(folder: Path, family: str) -> Path:
    name = EPSILON.get(family, "rms_norm_eps")
    changes = {} if family == "opt" else {name: 1e-12}
    return make_model(folder / family, family, tied=UNTIED.get(family), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gauges")


def logits(path: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 63).view(2, 30)).logits


def distances(first: Path, second: Path) -> dict[str, float]:
    """Relative distance of each term, by its name: the largest over layers."""
    found: dict[str, float] = {}
    with opened([resolve(first), resolve(second)]) as models:
        rows = rows_for(models, 100, "spread")
        for layer in range(2):
            a, b = (layer_terms(m, layer, r) for m, r in zip(models, rows, strict=True))
            assert a.keys() == b.keys()
            for name in a:
                found[name] = max(found.get(name, 0.0), float((a[name] - b[name]).norm() / a[name].norm()))
    return found


def weight_cosine(suspect: Path, original: Path) -> float:
    value = WeightCosine(original=resolve(original)).take(Subject(resolve(suspect), Context()), Context())[0].value
    assert value is not None
    return value


@pytest.mark.parametrize(("family", "gauge"), [(f, g) for f, names in LEGAL.items() for g in names])
def test_terms_do_not_see_a_change_that_leaves_the_function_alone(folder: Path, family: str, gauge: str) -> None:
    source = made(folder, family)
    changed = gauged(source, folder / f"{family}-{gauge}", gauge)
    before, after = logits(source), logits(changed)
    # OPT's epsilon of 1e-5 is not in its configuration, so a factor on its stream is not exact.
    allowed = 1e-2 if (family, gauge) == ("opt", "stream-scale") else 2e-5
    assert float((after - before).norm() / before.norm()) < allowed, "the change is meant to keep the function"
    assert max(distances(source, changed).values()) < 1e-5
    if gauge in ("value-output", "stream-permutation", "stream-rotation"):
        assert weight_cosine(changed, source) < 0.95


def test_all_of_them_together_leave_the_terms_and_little_of_the_weights(folder: Path) -> None:
    source = made(folder, "llama")
    changed = gauged(source, folder / "llama-all", LEGAL["llama"], seed=3)
    assert max(distances(source, changed).values()) < 1e-5
    assert abs(weight_cosine(changed, source)) < 0.1


def test_the_papers_gated_term_holds_under_permutations_but_not_under_signs_or_rotations(folder: Path) -> None:
    source = made(folder, "llama")
    weights = Weights(source)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    stream(weights, lambda x: x[:, order], lambda v: v[order])
    plain = weights.write(source, folder / "llama-permuted")
    for changed, holds in (
        ("permuted", True),
        ("neurons", True),
        ("stream-permutation", False),
        ("stream-rotation", False),
    ):
        other = plain if changed == "permuted" else folder / f"llama-{changed}"
        other = other if other.exists() else gauged(source, other, changed)
        with opened([resolve(source), resolve(other)]) as models:
            rows = rows_for(models, 100, "spread")
            a, b = (layer_terms(m, 1, r, "published") for m, r in zip(models, rows, strict=True))
        assert (pearson(a["inner"], b["inner"]) > 0.99999) == holds, changed
        if not holds:
            assert abs(pearson(a["inner"], b["inner"])) < 0.2, changed


def test_any_matrix_on_queries_and_keys_breaks_a_rotary_model_and_only_the_turned_term_says_so(folder: Path) -> None:
    """HuRef's Q K term is the score at distance 0: it stays under an invertible matrix that destroys the model."""
    source = made(folder, "llama")
    weights, drawn = Weights(source), torch.Generator().manual_seed(0)
    for layer in range(2):
        m = invertible(16, drawn)
        weights.change_rows(layer, "query", lambda q, m=m: torch.cat([m @ part for part in q.split(16)]))
        inverse = torch.linalg.inv(m).T
        weights.change_rows(layer, "key", lambda k, i=inverse: torch.cat([i @ part for part in k.split(16)]))
    broken = weights.write(source, folder / "broken")
    before, after = logits(source), logits(broken)
    assert float((after - before).norm() / before.norm()) > 0.05
    found = distances(source, broken)
    assert found["match"] < 1e-5
    assert found["turned"] > 0.3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_terms_see_a_change_of_any_projection(folder: Path, family: str) -> None:
    source = made(folder, family)
    for role, seen in (("query", "match"), ("key", "match"), ("value", "value"), ("output", "value"), ("up", "inner")):
        weights = Weights(source)
        weights.change_rows(1, role, lambda x: x + 0.1 * x.flip(0))  # type: ignore[arg-type]
        changed = weights.write(source, folder / f"{family}-changed-{role}")
        found = distances(source, changed)
        assert found.pop(seen) > 0.01
        assert max(v for n, v in found.items() if (n, seen) != ("turned", "match")) < 1e-6


def test_streams_without_terms_are_refused(folder: Path) -> None:
    after = make_model(folder / "after", "opt", do_layer_norm_before=False)
    with pytest.raises(BadInput, match="normalises its stream after each block"), opened([Checkpoint(after, "after")]):
        pass
    narrow = make_model(folder / "narrow", "opt", word_embed_proj_dim=32)
    with pytest.raises(BadInput, match="projects its embeddings"), opened([Checkpoint(narrow, "narrow")]):
        pass
