"""Barrier: the curve where it is known in closed form, nought to itself, symmetric, high to a permuted copy."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from factory import copy_of, make_model
from markov import END, saved_markov
from palimpsest.asking import evaluate
from palimpsest.checkpoint import resolve
from palimpsest.cli.curves import curve_lines
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.families import family_of
from palimpsest.measures import Subject
from palimpsest.measures.barrier import Barrier, curve_of
from palimpsest.method import Context
from palimpsest.statistics import mean_interval

WORDS = "a b"
FIRST = {t: {"a": 0.9, "b": 0.05, END: 0.05} for t in ("<s>", "a", "b")}
SECOND = {t: {"a": 0.2, "b": 0.7, END: 0.1} for t in ("<s>", "a", "b")}
SHARES = [i / 10 for i in range(11)]


def changed(source: Path, target: Path, change: Any) -> Path:
    """A copy of a model folder with its weights changed in place by `change(weights)`."""
    copy_of(source, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file({n: t.contiguous() for n, t in weights.items()}, target / "model.safetensors", {"format": "pt"})
    (target / "probe.json").unlink(missing_ok=True)
    return target


@pytest.fixture(scope="module")
def markovs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two models that differ in their heads alone, and texts to read."""
    folder = tmp_path_factory.mktemp("markov")
    text = folder / "t.jsonl"
    text.write_text('{"text": "a b a a"}\n{"text": "b a b b a b"}\n{"text": "a a a"}\n')
    return saved_markov(folder / "one", WORDS, FIRST), saved_markov(folder / "two", WORDS, SECOND), text


def take(model: Path, against: Path, text: Path, **settings: Any) -> Any:
    (record,) = Barrier(against=resolve(against), **settings).take(
        Subject(resolve(model), Context(), text=text), Context()
    )
    return record


@pytest.mark.covers("barrier")
def test_between_two_heads_the_curve_is_the_log_of_the_geometric_mixture(markovs: tuple[Path, Path, Path]) -> None:
    """Logits on the line are (1 - s) log p + s log q, so the gap is log sum_t p_t^(1-s) q_t^s: never above 0."""
    one, two, text = markovs
    record = take(one, two, text)
    for point in record.detail["curve"]:
        s = point["share"]
        # all contexts have one distribution; the vocabulary's other tokens have what the tables leave, about nothing
        mixed = math.log(sum(FIRST["a"][t] ** (1 - s) * SECOND["a"][t] ** s for t in FIRST["a"]))
        assert point["gap"] == pytest.approx(mixed, abs=2e-4)
        counts = {"a": 8, "b": 5}
        ends = [-sum(n * math.log(table["a"][t]) for t, n in counts.items()) / 13 for table in (FIRST, SECOND)]
        assert point["loss"] == pytest.approx((1 - s) * ends[0] + s * ends[1] + mixed, abs=2e-4)
    assert record.value == 0.0 and record.detail["at"] == 0.0 and record.low == 0.0 and record.high == 0.0
    assert record.n == 3 and record.task == "neutral" and len(record.detail["curve"]) == 11


def test_a_copy_of_other_signs_has_the_same_function_and_a_barrier_of_known_height(
    markovs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Embedding and head negated: half way both are zero, so every token is as likely as any other."""

    def negate(weights: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name].neg_()

    one, _, text = markovs
    other = changed(one, tmp_path / "negated", negate)
    record = take(one, other, text)
    curve = {p["share"]: p for p in record.detail["curve"]}
    assert curve[1.0]["loss"] == pytest.approx(curve[0.0]["loss"], rel=1e-6)
    vocabulary = 6  # four special tokens and two words
    assert curve[0.5]["loss"] == pytest.approx(math.log(vocabulary), rel=1e-4)
    assert record.detail["at"] == 0.5
    assert record.value == pytest.approx(math.log(vocabulary) - curve[0.0]["loss"], rel=1e-4)
    assert record.detail["relative"] == pytest.approx(record.value / curve[0.0]["loss"], rel=1e-6)
    assert record.detail["instability"] == pytest.approx(record.value, rel=1e-6)
    assert record.low <= record.value <= record.high and len(curve_lines(record)) == 12
    bars = [line.count("#") for line in curve_lines(record)]
    assert max(bars) == bars[6] == 40, "the bar half way is the longest"


def test_no_barrier_lies_between_a_model_and_itself(tiny_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.jsonl"
    text.write_text('{"text": "The lantern keeper"}\n{"text": "A grey heron stood in the water"}\n')
    record = take(tiny_model, tiny_model, text, points=5)
    assert (record.value, record.low, record.high) == (0.0, 0.0, 0.0)
    assert len({p["loss"] for p in record.detail["curve"]}) == 1
    assert record.detail["relative"] == record.detail["instability"] == 0.0
    assert record.detail["against"]["digest"] == record.digest


def test_both_directions_give_one_barrier_and_mirrored_curves(tmp_path: Path) -> None:
    text = tmp_path / "t.jsonl"
    text.write_text('{"text": "The lantern keeper"}\n{"text": "A grey heron stood in the water"}\n')
    one, two = make_model(tmp_path / "one"), make_model(tmp_path / "two", seed=1)
    there, back = (take(a, b, text, points=6) for a, b in ((one, two), (two, one)))
    assert there.value == pytest.approx(back.value, abs=1e-5) and there.high == pytest.approx(back.high, abs=1e-4)
    for a, b in zip(there.detail["curve"], reversed(back.detail["curve"]), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["gap"] == pytest.approx(b["gap"], abs=1e-5)


def test_a_trained_model_and_its_copy_with_permuted_neurons_have_a_barrier(tmp_path: Path) -> None:
    toy = resolve("toy")
    family = family_of(toy.config)

    def permute(weights: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        for layer in range(int(toy.config["num_hidden_layers"])):
            order = torch.randperm(family.inner(toy.config), generator=generator)
            for role in ("gate", "up", "down"):
                name = f"{family.layers}.{layer}.{family.name(role)}.weight"
                weights[name] = weights[name][:, order] if role == "down" else weights[name][order]

    folder = changed(toy.path, tmp_path / "permuted", permute)
    settings: dict[str, Any] = {"points": 3, "documents": 4}
    subject = Subject(toy, Context())
    (record,) = Barrier(against=resolve(folder), **settings).take(subject, Context())
    start, middle, end = record.detail["curve"]
    assert end["loss"] == pytest.approx(start["loss"], abs=1e-5), "the same function"
    assert record.value == middle["gap"] > 0.5 and record.low > 0
    (after,) = Barrier(against=toy, **settings).take(subject, Context())
    assert after.value == 0.0 and after.detail["curve"][0]["loss"] == start["loss"], "the subject is as it was"


def test_dialogue_answers_can_be_read_instead(markovs: tuple[Path, Path, Path]) -> None:
    one, two, _ = markovs
    data = Dialogues("d", {"test": (pair("a", "b a"), pair("b", "b b a"))})
    subject = Subject(resolve(one), Context(), data=data)
    (record,) = Barrier(against=resolve(two), on="dialogue", points=3).take(subject, Context())
    assert record.task == "dialogue" and record.n == 2
    counts = {"a": 2, "b": 3, END: 2}
    expected = -sum(n * math.log(FIRST["a"][t]) for t, n in counts.items()) / 7
    assert record.detail["curve"][0]["loss"] == pytest.approx(expected, abs=1e-4)


def test_the_curve_is_pooled_over_tokens_and_its_interval_pairs_documents() -> None:
    """Two documents of 10 and 30 tokens, losses of a quadratic: 1 + 4 s (1 - s) a token above the chord."""
    shares, tokens = [0.0, 0.5, 1.0], [10, 30]
    nlls = [[10.0, 60.0], [20.0, 96.0], [10.0, 72.0]]
    curve = curve_of(shares, nlls, tokens)
    assert [p.loss for p in curve.points] == pytest.approx([70 / 40, 116 / 40, 82 / 40])
    assert curve.top.share == 0.5 and curve.top.gap == pytest.approx(2.9 - 1.9)
    assert curve.relative == pytest.approx(1.0 / 1.9) and curve.instability == pytest.approx(1.0)
    above = [20 - 10, 96 - 66]  # by document; 1 a token in both, so nothing is left to spread
    assert [a / t for a, t in zip(above, tokens, strict=True)] == [1.0, 1.0]
    assert (curve.top.low, curve.top.high) == pytest.approx((1.0, 1.0))
    tilted = curve_of(shares, [nlls[0], [22.0, 96.0], nlls[2]], tokens)
    interval = mean_interval([1.05 + (d - 1.05 * t) / 20 for d, t in zip((12, 30), tokens, strict=True)])
    assert (tilted.top.gap, tilted.top.low, tilted.top.high) == pytest.approx((1.05, interval.low, interval.high))


def test_more_points_widen_the_intervals_of_each() -> None:
    tokens, ends = [10, 10, 20], [10.0, 11.0, 25.0]
    middle = [14.0, 13.0, 32.0]
    widths = []
    for inner in (1, 9):
        curve = curve_of([i / (inner + 1) for i in range(inner + 2)], [ends, *[middle] * inner, ends], tokens)
        widths.append(curve.points[1].high - curve.points[1].low)
        assert all(p.gap == pytest.approx(curve.points[1].gap) for p in curve.points[1:-1])
    assert widths[1] > widths[0]


def test_a_chord_that_slopes_is_no_barrier() -> None:
    for start, end in itertools.permutations((1.0, 3.0)):
        line = [[start + s * (end - start)] * 2 for s in SHARES]
        curve = curve_of(SHARES, line, [1, 1])
        assert curve.top.gap == pytest.approx(0.0, abs=1e-12)
        assert curve.instability == pytest.approx(1.0), "Frankle's number counts the slope"


def test_evaluate_takes_the_other_end(markovs: tuple[Path, Path, Path]) -> None:
    one, two, text = markovs
    result = evaluate(one, measures=["barrier"], against=two, perplexity=text, settings={"points": "3"})
    assert [r.measure for r in result.records] == ["barrier", "perplexity"]
    assert len(result.records[0].detail["curve"]) == 3


def test_what_cannot_be_joined_is_refused(markovs: tuple[Path, Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    one, _, text = markovs
    with pytest.raises(BadInput, match="give --against"):
        Barrier().take(Subject(resolve(one), Context()), Context())
    with pytest.raises(BadInput, match="has no text to read"):
        Barrier(against=resolve(one)).take(Subject(resolve(one), Context()), Context())
    with pytest.raises(BadInput, match=r"has shape .* a line joins models of one shape"):
        take(tiny_model, make_model(tmp_path / "wide", intermediate_size=96), text)
    with pytest.raises(BadInput, match="leave out --load-in"):
        Barrier(against=resolve(one)).take(Subject(resolve(one), Context()), Context(load_in="int8"))
    other = saved_markov(tmp_path / "other", "a c", {t: {"a": 0.5, "c": 0.5} for t in ("<s>", "a", "c")})
    with pytest.raises(BadInput, match="--against other: has another vocabulary"):
        take(one, other, text)
