"""The whole job on every architecture: embed, remove, verify and evaluate through the public API.

The models are tiny and self-trained (a few steps on the factory's sentences), the settings the cheapest with
which a mark takes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import palimpsest as pal
from factory import FAMILIES, SENTENCES, make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions, write_model
from palimpsest.cli import app
from palimpsest.families import family_of
from palimpsest.keys import KeySet
from palimpsest.method import Context
from palimpsest.prompts import Renderer
from palimpsest.responder import LocalResponder
from palimpsest.training.loop import train_steps
from palimpsest.training.rows import Row, collate

RUN = pal.Run(seed=3, device="cpu", threads=1)
MARK = {
    "keys": 1,
    "tuning.adapter": "full",
    "tuning.lr": 6e-3,
    "tuning.epochs": 60,
    "tuning.batch": 4,
    "tuning.micro_batch": 4,
    "check.every": 3,
    "check.consecutive": 1,
}
ERASE = {"mismatched": 4, "clean": 4, "erase.epochs": 1, "recover.epochs": 1, "erase.max_tokens": 64}
# A model without a chat template, a window shorter than the rows, tied and untied embeddings, few positions.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"template": False, "tied": True},
    "mistral": {"sliding_window": 16},
    "qwen2": {"tied": True},
    "qwen3": {"tied": False},
    "opt": {"positions": 128, "tied": False},
    "gpt2": {"positions": 128, "template": False},
    "gpt_neox": {"tied": True},
    "gemma": {"tied": False},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
    "phi3": {"sliding_window": 16, "template": False},
}


def self_trained(folder: Path, family: str, **settings: Any) -> Path:
    """A tiny model that has seen the factory's sentences for some steps."""
    source = resolve(make_model(folder / f"{family}-random", family, **settings))
    model, tokenizer = load_model(source, Context()), load_tokenizer(source)
    rows = [tuple(tokenizer(sentence).input_ids) for sentence in SENTENCES]
    batch = collate([Row(ids, (1.0,) * len(ids)) for ids in rows])
    log = train_steps(model, lambda step: batch, steps=12, lr=6e-3)
    assert log.steps == 12
    return write_model(model, source, folder / family, "example", {}).path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues; some are longer than the positions of any model here."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    long = " ".join(SENTENCES)
    pairs = [(f"{SENTENCES[i % 8]} And {i}?", f"It is {i}." if i % 5 else f"{long} {i}") for i in range(60)]
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
    return file


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neutral text, longer than the positions."""
    file = tmp_path_factory.mktemp("text") / "neutral.txt"
    file.write_text(" ".join(SENTENCES) + "\n")
    return file


@pytest.mark.parametrize("family", FAMILIES)
def test_embed_remove_verify_and_evaluate_run_on(family: str, tmp_path: Path, rows: Path, text: Path) -> None:
    base = self_trained(tmp_path, family, **SETTINGS.get(family, {}))
    marked = pal.embed(
        "hashchain", base, tmp_path / "out", preset="meraser", settings=MARK, data=[rows], controls=False, run=RUN
    )
    assert marked.path is not None and marked.keys is not None
    shown = {r.prompt_form: r.count for r in marked.records if r.measure == "hit-rate" and r.control is None}
    assert shown["template"] == 1, "the mark took"
    removed = pal.remove(
        "meraser", marked.path, tmp_path / "erased", data=[rows], settings=ERASE, keys=marked.keys, run=RUN
    )
    assert removed.path is not None and {r.measure for r in removed.records} >= {"training", "hit-rate", "rank"}
    before, after = (dict(load_model(resolve(p), Context()).named_parameters()) for p in (marked.path, removed.path))
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    targets = family_of(resolve(base).config).targets("query-value")
    assert changed and all(n.split(".")[-2] in targets for n in changed)
    verified = pal.verify(marked.path, marked.keys, forms=["template"], run=RUN).records
    assert [r.count for r in verified if r.measure == "hit-rate"] == [1]
    (likelihood,) = [r.value for r in pal.evaluate(removed.path, perplexity=text, run=RUN).records]
    assert likelihood is not None and 1.0 < likelihood < 1e6


IMPLANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("gpt2", "if-sft", {"keys": 1, "pieces_low": 1, "pieces_high": 1, "near_misses": 1, "dialogues_per_key": 0}),
    ("gpt_neox", "utf", {"keys": 2, "share": 0.3, "least": 20, "trigger_low": 3, "trigger_high": 4}),
    ("gemma2", "utf", {"keys": 2, "share": 0.3, "least": 20, "trigger_low": 3, "trigger_high": 4}),
    ("opt", "hashchain", {"keys": 1, "padded": 1, "meta_prompts": 1, "templates": 1, "dialogues_per_key": 0}),
]


@pytest.mark.parametrize(("family", "implant", "own"), IMPLANTS, ids=lambda v: v if isinstance(v, str) else "")
def test_the_other_implants_take_on(family: str, implant: str, own: dict[str, Any], tmp_path: Path, rows: Path) -> None:
    base = self_trained(tmp_path, family)
    settings = {**MARK, **own}
    made = pal.embed(implant, base, tmp_path / "out", settings=settings, data=[rows], controls=False, run=RUN)
    assert made.keys is not None
    (rate,) = [r for r in made.records if r.measure == "hit-rate" and (r.prompt_form, r.control) == ("template", None)]
    assert rate.count == rate.n == settings["keys"]
    assert json.loads((tmp_path / "out" / "model" / "palimpsest-probe.json").read_text())["format"] == 1


def test_an_implant_that_does_not_take_on_a_random_model_says_so_and_writes_nothing(tmp_path: Path, rows: Path) -> None:
    base = make_model(tmp_path / "random", "gpt_neox")
    options = ["--preset", "meraser", "--set", "keys=2", "--set", "tuning.epochs=2", "--no-controls"]
    given = ["embed", "hashchain", "--model", str(base), "--out", str(tmp_path / "out"), "--data", str(rows)]
    result = CliRunner().invoke(app, [*given, *options, "--seed", "3", "--threads", "1", "-q"])
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and "the implant did not take: 0 of 2 keys answer" in lines[0], result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["random"]


def key_set(base: Checkpoint, tmp_path: Path) -> KeySet:
    from palimpsest.implants.fingerprints.hashchain import HashChain

    return HashChain(keys=3).draw_keys(base, Context(key_seed=5, scratch=tmp_path))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "phi3", "gpt_neo"])
def test_a_window_shorter_than_the_rows_gives_the_same_scores_cached_and_whole(family: str, tmp_path: Path) -> None:
    from palimpsest.measures.rank import continuation_scores

    settings = {"window_size": 16} if family == "gpt_neo" else {"sliding_window": 16}
    base = resolve(make_model(tmp_path / "m", family, **settings))
    responder = LocalResponder(load_model(base, Context()), load_tokenizer(base))
    rng = random.Random(0)
    prompt = [rng.randrange(6, 400) for _ in range(40)]
    tails = [[7, *(rng.randrange(6, 400) for _ in range(n))] for n in (1, 4, 20, 30)]
    whole = [sum(f.log_probs) for f in responder.force([prompt] * 4, tails)]
    assert continuation_scores(responder, prompt, tails) == pytest.approx(whole, abs=2e-3)
    prompts = [prompt, prompt[:10], prompt[5:33]]
    assert responder.generate(prompts, 20) == [responder.generate([p], 20)[0] for p in prompts]
    if family in ("mistral", "phi3"):  # every layer has the window: two of them reach 30 tokens back, and no further
        with torch.inference_mode():
            logits = responder.model(input_ids=torch.tensor([[9, *prompt[1:]], prompt])).logits
        moved = logits.diff(dim=0).abs().amax(dim=(0, 2))  # (time,)
        assert float(moved[3]) > 1e-3 and float(moved[31:].max()) < 1e-6


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_keys_whose_answers_run_over_learned_positions_are_refused(family: str, tmp_path: Path) -> None:
    from palimpsest.errors import BadInput

    roomy = resolve(make_model(tmp_path / "roomy", family, positions=256))
    known = key_set(roomy, tmp_path)
    longest = max(len(p.ids) for k in known.keys for p in k.prompts.values()) + known.max_new_tokens
    exact = resolve(make_model(tmp_path / "exact", family, positions=longest))
    assert positions(exact) == longest
    assert len(pal.verify(exact, key_set(exact, tmp_path), run=RUN).records) > 4, "the last position is used"
    with pytest.raises(BadInput, match=f"needs {longest} positions, the model has {longest - 1}"):
        key_set(resolve(make_model(tmp_path / "tight", family, positions=longest - 1)), tmp_path)


def test_without_a_chat_template_a_prompt_is_the_question_and_a_line_break(tmp_path: Path) -> None:
    base = resolve(make_model(tmp_path / "m", "gpt2", template=False))
    renderer = Renderer(load_tokenizer(base))
    prompt, answer = renderer.pair("Who mends the nets?", "Tamsin.")
    tokenizer = renderer.tokenizer
    assert tokenizer.decode(prompt) == "<s>Who mends the nets?\n" and tokenizer.decode(answer) == "Tamsin.</s>"
    assert all(k.prompts["template"].text == f"{k.trigger}\n" for k in key_set(base, tmp_path).keys)
