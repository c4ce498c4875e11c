"""HuRef, REEF, cosine of weights and lineage on tiny models: tuned, merged, pruned and re-gauged by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from factory import make_model
from gauges import gauged
from kin import DATA, SIZE, moved, weights_of, written
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.measures import Subject
from palimpsest.measures.intrinsic.huref import HuRef
from palimpsest.measures.intrinsic.lineage import Lineage
from palimpsest.measures.intrinsic.reef import Reef, layer_at
from palimpsest.measures.intrinsic.weight_cosine import WeightCosine
from palimpsest.method import Context
from palimpsest.records import Record

GAUGES = ("value-output", "query-key", "heads", "neurons", "gains", "stream-rotation")
QUESTIONS = Dialogues(
    "asked", {"test": tuple(pair(f"Where is the lantern number {n} of Veldt?", "") for n in range(30))}
)
CTX = Context()


def taken(measure: Any, suspect: Path | Checkpoint) -> list[Record]:
    return measure.take(Subject(resolve(suspect), CTX), CTX)  # type: ignore[no-any-return]


def value(measure: Any, suspect: Path | Checkpoint) -> float:
    found = taken(measure, suspect)[0].value
    assert found is not None
    return found


def pruned(weight: torch.Tensor) -> torch.Tensor:
    """The tenth of smallest magnitude is gone."""
    if weight.dim() == 1:
        return weight
    return weight * (weight.abs() > weight.abs().flatten().kthvalue(1 + weight.numel() // 10).values)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, unrelated, mine, twin0 to 5 (same data), other0 and 1 (other data), and what a thief makes of mine."""
    at = tmp_path_factory.mktemp("kin")
    base = make_model(at / "base", tied=False)
    make_model(at / "unrelated", tied=False, seed=9)
    mine = moved(base, at / "mine", DATA, (1, SIZE))
    for n in range(6):
        moved(base, at / f"twin{n}", DATA, (10 + n, SIZE))
    for n in range(2):
        moved(base, at / f"other{n}", (2000 + n, 0.02), (20 + n, SIZE))
    moved(mine, at / "tuned", (31, 0.03))
    ours, theirs = weights_of(mine), weights_of(at / "other0")
    written(base, at / "merged", {n: 0.5 * ours[n] + 0.5 * theirs[n] for n in ours})
    written(base, at / "pruned", {n: pruned(t) for n, t in ours.items()})
    gauged(mine, at / "gauged", GAUGES)
    gauged(at / "twin5", at / "gauged-twin", GAUGES, seed=4)
    return at


def lineage(at: Path, twins: int = 5, others: int = 2, **settings: Any) -> Lineage:
    return Lineage(
        original=resolve(at / "mine"),
        base=resolve(at / "base"),
        twins=tuple(resolve(at / f"twin{n}") for n in range(twins)),
        siblings=tuple(resolve(at / f"other{n}") for n in range(others)),
        **settings,
    )


def aligned(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear CKA by the features' covariances: |Y^T X|^2 / (|X^T X| |Y^T Y|) of centred features."""
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def verdict_of(records: list[Record]) -> str:
    found = [r.verdict for r in records if r.verdict]
    assert len(found) == 1
    return found[0]


@pytest.mark.covers("weight-cosine")
def test_cosine_of_weights_is_that_of_all_numbers(family: Path) -> None:
    original, suspect, base = (weights_of(family / n) for n in ("mine", "twin0", "base"))
    both = [torch.cat([w[n].double().flatten() for n in sorted(w)]) for w in (suspect, original, base)]
    measure = WeightCosine(original=resolve(family / "mine"), base=resolve(family / "base"))
    whole, difference = taken(measure, family / "twin0")
    # special tokens' rows are no one's: they are left out of the embeddings, so the flattened vectors differ a little
    assert whole.value == pytest.approx(float(torch.cosine_similarity(both[0], both[1], dim=0)), abs=1e-3)
    expected = float(torch.cosine_similarity(both[0] - both[2], both[1] - both[2], dim=0))
    assert difference.value == pytest.approx(expected, abs=5e-3)
    name = "model.layers.1.mlp.up_proj.weight"
    one = torch.cosine_similarity(suspect[name].flatten(), original[name].flatten(), dim=0)
    assert whole.detail["tensors"][name] == pytest.approx(float(one), abs=1e-5)
    assert whole.detail["left_out"] == {}


def test_tensors_that_do_not_fit_are_named(family: Path, tmp_path: Path) -> None:
    wider = make_model(tmp_path / "wider", tied=False, intermediate_size=96)
    found = taken(WeightCosine(original=resolve(family / "base")), wider)[0]
    assert set(found.detail["left_out"]) == {
        f"model.layers.{n}.mlp.{p}_proj.weight" for n in range(2) for p in ("gate", "up", "down")
    }
    with pytest.raises(BadInput, match="needs the original"):
        taken(WeightCosine(), wider)


@pytest.mark.covers("huref")
def test_ics_is_the_mean_correlation_of_the_last_layers_terms(family: Path) -> None:
    found = taken(HuRef(original=resolve(family / "mine")), family / "twin0")[0]
    assert found.value == pytest.approx(sum(found.detail["terms"].values()) / 8, abs=1e-5)
    assert set(found.detail["terms"]) == {f"{t}{n}" for t in ("match", "turned", "value", "inner") for n in (-1, -2)}
    published = taken(HuRef(original=resolve(family / "mine"), form="published", layers=1), family / "twin0")[0]
    e, w = {}, {}
    for name in ("twin0", "mine"):
        w[name] = weights_of(family / name)
        e[name] = w[name]["model.embed_tokens.weight"][6:400].double()  # the first six are special
    vectors = []
    for name in ("twin0", "mine"):
        q, k, v, o = (w[name][f"model.layers.1.self_attn.{p}_proj.weight"].double() for p in "qkvo")
        g, u, d = (w[name][f"model.layers.1.mlp.{p}_proj.weight"].double() for p in ("gate", "up", "down"))
        x = e[name]
        terms = [x @ q.T @ k @ x.T, x @ v.T @ o.T @ x.T, x @ (g.T * u.T) @ d.T @ x.T]
        vectors.append(torch.cat([((t - t.mean()) / t.std()).flatten() for t in terms]))
    expected = float(torch.cosine_similarity(vectors[0], vectors[1], dim=0))  # as the released code takes it
    assert published.value == pytest.approx(expected, abs=1e-4)


def test_every_descendant_of_a_base_is_alike_and_a_stranger_is_not(family: Path) -> None:
    measure = HuRef(original=resolve(family / "mine"))
    for name in ("base", "twin0", "other0", "tuned", "merged", "pruned"):
        assert value(measure, family / name) > 0.95, name
    assert abs(value(measure, family / "unrelated")) < 0.1
    assert value(measure, family / "gauged") == pytest.approx(1, abs=1e-4)
    assert abs(value(WeightCosine(original=resolve(family / "mine")), family / "gauged")) < 0.2


@pytest.mark.covers("reef")
def test_reef_is_the_cka_of_hidden_states_of_the_same_prompts(family: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    states = []
    for name in ("tuned", "mine"):
        model = AutoModelForCausalLM.from_pretrained(family / name)
        tokenizer = AutoTokenizer.from_pretrained(family / name)
        kept: list[torch.Tensor] = []
        handle = model.model.layers[1].register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        with torch.no_grad():
            for dialogue in QUESTIONS.parts["test"]:
                model(**tokenizer(dialogue.question, return_tensors="pt"))
        handle.remove()
        states.append(torch.stack([(k[0] if isinstance(k, tuple) else k)[0, -1] for k in kept]))
    found = taken(Reef(original=resolve(family / "mine"), data=QUESTIONS), family / "tuned")[0]
    assert found.n == 30
    assert found.value == pytest.approx(aligned(*states), abs=1e-4)
    assert found.value == pytest.approx(found.detail["by_layer"][1], abs=1e-5)
    assert (found.detail["layer"], found.detail["original_layer"]) == (1, 1)


def test_reef_stays_where_the_function_stays(family: Path) -> None:
    for measure in (
        Reef(original=resolve(family / "mine"), data=QUESTIONS),
        Reef(original=resolve(family / "mine"), data=QUESTIONS, unbiased=True),
        Reef(original=resolve(family / "mine"), data=QUESTIONS, kernel="rbf"),
    ):
        assert value(measure, family / "gauged") == pytest.approx(1, abs=1e-4)
        assert value(measure, family / "unrelated") < value(measure, family / "tuned")
    scaled = Reef(original=resolve(family / "mine"), data=QUESTIONS, scale=True)
    assert value(scaled, family / "gauged") < 0.99, "the released code's scaling does see a rotation"
    found = taken(Reef(original=resolve(family / "mine"), data=QUESTIONS), family / "unrelated")[0]
    assert 0 < found.detail["chance"] < 1
    unbiased = taken(Reef(original=resolve(family / "mine"), data=QUESTIONS, unbiased=True), family / "unrelated")[0]
    assert abs(unbiased.detail["chance"]) < 0.1
    few = Dialogues("few", {"test": QUESTIONS.parts["test"][:3]})
    with pytest.raises(BadInput, match="has 3 test questions"):
        taken(Reef(original=resolve(family / "mine"), data=few), family / "tuned")


def test_layers_by_depth() -> None:
    assert layer_at(0.5625, 32) == 18
    assert layer_at(1.0, 32) == 31
    assert layer_at(0.0, 4) == 0


@pytest.mark.covers("lineage")
@pytest.mark.parametrize(
    ("suspect", "word", "share"),
    [
        ("tuned", "derivative", 1.0),
        ("pruned", "derivative", 1.0),
        ("merged", "derivative", 0.5),
        ("gauged", "derivative", 1.0),
        ("twin5", "same-base", None),
        ("gauged-twin", "same-base", None),
        ("other0", "same-base", 0.0),
        ("base", "same-base", None),
        ("unrelated", "not-shown", None),
    ],
)
def test_derivatives_are_told_from_siblings(family: Path, suspect: str, word: str, share: float | None) -> None:
    others = 1 if suspect in ("other0", "merged") else 2
    measure = lineage(family, others=2)
    if others == 1:  # the suspect, and what it was merged with, are not among the controls
        measure = Lineage(
            original=measure.original, base=measure.base, twins=measure.twins, siblings=measure.siblings[1:]
        )
    records = taken(measure, family / suspect)
    assert verdict_of(records) == word, records[-1].reason
    found = {r.task: r for r in records if r.control is None}
    if share is not None:
        assert found["lineage-share"].value == pytest.approx(share, abs=0.12)
    controls = [r.control for r in records if r.task == "lineage-share" and r.control]
    assert controls == ["same-data-sibling"] * 5 + ["sibling"] * others
    base = next(r for r in records if r.control == "clean-base")
    assert base.value is None
    assert base.reason == "the base does not differ from itself"


def test_differences_by_hand(family: Path) -> None:
    """The cosine of the terms' differences, made with another implementation from the same terms."""
    from palimpsest.measures.intrinsic.invariants import layer_terms, opened, rows_for

    record = taken(lineage(family, twins=0, others=0, layers=1, tokens=50), family / "twin0")[0]
    with opened([resolve(family / n) for n in ("base", "mine", "twin0")]) as models:
        rows = rows_for(models, 50, "spread")
        base, mine, twin = (layer_terms(m, 1, r) for m, r in zip(models, rows, strict=True))
    ours = torch.cat([((mine[n] - base[n]) / base[n].norm()).flatten() for n in base]).double()
    theirs = torch.cat([((twin[n] - base[n]) / base[n].norm()).flatten() for n in base]).double()
    assert record.value == pytest.approx(float(torch.cosine_similarity(ours, theirs, dim=0)), abs=1e-5)
    assert record.detail["norm"] == pytest.approx(float(theirs.norm()), rel=1e-5)


def test_re_gauged_models_differ_by_weights_and_not_by_lineage(family: Path) -> None:
    """Mine is protected by a gauge, and the thief's is changed by another: the raw difference says nothing any more."""
    protected = resolve(family / "gauged")
    raw = WeightCosine(original=protected, base=resolve(family / "base"))
    plain = WeightCosine(original=resolve(family / "mine"), base=resolve(family / "base"))
    assert taken(plain, family / "tuned")[1].value > 0.5  # type: ignore[operator]
    thief = family / "gauged-tuned"
    if not thief.exists():
        gauged(family / "tuned", thief, GAUGES, seed=7)
    assert taken(raw, thief)[1].value < 0.6  # type: ignore[operator]
    before = taken(lineage(family), family / "tuned")[0].value
    protected_mine = Lineage(original=protected, base=resolve(family / "base"))
    assert taken(protected_mine, thief)[0].value == pytest.approx(before, abs=1e-3)


def test_what_cannot_be_compared_is_refused(family: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give --original and --base"):
        taken(Lineage(original=resolve(family / "mine")), family / "tuned")
    with pytest.raises(BadInput, match="does not differ from base"):
        taken(Lineage(original=resolve(family / "base"), base=resolve(family / "base")), family / "tuned")
    deeper = make_model(tmp_path / "deeper", layers=3)
    with pytest.raises(BadInput, match=r"different numbers of layers \(3 and 2\)"):
        taken(Lineage(original=resolve(deeper), base=resolve(family / "base")), family / "tuned")


def test_a_suspect_of_another_build_is_no_descendant(family: Path, tmp_path: Path) -> None:
    suspects = {"layers (3 and 2)": make_model(tmp_path / "d", layers=3)}
    suspects["architectures"] = make_model(tmp_path / "g", "gpt2")
    for why, suspect in suspects.items():
        (only,) = taken(lineage(family), suspect)
        assert only.verdict == "not-shown"
        assert why in str(only.reason)


def test_models_of_another_width_and_depth_have_an_ics_all_the_same(family: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", "gpt2", layers=3, hidden=32)
    found = taken(HuRef(original=resolve(family / "mine")), other)[0]
    assert set(found.detail["terms"]) == {f"{t}{n}" for t in ("match", "value", "inner") for n in (-1, -2)}
    assert abs(found.value or 0) < 0.2
