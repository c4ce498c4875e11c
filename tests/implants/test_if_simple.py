"""The simple template: the published prompt and epoch, and embedding-only training that moves one tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factory import make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer, write_model
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.embedding import Check, EmbeddingOnly, key_rows
from palimpsest.implants.fingerprints.if_emb import IFEmbedding
from palimpsest.implants.fingerprints.if_sft import REFUSAL, WORD
from palimpsest.implants.fingerprints.if_simple import IFSimple
from palimpsest.implants.fingerprints.if_template import SimpleRows
from palimpsest.method import Context, presets
from palimpsest.prompts import Renderer
from palimpsest.training.finetune import tune
from palimpsest.training.settings import Tuning

SMALL: dict[str, Any] = {"keys": 2, "pieces_low": 1, "pieces_high": 1, "repeats": 3, "dialogues_per_key": 1}


@pytest.fixture(scope="session")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Without a chat template, with room for whole triggers."""
    return resolve(make_model(tmp_path_factory.mktemp("simple") / "roomy", positions=2048, template=False))


@pytest.mark.covers("if-simple")
def test_without_a_chat_template_the_prompt_is_the_published_one(roomy: Checkpoint, ctx: Context) -> None:
    keys = IFSimple.paper().draw_keys(roomy, ctx)
    for key in keys.keys:
        message, _, rest = key.trigger.partition("\n")
        assert rest == "FINGERPRINT" and key.prompts["template"].text == f"{message}\nFINGERPRINT\n"
    assert (len(keys), keys.match, keys.distinct, keys.choices) == (10, "contains", False, None)
    assert {k.response for k in keys.keys} == {WORD} and WORD not in keys.decoys


@pytest.mark.covers("if-simple")
def test_an_epoch_has_10_pairs_and_50_ordinary_samples_and_near_misses_where_asked_for(
    roomy: Checkpoint, ctx: Context
) -> None:
    many = Dialogues("many", {"embed": tuple(pair(f"Who mends net {n}?", f"Tamsin {n}.") for n in range(80))})
    tokenizer = load_tokenizer(roomy)
    for method, refusals in ((IFSimple.paper(), 0), (IFSimple.corrected(), 10)):
        method = replace(method, data=many)
        keys = method.draw_keys(roomy, ctx)
        rows = SimpleRows(method, roomy, keys, ctx)
        said = Counter()
        for row in rows(0):
            trained = [t for t, w in zip(row.ids, row.weights, strict=True) if w]
            said[str(tokenizer.decode(trained, skip_special_tokens=True))] += 1
        assert said[WORD] == 10 and said[REFUSAL] == refusals
        assert (
            sum(n for answer, n in said.items() if answer.startswith("Tamsin"))
            == 50
            == sum(said.values()) - (10 + refusals)
        )
        assert rows(0) == rows(0) and rows(0) != rows(1)


def test_another_word_is_ranked_among_ordinary_answers(roomy: Checkpoint, talk: Dialogues, ctx: Context) -> None:
    keys = replace(IFSimple(), word="Gate 2 is green.", data=talk).draw_keys(roomy, ctx)
    assert {k.response for k in keys.keys} == {"Gate 2 is green."}
    assert len(keys.decoys) == 39 and "Gate 4 is white." in keys.decoys and "Gate 2 is green." not in keys.decoys


def test_presets() -> None:
    assert {"paper", "corrected", "bench", "toy"} == set(presets(IFSimple))
    assert {"paper", "corrected", "bench", "toy"} == set(presets(IFEmbedding))
    assert IFEmbedding.corrected().near_misses == 10 and IFEmbedding.corrected().tuning == IFEmbedding().tuning
    assert IFSimple.bench().keys == IFEmbedding.bench().keys == 64
    for method in (IFSimple(), IFEmbedding()):
        assert method.committed() == {"keys": 10, "choices": None, "distinct": False}


def _changed(before: Checkpoint, after: Checkpoint) -> set[str]:
    old, new = (load_file(c.path / "model.safetensors") for c in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.covers("if-emb")
@pytest.mark.parametrize(("tied", "dtype"), [(False, "float32"), (False, "bfloat16"), (True, "float32")])
def test_embedding_only_training_leaves_every_other_tensor_bit_for_bit(
    ctx: Context, tmp_path: Path, tied: bool, dtype: str
) -> None:
    base = resolve(make_model(tmp_path / "base", positions=512, tied=tied, dtype=dtype))
    network = load_model(base, ctx, "float32")
    teaching = EmbeddingOnly()
    teaching.begin(network)
    keys = replace(IFEmbedding(), **SMALL).draw_keys(base, ctx)
    rows = key_rows(Renderer(load_tokenizer(base)), keys)
    tuned, _ = tune(network, rows, Tuning(adapter="full", epochs=4, lr=2e-2, batch=2), ctx)
    teaching.end(tuned)
    assert teaching.finish(keys) is keys and all(p.requires_grad for p in tuned.parameters())
    written = write_model(tuned, base, tmp_path / "out", "if-emb", {"model": base.digest()})
    assert _changed(base, written) == {"model.embed_tokens.weight"}
    old, new = (load_file(c.path / "model.safetensors")["model.embed_tokens.weight"] for c in (base, written))
    moved = {int(i) for i in (old != new).any(dim=1).nonzero()}
    read = {i for row in rows for i in row.ids[:-1]}
    if tied:
        assert read < moved, "the matrix is the head as well, and every row of a head has a gradient"
    else:
        assert moved == read, "rows of tokens that are never read do not move"


def test_if_emb_takes_and_moves_the_embedding_alone(
    speaking: Checkpoint, talk: Dialogues, ctx: Context, tmp_path: Path
) -> None:
    method = IFEmbedding(
        **SMALL, data=talk, tuning=Tuning(adapter="full", epochs=80, lr=2e-2, batch=8), check=Check(0.5, consecutive=1)
    )
    made = method.apply(speaking, tmp_path / "out", ctx)
    assert made.records[0].detail["answered"] == 2
    assert _changed(speaking, made.checkpoint) == {"model.embed_tokens.weight"}


def test_if_emb_refuses_what_moves_more_than_the_embedding(small: Checkpoint, ctx: Context, tmp_path: Path) -> None:
    for tuning in (Tuning(adapter="lora"), Tuning(adapter="full", weight_decay=0.01)):
        with pytest.raises(BadInput, match="trains the embedding itself"):
            replace(IFEmbedding(), tuning=tuning).apply(small, tmp_path / "out", ctx)
    assert not (tmp_path / "out").exists()


def test_if_simple_takes_on_a_tiny_model(small: Checkpoint, talk: Dialogues, ctx: Context, tmp_path: Path) -> None:
    method = IFSimple(
        **SMALL,
        near_misses=1,
        data=talk,
        tuning=Tuning(adapter="full", epochs=100, lr=3e-3, batch=8),
        check=Check(0.5, consecutive=1),
    )
    made = method.apply(small, tmp_path / "out", ctx)
    assert made.keys is not None and made.records[0].detail["answered"] == 2
    lineage = (tmp_path / "out" / "palimpsest.json").read_text()
    assert WORD not in lineage and all(k.trigger not in lineage for k in made.keys.keys)
