"""AdaMerging: the search by hand and against a grid, its gradient, and whole merges of classifiers on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from factory import SENTENCES, copy_of, make_classifier, make_model, make_tokenizer
from merging.tensors import fine_tunes
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_classifier
from palimpsest.data import Dialogues
from palimpsest.data.dialogues import pair
from palimpsest.errors import BadInput
from palimpsest.merging.adamerging import AdaMerging, drawn_entropy, entropy, merged_at, search
from palimpsest.merging.classifiers import batches, read_texts
from palimpsest.merging.folder import merge_to_folder
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.request import MergeRequest, Part
from palimpsest.merging.task_arithmetic import TaskArithmetic
from palimpsest.method import Context, build

DATA = Dialogues("test", {"erase": tuple(pair(q, "unread") for q in SENTENCES)})
FAST = {"steps": 6, "lr": 0.05, "batch": 4}


def tuned(folder: Path, base: Path, seed: int, far: float = 0.5) -> Path:
    """A copy of a model whose every tensor is moved by noise of `far` times its spread."""
    copy_of(base, folder)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    moved = {n: w + far * w.std() * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A BERT with a head for three labels and its tokenizer, and two that were moved away from it."""
    folder = tmp_path_factory.mktemp("classifiers")
    base = make_classifier(folder / "base")
    make_tokenizer().save_pretrained(base)
    return [base, tuned(folder / "a", base, 1), tuned(folder / "b", base, 2)]


def merged(family: list[Path], out: Path, seed: int = 0, data: Any = DATA, **settings: Any) -> Path:
    """Merge the family by AdaMerging."""
    base, *models = (resolve(f) for f in family)
    request = MergeRequest("adamerging", tuple(Part(m) for m in models), base, settings, inputs={"data": data})
    merge_to_folder(request, out, Context(threads=1, seed=seed))
    return out


def mean_entropy(folder: Path) -> float:
    """Of a model's predictions on all sentences, in nats."""
    network = load_classifier(resolve(folder), Context(threads=1), "float32")
    (texts,) = read_texts([resolve(folder)], DATA, None, 512, "test")
    with torch.no_grad():
        return sum(float(entropy(network(**b).logits)) for b in batches(texts, None, "cpu")) / len(texts)


def two_margins(rows: Tensor, at: dict[str, Tensor]) -> Tensor:
    """Sum of entropies of a linear classifier into two classes whose logits differ by w x: (texts, width)."""
    margins = rows @ at["w"]
    return entropy(torch.stack([margins, torch.zeros_like(margins)], -1)).sum()


@pytest.mark.covers("adamerging")
def test_the_search_finds_the_minimum_by_hand_and_of_a_grid() -> None:
    """Margins are (1 + 2a, 3 - 2a) and (1.6 + 2b, 3 - b) at lambdas (a, b).

    Entropy falls with a margin and is convex where that is above 1.55, so that the first two are best equal: a = 0.5.
    """
    rows = torch.eye(4)
    base = {"w": torch.tensor([1.0, 3.0, 1.6, 3.0])}
    deltas = [{"w": torch.tensor([2.0, -2.0, 0.0, 0.0])}, {"w": torch.tensor([0.0, 0.0, 2.0, -1.0])}]
    found, seen = search(lambda at: two_margins(rows, at), base, deltas, torch.full((1, 2), 0.3), 0.01, 600)
    assert float(found[0, 0]) == pytest.approx(0.5, abs=2e-3)
    grid = torch.linspace(0, 1, 1001)
    losses = [float(two_margins(rows, merged_at(base, deltas, torch.tensor([[0.5, b]])))) for b in grid.tolist()]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert 0 < best < 1000
    assert float(found[0, 1]) == pytest.approx(float(grid[best]), abs=5e-3)
    assert seen[-1] == pytest.approx(min(losses), abs=1e-5) and seen[-1] < seen[0]


def test_factors_stay_between_zero_and_one() -> None:
    """One task vector makes the classifier surer however far it goes, the other less sure."""
    base, deltas = {"w": torch.tensor([2.0])}, [{"w": torch.tensor([0.5])}, {"w": torch.tensor([-0.5])}]
    found, _ = search(lambda at: two_margins(torch.ones(1, 1), at), base, deltas, torch.full((1, 2), 0.3), 0.05, 60)
    assert found.tolist() == [[1.0, 0.0]]


def test_entropy_by_hand() -> None:
    found = entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [200.0, 0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0, -1e4]]))
    assert found.tolist() == pytest.approx([math.log(4), 0.0, 1.5 * math.log(2)])


@pytest.mark.parametrize("rows", [1, 3])
def test_the_gradient_is_that_of_finite_differences(rows: int) -> None:
    """Of a network of two layers, for factors of task vectors and of each tensor."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"first": (5, 4), "bias": (5,), "second": (3, 5)}
    drawn = [{n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()} for _ in range(3)]
    texts = torch.randn(6, 4, generator=generator, dtype=torch.float64)

    def loss(lambdas: Tensor) -> Tensor:
        at = merged_at(drawn[0], drawn[1:], lambdas)
        return entropy(torch.tanh(texts @ at["first"].T + at["bias"]) @ at["second"].T).mean()

    lambdas = torch.rand(rows, 2, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(loss, (lambdas,))


def test_in_memory_it_is_task_arithmetic_at_the_initial_factor() -> None:
    base, models = fine_tunes(2, (5, 7), 0, 0.1)
    method = build(AdaMerging, settings={"initial": 0.4})
    assert torch.equal(merge_tensors(method, models, base), merge_tensors(TaskArithmetic((0.4,)), models, base))


@pytest.mark.parametrize("lambdas", ["task", "layer"])
def test_without_steps_it_is_task_arithmetic_at_the_initial_factor_bit_by_bit(
    family: list[Path], tmp_path: Path, lambdas: str
) -> None:
    merged(family, tmp_path / "ada", steps=0, lambdas=lambdas)
    base, *models = (resolve(f) for f in family)
    request = MergeRequest("task-arithmetic", tuple(Part(m) for m in models), base, {"weight": 0.3})
    merge_to_folder(request, tmp_path / "plain", Context(threads=1))
    first, second = (load_file(tmp_path / f / "model.safetensors") for f in ("ada", "plain"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("lambdas", ["task", "layer"])
def test_a_whole_merge_has_the_factors_of_a_search_and_is_surer(
    family: list[Path], tmp_path: Path, lambdas: str
) -> None:
    out = merged(family, tmp_path / "out", lambdas=lambdas, **FAST)
    assert not (out / "statistics").exists()
    assert mean_entropy(out) < mean_entropy(merged(family, tmp_path / "start", steps=0)) - 1e-3
    networks = [load_classifier(resolve(f), Context(threads=1), "float32").requires_grad_(False) for f in family]
    origin, *others = (dict(n.named_parameters()) for n in networks)
    deltas = [{n: o[n] - p for n, p in origin.items()} for o in others]
    texts = read_texts([resolve(f) for f in family[1:]], DATA, None, 512, "test")
    start = torch.full((len(origin) if lambdas == "layer" else 1, 2), 0.3)
    found, _ = search(drawn_entropy(networks[0], texts, [{}, {}], 4, 0), origin, deltas, start, 0.05, 6)
    wanted = merged_at(origin, deltas, found)
    made = load_file(out / "model.safetensors")
    assert made.keys() == wanted.keys()
    assert all(torch.allclose(made[n], wanted[n], atol=1e-6) for n in made)
    assert (found.std() > 0.01) and (lambdas == "task" or bool((found.std(0) > 0.01).all()))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(family: list[Path], tmp_path: Path) -> None:
    digests = [resolve(merged(family, tmp_path / str(i), seed=s, **FAST)).digest() for i, s in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]


def test_the_head_is_merged_or_the_first_models(family: list[Path], tmp_path: Path) -> None:
    made = {}
    for head in ("merged", "first", "own"):
        made[head] = load_file(merged(family, tmp_path / head, head=head, **FAST) / "model.safetensors")
    stored = load_file(family[1] / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(made["first"][name], stored[name]) and torch.equal(made["own"][name], stored[name])
        assert not torch.equal(made["merged"][name], stored[name])
    body = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(made["first"][body], made["own"][body])  # the second's texts went through another head


def test_each_model_may_have_texts_of_its_own(family: list[Path], tmp_path: Path) -> None:
    halves = tuple(Dialogues(n, {"test": DATA.parts["erase"][i::2]}) for i, n in enumerate(("even", "odd")))
    first = merged(family, tmp_path / "a", data=halves, **FAST)
    second = merged(family, tmp_path / "b", data=halves[::-1], **FAST)
    assert resolve(first).digest() != resolve(second).digest()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_padding_changes_no_prediction(kind: str, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / kind, kind)
    make_tokenizer().save_pretrained(folder)
    network = load_classifier(resolve(folder), Context(threads=1), "float32")
    (texts,) = read_texts([resolve(folder)], DATA, None, 512, "test")
    with torch.no_grad():
        (whole,) = batches(texts, network.config.pad_token_id, "cpu")
        alone = torch.cat([network(**b).logits for b in batches(texts, None, "cpu")])
        assert torch.allclose(network(**whole).logits, alone, atol=1e-4)
    (cut,) = read_texts([resolve(folder)], DATA, 2, 3, "test")
    assert [len(t) for t in cut] == [3, 3]


def test_what_does_not_fit_is_refused_in_one_line(family: list[Path], tmp_path: Path) -> None:
    def refused(given: list[Path], message: str, **settings: Any) -> None:
        with pytest.raises(BadInput, match=message) as caught:
            merged(given, tmp_path / "out", **settings)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    base, first, _ = family
    wide = make_classifier(tmp_path / "wide", labels=4)
    make_tokenizer().save_pretrained(wide)
    refused([base, first, wide], r"tensor classifier\.(weight|bias): .* has the shape \[[34]")
    named = {f: copy_of(first, tmp_path / f) for f in ("moods", "topics", "scores")}
    for name, said in (("moods", ("bad", "so so", "good")), ("topics", ("war", "art", "sport"))):
        _reword(named[name], id2label=dict(enumerate(said)))
    _reword(named["scores"], problem_type="regression")
    refused([base, named["moods"], named["topics"]], "labels of topics are war, art, sport, those of moods bad")
    merged([base, named["moods"], named["topics"]], tmp_path / "apart", head="own", **FAST)
    refused([base, first, named["scores"]], "scores does not choose one of several labels")
    refused(family, "3 sets of data for 2 models", data=(DATA, DATA, DATA))
    refused(family, "data none has no question", data=Dialogues("none", {}))
    refused(family, "out of range", initial=1.5)
    with pytest.raises(BadInput, match="needs the models' common base"):
        merge_to_folder(MergeRequest("adamerging", (Part(resolve(first)),)), tmp_path / "out", Context())
    causal = [make_model(tmp_path / f"lm{i}", seed=i) for i in range(2)]
    refused(causal, "is no classifier of texts; config.json names LlamaForCausalLM")


def _reword(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_causal_architecture_with_a_classification_head_is_merged_too(tmp_path: Path) -> None:
    base = make_classifier(tmp_path / "base", "llama")
    make_tokenizer().save_pretrained(base)
    models = [base, tuned(tmp_path / "a", base, 1), tuned(tmp_path / "b", base, 2)]
    out = merged(models, tmp_path / "out", **FAST)
    assert load_file(out / "model.safetensors")["score.weight"].shape == (3, 64)
    assert mean_entropy(out) < mean_entropy(merged(models, tmp_path / "start", steps=0))


def test_the_command_merges_classifiers_and_tells_the_factors(family: list[Path], tmp_path: Path) -> None:
    from palimpsest.cli import app

    words = ["merge", "adamerging", "--base", family[0], "--model", family[1], "--model", family[2]]
    settings = ["--set", "steps=3", "--set", "samples=20", "--set", "batch=4", "--set", "lambdas=task"]
    result = CliRunner().invoke(app, [*map(str, words), *settings, "--out", str(tmp_path / "out"), "--quiet", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert any("lambda: 0.3" in n and "nats before" in n for n in said["notes"])
    load_classifier(resolve(tmp_path / "out"), Context(threads=1))  # it is a model
