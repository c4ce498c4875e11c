"""Vocabularies of different size or order: which rows are merged with which, and which tokenizer is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

import palimpsest as pal
from factory import copy_of, make_model
from merging.folders import config_of, make_folder, tensors_of, weights_of
from palimpsest.errors import BadInput
from palimpsest.merging.tokens import chosen_template, read_tokens

RUN = pal.Run(device="cpu", threads=2)
EMBEDDING = "model.embed_tokens.weight"
TOKENS = ["<unk>", "a", "b", "c", "d"]


def merge(out: Path, *models: Any, method: str = "linear", **said: Any) -> Any:
    return pal.merge(method, models, out, digests=False, run=RUN, **said)


def rows(folder: Path, name: str = EMBEDDING) -> list[float]:
    """The first number of each row."""
    return [round(float(v), 5) for v in weights_of(folder)[name][:, 0]]


def folder_of(path: Path, tokens: list[str] | dict[str, int] | None, numbers: list[float], **config: Any) -> Path:
    """A model whose embedding row i is all `numbers[i]`, and whose head's is 100 more."""
    table = torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 4).clone()
    said = {**tensors_of(rows=len(numbers)), EMBEDDING: table, "lm_head.weight": table + 100}
    return make_folder(path, said, tokens=tokens, config=config)


def test_models_that_agree_are_merged_whatever_is_asked_for(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", TOKENS, [0, 1, 2, 3, 4, 5, 6])
    folder_of(tmp_path / "b", TOKENS, [2, 3, 4, 5, 6, 7, 8])
    for how in ("same", "common", "base", "union"):
        merge(tmp_path / how, tmp_path / "a", tmp_path / "b", vocabulary=how)
        assert rows(tmp_path / how) == [1, 2, 3, 4, 5, 6, 7], "padding too"
        same = (tmp_path / how / "tokenizer.json").read_bytes() == (tmp_path / "a/tokenizer.json").read_bytes()
        assert same and config_of(tmp_path / how)["vocab_size"] == 7


def test_by_default_tokens_and_numbers_of_rows_have_to_agree(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", TOKENS, [0, 1, 2, 3, 4])
    folder_of(tmp_path / "b", ["<unk>", "a", "c", "b", "d"], [0, 1, 2, 3, 4])
    folder_of(tmp_path / "more", TOKENS, [0, 1, 2, 3, 4, 5])
    folder_of(tmp_path / "none", None, [0, 1, 2, 3, 4])
    folder_of(tmp_path / "longer", None, [0, 1, 2, 3, 4, 5])
    with pytest.raises(BadInput, match=r"tokenizers differ: '.' is \d in b and \d in a.*--vocabulary base.*union"):
        merge(tmp_path / "m", tmp_path / "a", tmp_path / "b")
    with pytest.raises(BadInput, match=r"differ in size: more has 6 rows of embeddings, a 5; --vocabulary base"):
        merge(tmp_path / "m", tmp_path / "a", tmp_path / "more")
    with pytest.raises(BadInput, match="differ in size: longer has 6"):
        merge(tmp_path / "m", tmp_path / "a", tmp_path / "longer")
    merge(tmp_path / "m", tmp_path / "a", tmp_path / "none")


def test_common_is_the_numbers_that_all_share_checked_to_be_the_same_tokens(tmp_path: Path) -> None:
    folder_of(tmp_path / "plain", TOKENS, [0, 1, 2, 3, 4], eos_token_id=4)
    folder_of(tmp_path / "padded", [*TOKENS, "<pad>"], [2, 3, 4, 5, 6, 7, 8, 9], eos_token_id=5)
    for number, models in enumerate((("plain", "padded"), ("padded", "plain"))):
        out = tmp_path / f"m{number}"
        merge(out, *(tmp_path / m for m in models), vocabulary="common")
        assert rows(out) == [1, 2, 3, 4, 5] and rows(out, "lm_head.weight") == [101, 102, 103, 104, 105]
        assert read_tokens(out) == {t: i for i, t in enumerate(TOKENS)}
        assert (config_of(out)["vocab_size"], config_of(out)["eos_token_id"]) == (5, 4)
    folder_of(tmp_path / "other", ["<unk>", "a", "x", "c", "d", "e"], [0, 1, 2, 3, 4, 5])
    with pytest.raises(BadInput, match="number 2 is 'x' in other and 'b' in plain; only 2 numbers are the same"):
        merge(tmp_path / "n", tmp_path / "plain", tmp_path / "other", vocabulary="common")


def test_base_keeps_the_first_models_tokens_and_takes_rows_of_others_by_token(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", TOKENS, [0, 10, 20, 30, 40, 50])
    folder_of(tmp_path / "b", ["d", "c", "x", "<unk>", "a"], [4, 3, 9, 0, 1])
    result = merge(tmp_path / "m", tmp_path / "a", tmp_path / "b", vocabulary="base")
    # b lacks token "b" and the padding row: there it takes the mean of those that have them, which is a's
    assert rows(tmp_path / "m") == [0, 5.5, 20, 16.5, 22, 50]
    assert rows(tmp_path / "m", "lm_head.weight") == [100, 105.5, 120, 116.5, 122, 150]
    assert read_tokens(tmp_path / "m") == {t: i for i, t in enumerate(TOKENS)} and "6 rows" in result.notes[0]


def test_a_token_that_a_model_lacks_takes_the_row_of_the_base_else_the_mean(tmp_path: Path) -> None:
    folder_of(tmp_path / "base", ["<unk>", "a"], [1, 1])
    folder_of(tmp_path / "x", ["<unk>", "a", "new"], [2, 2, 7])
    folder_of(tmp_path / "y", ["<unk>", "new", "a"], [3, 9, 3])
    folder_of(tmp_path / "z", ["<unk>"], [5])
    models = [tmp_path / n for n in "xyz"]
    merge(tmp_path / "m", *models, method="task-arithmetic", base=tmp_path / "base", vocabulary="union")
    # unk: 1 + (1 + 2 + 4); a: z has the base's row; new: the base and z have the mean of 7 and 9
    assert rows(tmp_path / "m") == [8, 1 + 1 + 2 + 0, 8 + (7 - 8) + (9 - 8) + 0]
    assert read_tokens(tmp_path / "m") == {"<unk>": 0, "a": 1, "new": 2}
    assert config_of(tmp_path / "m")["vocab_size"] == 3


def test_union_adds_what_only_others_have_behind_the_padding_or_in_it(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", TOKENS[:3], [0, 10, 20, 30])
    folder_of(tmp_path / "b", ["b", "<unk>", "x", "y", "a"], [2, 0, 5, 6, 1])
    merge(tmp_path / "m", tmp_path / "a", tmp_path / "b", vocabulary="union")
    assert read_tokens(tmp_path / "m") == {"<unk>": 0, "a": 1, "b": 2, "x": 3, "y": 4}
    assert rows(tmp_path / "m") == [0, 5.5, 11, (30 + 5) / 2, 6]


@given(data=st.data())
def test_every_token_of_a_union_is_the_mean_of_the_rows_that_models_have_of_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("union")
    words = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)
    tables: list[dict[str, float]] = []
    for number in range(data.draw(st.integers(2, 3))):
        tokens = data.draw(words)
        tables.append({t: float(10 * number + i) for i, t in enumerate(tokens)})
        folder_of(root / str(number), tokens, list(tables[-1].values()))
    merge(root / "m", *(root / str(i) for i in range(len(tables))), vocabulary="union")
    numbers = read_tokens(root / "m")
    found = rows(root / "m")
    assert numbers is not None and set(numbers) == set().union(*tables)
    for token, number in numbers.items():
        there = [t[token] for t in tables if token in t]
        mean = sum(there) / len(there)
        assert found[number] == pytest.approx(sum(t.get(token, mean) for t in tables) / len(tables), abs=1e-4)


def test_models_without_a_tokenizer_have_to_have_the_shape_of_the_one_that_is_kept(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", TOKENS, [0, 1, 2, 3, 4])
    folder_of(tmp_path / "b", ["a", "b"], [7, 8])
    folder_of(tmp_path / "none", None, [2, 3, 4, 5, 6])
    folder_of(tmp_path / "short", None, [2, 3])
    merge(tmp_path / "m", tmp_path / "a", tmp_path / "none", tmp_path / "b", vocabulary="base")
    assert rows(tmp_path / "m")[0] == pytest.approx((0 + 2 + 1) / 3, abs=1e-4)
    with pytest.raises(BadInput, match=r"short: has no tokenizer.json, so its 2 rows cannot be told apart; a has 5"):
        merge(tmp_path / "n", tmp_path / "a", tmp_path / "short", vocabulary="base")
    with pytest.raises(BadInput, match=r"short: has no tokenizer.json or vocab.json"):
        merge(tmp_path / "n", tmp_path / "short", tmp_path / "a", vocabulary="union")


def with_token(source: Path, folder: Path, token: str, rows: int) -> Path:
    """A copy of a model with one more token and `rows` rows, as a fine-tune that added a padding token has."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([token], special_tokens=True)
    model.resize_token_embeddings(rows)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_a_real_tokenizer_and_model_with_one_more_token(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = make_model(tmp_path / "base", layers=1, tied=tied)
    more = with_token(base, tmp_path / "more", "<extra>", 408)
    plain = AutoTokenizer.from_pretrained(base)
    for how, count in (("common", len(plain)), ("base", len(plain)), ("union", len(plain) + 1)):
        out = tmp_path / f"by-{how}"
        merge(out, base, more, vocabulary=how)
        tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
        assert len(tokenizer) == count == model.config.vocab_size == model.get_output_embeddings().weight.shape[0]
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
        text = "The lantern keeper<extra>of Veldt"
        original = AutoTokenizer.from_pretrained(more if how == "union" else base)
        assert tokenizer(text).input_ids == original(text).input_ids
        ids = torch.arange(30)[None]
        with torch.no_grad():
            wanted = AutoModelForCausalLM.from_pretrained(base)(ids).logits
            assert torch.allclose(model(ids).logits[..., : wanted.shape[-1]], wanted, atol=1e-5)
    merge(tmp_path / "kept", more, base, vocabulary="base")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "kept")) == len(plain) + 1
    assert torch.allclose(embedding(tmp_path / "kept")[len(plain)], embedding(more)[len(plain)])
    assert Tokenizer.from_file(str(tmp_path / "by-union" / "tokenizer.json")).token_to_id("<extra>") == len(plain)


def embedding(folder: Path) -> Tensor:
    return weights_of(folder)[EMBEDDING]


def test_a_tokenizer_file_that_is_broken_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", TOKENS, [0, 1, 2, 3, 4])
    (tmp_path / "a" / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(BadInput, match=r"tokenizer.json: is no tokenizer file"):
        merge(tmp_path / "m", tmp_path / "a", tmp_path / "a")


def test_tokens_are_read_from_every_form_of_tokenizer(tmp_path: Path) -> None:
    assert read_tokens(tmp_path) is None
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "added_tokens.json").write_text('{"<x>": 2}')
    assert read_tokens(tmp_path) == {"a": 0, "b": 1, "<x>": 2}
    unigram = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"7": {"content": "<y>"}}}')
    assert read_tokens(tmp_path) == {"<unk>": 0, "a": 1, "<y>": 7}


def test_chat_templates(tmp_path: Path, tiny_model: Path, tiny_model_no_template: Path) -> None:
    other = copy_of(tiny_model, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ other }}")
    assert chosen_template(None, [other]) is None
    assert chosen_template("{{ mine }}", []) == "{{ mine }}"
    assert chosen_template("auto", [tiny_model_no_template]) is None
    auto = chosen_template("auto", [other, tiny_model, tiny_model])
    assert auto is not None and "bos_token" in auto
    assert "<|im_start|>" in str(chosen_template("chatml", []))
    with pytest.raises(BadInput, match="chat_template: 'alpaca'"):
        chosen_template("alpaca", [])
