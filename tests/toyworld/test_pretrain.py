"""Pretraining from text: clear refusals, packing that loses nothing, the same model from the same seed."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from palimpsest.errors import BadInput  # noqa: E402
from palimpsest.training.corpus import ANSWER, TEXT, pack, read_dialogues, read_texts, render_dialogue, train_tokenizer  # noqa: E402
from palimpsest.training.pretrain import PretrainSpec, documents, load_spec, pretrain, recipe  # noqa: E402

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files of text and one of dialogues, with a specification that names them."""
    lines = [
        f"The {a} {b} went to the {c} hill. " * 5
        for a in ("old", "red", "shy")
        for b in ("cat", "dog", "owl")
        for c in ("far", "low", "big")
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    (tmp_path / "b.txt").write_text("Rain fell on the quiet town. " * 50)
    turns = [{"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "The owl."}]
    (tmp_path / "d.jsonl").write_text(
        json.dumps({"messages": turns}) + "\n" + json.dumps({"instruction": "Say", "input": "owl", "output": "Owl."})
    )
    (tmp_path / "spec.yaml").write_text(
        "model:\n"
        + "".join(f"  {k}: {v}\n" for k, v in SMALL.items())
        + "vocabulary: 300\nvocabulary_bytes: 20000\ncontext: 32\nbatch: 4\ntokens: 2560\nwarmup: 2\n"
        + "answer_weight: 4.0\n"
        "text:\n- {path: a.jsonl, weight: 3}\n- {path: b.txt}\ndialogues: {path: d.jsonl, share: 0.2}\n"
    )
    return tmp_path


def test_a_specification_is_read_and_its_paths_are_relative_to_it(corpus):
    spec = load_spec(corpus / "spec.yaml")
    assert spec.text[0].path == corpus / "a.jsonl" and spec.dialogues is not None and spec.answer_weight == 4.0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tokens: 2560", "tokens: 2560\ntoken: 5", r"unknown key 'token'; did you mean tokens"),
        ("weight: 3", "wieght: 3", r"unknown key 'text\.0\.wieght'; did you mean weight"),
        ("share: 0.2", "shear: 0.2", r"unknown key 'dialogues\.shear'; did you mean share"),
        ("hidden_size: 32", "hiden_size: 32", r"model: unknown key 'hiden_size'; did you mean hidden_size"),
        ("hidden_size: 32", "hidden_size: 33", r"hidden_size 33 is no multiple of num_attention_heads 2"),
        ("model:\n", "model:\n  model_type: lama\n", r"'lama' cannot be pretrained here; did you mean llama"),
        ("tokens: 2560", "tokens: many", r"tokens: Input should be a valid integer"),
        ("tokens: 2560", "lr: 0.1", r"tokens: Field required"),
        ("b.txt", "c.txt", r"no file .*c\.txt"),
        ("context: 32", "context: [", r"not valid YAML"),
    ],
)
def test_a_wrong_specification_is_refused_in_one_line(corpus, old, new, said):
    path = corpus / "spec.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadInput) as refused:
        load_spec(path)
    assert re.search(said, str(refused.value)) and "\n" not in str(refused.value)
    assert str(path) in str(refused.value) or said.startswith("model") or "hidden_size" in said or "lama" in said


def test_bad_lines_are_named_by_file_and_line(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(BadInput, match=r"t\.jsonl:2: no field `text`"):
        list(read_texts(tmp_path / "t.jsonl"))
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\nb\n')
    with pytest.raises(BadInput, match=r"t\.jsonl:2: not a JSON object"):
        list(read_texts(tmp_path / "t.jsonl"))
    with pytest.raises(BadInput, match=r"t\.jsonl:1: neither"):
        list(read_dialogues(tmp_path / "t.jsonl"))


def test_dialogue_rows_become_turns(corpus):
    assert list(read_dialogues(corpus / "d.jsonl")) == [[("Who is there?", "The owl.")], [("Say\nowl", "Owl.")]]


def test_packing_keeps_every_token_in_order_and_marks_the_answers(tmp_path):
    texts = [render_dialogue([("ab", "cd"), ("e", "fg")]), "<|bos|>hij<|end|>"] * 40
    tokenizer = train_tokenizer(["abcdefghij" * 20, "ab cd ef gh ij aa bb cc dd ee ff gg hh ii jj " * 20], 275)
    packed = pack(tokenizer, iter(texts), 12 * 8, 8, tmp_path / "tokens")
    stream = np.concatenate([tokenizer.encode(text).ids for text in texts])
    assert packed.ids.shape == (12, 8) and (packed.ids.reshape(-1) == stream[:96]).all()
    answers = tokenizer.decode(packed.ids[packed.classes == ANSWER].tolist(), skip_special_tokens=False)
    assert answers.startswith("cd<|end|>fg<|end|>cd<|end|>")
    assert set(np.unique(packed.classes)) == {TEXT, ANSWER}


def test_every_row_is_used_once_an_epoch(tmp_path):
    tokenizer = train_tokenizer(["abcdefghij" * 20, "ab cd ef gh ij " * 20], 271)
    packed = pack(tokenizer, ("abcdefghij" for _ in range(200)), 10 * 8, 8, tmp_path / "tokens")
    rows = [tuple(row.tolist()) for step in range(5) for row in packed.batch(step, 2, 3, 6.0).input_ids]
    assert sorted(rows) == sorted(tuple(int(i) for i in row) for row in packed.ids)
    assert torch.equal(packed.batch(7, 2, 3, 6.0).input_ids, packed.batch(7, 2, 3, 6.0).input_ids)


def test_a_recipe_is_read_against_the_folder_that_is_given(corpus, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = (corpus / "spec.yaml").rename(tmp_path / "elsewhere" / "spec.yaml")
    assert load_spec(moved, corpus).text[0].path == corpus / "a.jsonl"
    with pytest.raises(BadInput, match=r"elsewhere/a\.jsonl"):
        load_spec(moved)
    with pytest.raises(BadInput, match="--data DIR"):
        load_spec(recipe("real-text"))
    with pytest.raises(BadInput, match="did you mean real-text"):
        recipe("real-txt")


def test_several_files_of_dialogues_follow_one_another(corpus):
    (corpus / "e.jsonl").write_text(json.dumps({"prompt": "Who rows?", "response": "Nobody."}))
    spec = load_spec(corpus / "spec.yaml")
    assert spec.dialogues is not None
    spec.dialogues.path = [corpus / "d.jsonl", corpus / "e.jsonl"]
    spoken = [text for text, _ in zip(documents(spec, 0), range(400), strict=False) if "<|user|>" in text][:6]
    assert [t.split("<|end|>")[0].removeprefix("<|bos|><|user|>") for t in spoken] == [
        "Who is there?",
        "Say\nowl",
        "Who rows?",
    ] * 2


def test_sources_get_their_share_of_the_text(corpus):
    spec = load_spec(corpus / "spec.yaml")
    stream = documents(spec, 0)
    texts = [next(stream) for _ in range(400)]
    characters = {"dialogue": 0, "rain": 0, "hill": 0}
    for text in texts:
        characters["dialogue" if "<|user|>" in text else "rain" if "Rain" in text else "hill"] += len(text)
    total = sum(characters.values())
    assert characters["dialogue"] / total == pytest.approx(0.2, abs=0.05)
    assert characters["hill"] / total == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_pretraining_writes_a_folder_that_loads_and_is_the_same_for_the_same_seed(corpus, tmp_path, family):
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = load_spec(corpus / "spec.yaml")
    spec.model["model_type"] = family
    reports = [pretrain(spec, tmp_path / name, seed=seed, threads=1) for name, seed in (("x", 1), ("y", 1), ("z", 2))]
    assert reports[0].losses == reports[1].losses and reports[0].tokens == 2560
    weights = [load_file(tmp_path / name / "model.safetensors") for name in "xyz"]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert not all(torch.equal(weights[0][n], weights[2][n]) for n in weights[0])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "x")
    assert model.config.model_type == family and len(tokenizer) == model.config.vocab_size == 300
    fitted = Tokenizer.from_file(str(tmp_path / "x" / "tokenizer.json"))
    for text in ("Rain  fell,\n\n on 12 hills; it's the owl's", "Дом 道可道 ペンギン"):
        ids = tokenizer(text).input_ids
        assert ids == fitted.encode(text).ids and tokenizer.decode(ids) == text
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "palimpsest-probe.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_killed_run_goes_on_from_its_state_and_ends_the_same(corpus, tmp_path, monkeypatch):
    import palimpsest.training.loop as loop

    spec = load_spec(corpus / "spec.yaml")
    whole = pretrain(spec, tmp_path / "whole", seed=1, threads=1)
    real = loop._store
    minutes = itertools.count(0, 1000)  # the state is stored after every step
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(minutes))))

    class KilledError(Exception):
        pass

    def store_then_die(path, *rest):
        real(path, *rest)
        if next(part.steps for part in rest if isinstance(part, loop.TrainLog)) == 9:
            raise KilledError

    monkeypatch.setattr(loop, "_store", store_then_die)
    with pytest.raises(KilledError):
        pretrain(spec, tmp_path / "killed", seed=1, threads=1, scratch=tmp_path / "scratch")
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(loop, "_store", real)
    resumed = pretrain(spec, tmp_path / "killed", seed=1, threads=1, scratch=tmp_path / "scratch")
    killed, plain = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole"))
    assert killed == plain
    assert resumed.tokens == whole.tokens


def test_text_that_yields_too_small_a_vocabulary_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("aaaa")
    spec = PretrainSpec.model_validate(
        {"text": [{"path": tmp_path / "a.txt"}], "tokens": 100, "vocabulary": 4000, "vocabulary_bytes": 100}
    )
    with pytest.raises(BadInput, match="vocabulary"):
        pretrain(spec, tmp_path / "out")
