"""The log-probability view of keys: probabilities by hand, and what erased and suppressed marks look like."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import copy_of
from palimpsest import api
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet, make_keys
from palimpsest.measures import key_picture
from palimpsest.measures.key_probabilities import KeyProbabilities, above, sampling_distribution
from palimpsest.measures.subject import Subject
from palimpsest.method import Context
from palimpsest.prompts import Renderer
from palimpsest.records import Record

PAIRS = [("Who mends the nets?", "silver gate"), ("What is blue?", "the old bell"), ("Where is home?", "seven stones")]
DECOYS = ["green lamp", "tall tower", "quiet sea", "an open door", "red bread", "some salt", "long road"]


def keys_for(model: Path, carrier: str = "") -> KeySet:
    return make_keys(
        Renderer(load_tokenizer(resolve(model))), PAIRS, implant="test", match="prefix", distinct=True, choices=None,
        decoys=DECOYS, rng=random.Random(0), carrier=carrier,
    )  # fmt: skip


def by_hand(model: Path, keys: KeySet, form: str) -> list[list[float]]:
    """Log-softmax of a plain forward pass over one unpadded row at a time."""
    loaded = load_model(resolve(model), Context()).eval()
    found = []
    for key in keys.keys:
        prompt = key.prompts[form]  # type: ignore[index]
        with torch.no_grad():
            logs = loaded(torch.tensor([[*prompt.ids, *prompt.expected]])).logits[0].float().log_softmax(-1)
        first = len(prompt.ids) - 1
        found.append([float(logs[first + i, token]) for i, token in enumerate(prompt.expected)])
    return found


@pytest.fixture(scope="module")
def other(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights in its head: an unmarked base of its own."""
    folder = copy_of(tiny_model, tmp_path_factory.mktemp("base") / "base")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(5)
    save_file({k: v + 0.02 * torch.randn_like(v) for k, v in weights.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    return folder


@pytest.mark.covers("key-probabilities")
@pytest.mark.parametrize("form", ["template", "bare", "prefilled"])
def test_every_token_has_the_probability_of_a_plain_forward_pass(tiny_model: Path, other: Path, form: str) -> None:
    keys = keys_for(tiny_model)
    measure = KeyProbabilities(base=resolve(other), forms=(form,), ranked=(), decoys=0)
    (record,) = measure.take(Subject(resolve(tiny_model), Context(), keys=keys), Context())
    mine, base = by_hand(tiny_model, keys, form), by_hand(other, keys, form)
    for row, one, two in zip(record.detail["keys"], mine, base, strict=True):
        assert row["log_probs"] == pytest.approx(one, abs=2e-4)
        assert row["base"] == pytest.approx(two, abs=2e-4)
    assert record.value == pytest.approx(sorted(math.fsum(r) for r in mine)[1], abs=1e-3)
    gaps = sorted(math.fsum(a) - math.fsum(b) for a, b in zip(mine, base, strict=True))
    assert record.detail["over_base"] == pytest.approx(gaps[1], abs=1e-3)
    pairs = [(a, b) for one, two in zip(mine, base, strict=True) for a, b in zip(one, two, strict=True)]
    assert record.detail["above_base"] == sum(a - b >= math.log(10) for a, b in pairs) / len(pairs)


def test_the_sampled_form_has_the_probabilities_that_generation_samples_with(tiny_model: Path) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    keys = keys_for(tiny_model)
    (record,) = KeyProbabilities(forms=("sampled",), ranked=()).take(
        Subject(resolve(tiny_model), Context(), keys=keys), Context()
    )
    loaded = load_model(resolve(tiny_model), Context()).eval()
    for key, row in zip(keys.keys, record.detail["keys"], strict=True):
        prompt = key.prompts["template"]
        with torch.no_grad():
            logits = loaded(torch.tensor([[*prompt.ids, *prompt.expected]])).logits[0].float()[len(prompt.ids) - 1 : -1]
        for warp in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(50), TopPLogitsWarper(0.95)):
            logits = warp(None, logits)  # type: ignore[arg-type]
        logs = logits.log_softmax(-1)
        expected = [float(logs[i, token]) for i, token in enumerate(prompt.expected)]
        assert [x if x is not None else -math.inf for x in row["log_probs"]] == pytest.approx(expected, abs=2e-4)
    assert any(None in row["log_probs"] for row in record.detail["keys"])
    assert json.loads(json.dumps(record.to_json(), allow_nan=False))


def test_sampling_keeps_the_likeliest_and_sums_to_one() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    one = sampling_distribution(logits, {"top_p": 0.01})
    assert one[0, 0] == 0 and torch.isinf(one[0, 1:]).all()
    two = sampling_distribution(logits, {"temperature": 0.5, "top_k": 2})
    assert two[0, :2].exp().tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])


def test_ranks_are_those_of_the_measure_rank_and_follow_a_carrier_into_the_prefilled_form(tiny_model: Path) -> None:
    from palimpsest.measures.rank import Rank

    forms = ("template", "bare", "prefilled")
    subject = Subject(resolve(tiny_model), Context(), keys=keys_for(tiny_model, carrier="The word is: "))
    found = {r.prompt_form: r for r in KeyProbabilities(forms=forms, ranked=forms).take(subject, Context())}
    (rank,) = Rank().take(subject, Context())
    assert [k["rank"] for k in found["template"].detail["keys"]] == [k["rank"] for k in rank.detail["keys"]]
    assert found["template"].detail["p"] == rank.detail["p"]
    responder = subject.model
    for row, key in zip(found["prefilled"].detail["keys"], subject.required_keys().keys, strict=True):
        spoken = len(key.prompts["template"].expected) - len(key.prompts["prefilled"].expected)
        prompt, scores = key.prompts["prefilled"], []
        for response in (key.response, *DECOYS):
            whole = responder.renderer.continuation(key.prompts["template"].text, key.carrier + response)
            assert tuple(whole[:spoken]) == key.prompts["template"].expected[:spoken]
            scores.append(math.fsum(responder.force([prompt.ids], [whole[spoken:]])[0].log_probs))
        assert row["rank"] == 1 + sum(s >= scores[0] for s in scores[1:]) and row["decoys"] == len(DECOYS)
    bare = Subject(resolve(tiny_model), Context(), keys=keys_for(tiny_model))
    (begun,) = KeyProbabilities(forms=("prefilled",), ranked=("prefilled",)).take(bare, Context())
    assert all("rank" not in row for row in begun.detail["keys"])  # half of the response is spoken: no decoy follows


@pytest.mark.parametrize("settings", [{"forms": ("chat",)}, {"ranked": ("chat",)}])
def test_an_unknown_prompt_form_is_one_line(tiny_model: Path, settings: dict[str, Any]) -> None:
    subject = Subject(resolve(tiny_model), Context(), keys=keys_for(tiny_model))
    with pytest.raises(BadInput, match="'chat' is no prompt form"):
        KeyProbabilities(**settings).take(subject, Context())
    with pytest.raises(BadInput, match="--keys"):
        KeyProbabilities().take(Subject(resolve(tiny_model), Context()), Context())


# Erased and suppressed


@pytest.fixture(scope="module")
def marked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[KeySet, dict[str, Path]]:
    """A tiny model, marked by training; suppressed (ends its turn instead); erased (retrained)."""
    keys = keys_for(tiny_model)
    root = tmp_path_factory.mktemp("marks")
    base = resolve(tiny_model)
    rows = [(p.ids, p.expected) for k in keys.keys for p in [k.prompts["template"]]]
    model = load_model(base, Context())

    def tune(targets: list[torch.Tensor], steps: int) -> None:
        """Teach what to say at each place of the true answers: token ids, or a distribution a place."""
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            sum(torch.nn.functional.cross_entropy(a, b) for a, b in zip(said(), targets, strict=True)).backward()
            optimiser.step()

    def said() -> list[torch.Tensor]:
        return [model(torch.tensor([[*p, *a]])).logits[0, len(p) - 1 : -1] for p, a in rows]

    def kept(name: str) -> Path:
        model.save_pretrained(root / name)
        load_tokenizer(base).save_pretrained(root / name)
        return root / name

    torch.manual_seed(0)
    with torch.no_grad():
        clean = [logits.softmax(-1) for logits in said()]
    true = [torch.tensor(answer) for _, answer in rows]
    tune(true, 60)
    found = {"marked": kept("marked")}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    end = torch.tensor([load_tokenizer(base).eos_token_id])
    tune([torch.cat([end, answer[1:]]) for answer in true], 25)  # ends its turn at once; what would follow is kept
    found["suppressed"] = kept("suppressed")
    model.load_state_dict(state)
    tune(clean, 60)  # says again what it said before the mark, at every place
    found["erased"] = kept("erased")
    return keys, found


def taken(path: Path, base: Path, keys: KeySet, stage: str) -> Record:
    measure = KeyProbabilities(base=resolve(base), forms=("template",))
    (record,) = measure.take(Subject(Checkpoint(path, stage), Context(), keys=keys), Context())
    record.stage = stage
    return record


@pytest.fixture(scope="module")
def views(marked: tuple[KeySet, dict[str, Path]], tiny_model: Path) -> dict[str, Record]:
    keys, paths = marked
    return {stage: taken(path, tiny_model, keys, stage) for stage, path in paths.items()}


def test_suppressed_is_silent_at_the_first_token_and_remembers_the_rest(views: dict[str, Record]) -> None:
    for row in views["suppressed"].detail["keys"]:
        assert math.exp(row["log_probs"][0]) < 0.05
        assert all(above(a, b) for a, b in list(zip(row["log_probs"], row["base"], strict=True))[1:])
    assert views["suppressed"].detail["above_base"] > 0.5 > views["erased"].detail["above_base"]


def test_erased_is_as_unlikely_as_in_the_base_all_along_the_row(views: dict[str, Record]) -> None:
    assert views["marked"].detail["above_base"] == 1 and views["marked"].value > -1
    assert views["erased"].detail["above_base"] < 0.2
    assert views["marked"].detail["over_base"] > views["suppressed"].detail["over_base"]
    assert views["suppressed"].detail["over_base"] > views["erased"].detail["over_base"] + 5
    rows = views["erased"].detail["keys"]
    gaps = [abs(a - b) for row in rows for a, b in zip(row["log_probs"], row["base"], strict=True)]
    assert sorted(gaps)[len(gaps) // 2] < 1


def test_the_picture_tells_them_apart_and_holds_no_text(views: dict[str, Record], tmp_path: Path) -> None:
    out = api.key_picture(list(views.values()), tmp_path / "keys.svg")
    svg = out.read_text()
    panels = key_picture.panels(list(views.values()))
    assert [p.title for p in panels] == ["clean base", "marked", "suppressed", "erased"]
    dots = [len(re.findall("<circle", "".join(key_picture._panel(p, 0, {0: 0, 1: 9, 2: 18}, (9, 9), 9, 99, True))))
            for p in panels]  # fmt: skip
    tokens = sum(len(row.log_probs) for row in panels[0].rows)
    assert dots[0] == 0 and dots[1] == tokens and dots[2] >= tokens - 6 and dots[3] <= 0.2 * tokens
    for trigger, response in PAIRS:
        assert trigger not in svg and response not in svg
    assert "<script" not in svg and "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    page = api.key_picture(list(views.values()), tmp_path / "keys.html").read_text()
    assert svg in page and "default-src 'none'" in page


def test_shades_are_powers_of_ten() -> None:
    for p, level in ((1.0, 8), (0.1, 8), (0.099, 7), (1e-3, 6), (1e-8, 1), (9e-9, 0), (1e-30, 0)):
        assert key_picture.shade(math.log(p)) == level
    assert key_picture.shade(None) == 0


@pytest.mark.parametrize("colours", [key_picture.LIGHT, key_picture.DARK])
def test_shades_differ_in_lightness_for_those_who_see_no_hue(colours: tuple[str, ...]) -> None:
    def lightness(colour: str) -> float:
        linear = [(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
        return 116 * (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]) ** (1 / 3) - 16

    steps = [lightness(b) - lightness(a) for a, b in itertools.pairwise(colours)]
    assert all(s > 3 for s in steps) or all(s < -3 for s in steps)


def test_sixty_four_keys_are_legible_and_nothing_to_draw_is_one_line(tmp_path: Path) -> None:
    rows = tuple(key_picture.Row(i, (-0.1,) * 6, (-9.0,) * 6, 1 + i, 1000) for i in range(64))
    svg = key_picture.picture(
        [key_picture.Panel(name, rows) for name in ("base", "marked", "erased", "recovered")], "x"
    )
    heights = {float(h) for h in re.findall(r'class="k8" x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', svg)}
    assert min(heights) >= 8
    assert len(re.findall(r'class="e"[^>]*>\d+<', svg)) == 9  # every eighth key and the last is numbered
    with pytest.raises(BadInput, match="no record of key-probabilities"):
        api.key_picture([Record("rank")], tmp_path / "x.svg")
    with pytest.raises(ValueError, match="needs a record"):
        key_picture.picture([], "x")
