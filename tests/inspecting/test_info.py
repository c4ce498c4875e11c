"""`info`: what things are, what is wrong with them, what can be done; no secret, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import factory
from factory import copy_of, make_model
from palimpsest import machine
from palimpsest.checkpoint import Checkpoint, lineage, resolve
from palimpsest.cli import app
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.hashchain import HashChain
from palimpsest.inspecting import info
from palimpsest.keys import KeySet
from palimpsest.machine import Memory
from palimpsest.method import Context


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model that a test may spoil."""
    return copy_of(tiny_model, tmp_path / "m")


@pytest.fixture
def marked(tiny_model: Path, tmp_path: Path) -> Path:
    """What `embed` leaves: model and keys, the lineage committed to them."""
    model = copy_of(tiny_model, tmp_path / "marked" / "model")
    keys = HashChain(keys=4).draw_keys(resolve(tiny_model), Context(key_seed=5))
    keys.write(tmp_path / "marked" / "keys.json")
    lineage.write(model, [], "hashchain", {"model": resolve(tiny_model).digest()}, keys.commitment())
    return tmp_path / "marked"


def shown(*args: object) -> str:
    result = CliRunner().invoke(app, ["info", *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_toy_is_told_in_full() -> None:
    found = info("toy")
    assert found.kind == "model" and not found.broken
    assert found.facts["parameters"] == 1_049_728 and found.facts["context"] == 512
    assert found.facts["digest"] == resolve("toy").digest()
    assert found.facts["attention"] == "4 heads of 32, 2 for keys and values"
    assert found.facts["embeddings"] == "input and output tied" and "2,048 entries" in found.facts["tokenizer"]
    assert all(a.possible and a.needs for a in found.abilities)


def test_a_classifier_is_told_what_it_can_be_asked(tmp_path: Path) -> None:
    folder = factory.make_classifier(tmp_path / "bert")
    factory.make_tokenizer().save_pretrained(folder)
    possible = {a.command: a.possible for a in info(folder).abilities}
    assert possible == {
        "finetune (labelled items)": True,
        "evaluate --measure classification": True,
        "embed, tasks, perplexity, text keys": False,
    }
    assert "answers with a label" in shown(folder)


@pytest.mark.parametrize("family", sorted(factory.FAMILIES))
def test_a_model_of_every_family_is_whole(family: str, tmp_path: Path) -> None:
    found = info(make_model(tmp_path / family, family, shards=2, dtype="bfloat16"))
    assert not found.broken and found.facts["dtype"] == "bfloat16" and found.facts["files"] == 2
    assert found.facts["architecture"].startswith(f"{family} (")
    assert {a.command: a.possible for a in found.abilities}["verify, evaluate"]


def test_the_prompt_form_is_named_as_keys_name_it(tiny_model: Path, tiny_model_no_template: Path) -> None:
    from palimpsest.checkpoint.load import load_tokenizer
    from palimpsest.prompts import Renderer

    name = Renderer(load_tokenizer(resolve(tiny_model))).template
    assert name in info(tiny_model).facts["prompts"]
    assert "no chat template" in info(tiny_model_no_template).facts["prompts"]


def test_lineage_and_pretraining_are_told(folder: Path) -> None:
    lineage.write(folder, [{"method": "pretrain", "parents": {}}], "meraser-erase", {"model": "ab" * 32}, "cd" * 32)
    (folder / "training.json").write_text(json.dumps({"tokens": 12000, "losses": [[25, 3.5], [50, 2.25]]}))
    text = shown(folder)
    assert "meraser-erase of model abababababab, commitment cdcdcdcdcdcd" in text
    assert "12,000 tokens, last loss 2.25" in text


# -- what is wrong -----------------------------------------------------------------------------------------------


def problems(path: Path) -> str:
    found = info(path)
    assert found.broken and not any(a.possible for a in found.abilities)
    return " | ".join(found.problems)


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**values, **changes}.items() if v is not None}))


def test_pickled_weights_are_found(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled (pytorch_model.bin)" in problems(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "no safetensors weights" in problems(folder)


def test_pickles_beside_weights_are_only_a_note(folder: Path) -> None:
    (folder / "old.pt").write_bytes(b"x")
    found = info(folder)
    assert not found.broken and "old.pt" in found.notes[0]


def test_missing_and_truncated_shards_are_all_named(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", shards=4)
    (model / "model-00002-of-00004.safetensors").unlink()
    (model / "model-00003-of-00004.safetensors").unlink()
    last = model / "model-00004-of-00004.safetensors"
    last.write_bytes(last.read_bytes()[:-64])
    said = problems(model)
    assert "2 of 4 weight files are missing: model-00002-of-00004.safetensors, model-00003" in said
    assert "model-00004-of-00004.safetensors is truncated" in said


def test_an_index_that_names_tensors_elsewhere_is_found(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", shards=2)
    index = model / "model.safetensors.index.json"
    mapping = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**mapping, "model.extra.weight": next(iter(mapping.values()))})
    assert "model.extra.weight first" in problems(model)


def test_fewer_tensors_than_the_config_asks_for_are_found(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3)
    assert "tensors are missing" in problems(folder)


def test_configs_that_will_not_do_are_found(folder: Path) -> None:
    edit(folder / "config.json", model_type=None)
    assert "does not say model_type" in problems(folder)
    edit(folder / "config.json", model_type="llama", auto_map={"AutoModelForCausalLM": "x.Y"})
    assert "code of its own" in problems(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is no JSON" in problems(folder)


def test_tokenizers_that_are_missing_or_too_large_are_found(folder: Path) -> None:
    tokenizer = folder / "tokenizer.json"
    added = json.loads(tokenizer.read_text())["added_tokens"]
    edit(tokenizer, added_tokens=[*added, {**added[0], "id": 402, "content": "<new>"}])
    assert "403 entries and the model rows for 400: 3 tokens" in problems(folder)
    tokenizer.unlink()
    assert "it has no tokenizer" in problems(folder)


def test_half_written_and_empty_folders_are_told(folder: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = folder.rename(tmp_path / f".out.partial-{dead.pid}")
    assert "left half-written by a run that ended; it would have become out" in problems(left)
    mine = left.rename(tmp_path / f".out.partial-{os.getpid()}")
    assert "is being written" in info(mine).problems[0]
    (tmp_path / "empty").mkdir()
    assert "it is empty" in info(tmp_path / "empty").problems


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), "./none", "a/b/c", ""):
        with pytest.raises(BadInput, match="no file or folder"):
            info(name)
    result = CliRunner().invoke(app, ["info", "some/model"])
    assert result.exit_code == 2 and "the hub is out of reach" in result.stderr


# -- what can be done --------------------------------------------------------------------------------------------


def test_too_little_memory_is_the_reason_that_the_command_would_give(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: Memory(700 << 10, 700 << 10))
    lora, full, asked = info(tiny_model).abilities
    assert lora.possible and asked.possible and not full.possible
    assert "has 700 KiB; train adapters instead" in full.why


def test_an_architecture_outside_the_table_can_be_asked_and_trained_in_full(folder: Path) -> None:
    edit(folder / "config.json", model_type="bloom", n_embed=None)
    lora, full, asked = info(folder).abilities
    assert not lora.possible and "'bloom' is not known" in lora.why and full.possible and asked.possible


def test_an_adapter_names_its_base(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch = pytest.importorskip("torch")
    adapter = tmp_path / "ad"
    adapter.mkdir()
    save_file({"base_model.model.q.lora_A.weight": torch.zeros(2, 8)}, adapter / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "base_model_name_or_path": "mine"}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    found = info(adapter)
    assert found.kind == "adapter" and found.facts["base"] == "mine" and found.facts["parameters"] == 16
    assert [a.possible for a in found.abilities] == [True, False] and "palimpsest.json" in found.notes[0]


# -- secrets -----------------------------------------------------------------------------------------------------


def test_no_text_of_a_key_is_ever_shown(marked: Path) -> None:
    keys = KeySet.read(marked / "keys.json")
    for output in (shown(marked), shown(marked / "keys.json"), shown(marked, marked / "keys.json", "--json")):
        assert keys.salt not in output and keys.commitment() in output
        for key in keys.keys:
            words = [key.trigger, key.response, *(p.text for p in key.prompts.values())]
            assert not [w for w in words if f'"{w}"' in output or (len(w) > 8 and w in output)]
            for prompt in key.prompts.values():
                assert ", ".join(map(str, prompt.ids)) not in output
        assert not [d for d in keys.decoys if f'"{d}"' in output]


def test_a_marked_folder_is_model_and_keys_that_belong_together(marked: Path) -> None:
    found = info(marked)
    assert [p.kind for p in found.parts] == ["model", "keys"] and not found.broken
    assert found.parts[1].facts["mode"] == "0600" and found.parts[1].facts["keys"] == 4
    assert found.parts[1].facts["responses"].startswith("independent of each other, drawn from 256")
    assert "keys are those" in found.facts["commitment"]
    HashChain(keys=4).draw_keys(resolve(marked / "model"), Context(key_seed=6)).write(marked / "keys.json")
    assert "not those that its lineage is committed to" in info(marked).problems[0]


def test_keys_that_others_may_read_are_a_problem(marked: Path) -> None:
    (marked / "keys.json").chmod(0o644)
    assert "chmod 600 keys.json" in info(marked / "keys.json").problems[0] and info(marked).broken


def test_a_spoilt_key_file_says_where_and_not_what(marked: Path) -> None:
    raw = json.loads((marked / "keys.json").read_text())
    raw["keys"][1]["response"] = ""
    (marked / "keys.json").write_text(json.dumps(raw))
    (problem,) = info(marked / "keys.json").problems
    assert "keys[1]" in problem and raw["keys"][1]["trigger"] not in problem
    (marked / "keys.json").write_text('{"keys": "hush')
    assert "hush" not in " ".join(info(marked / "keys.json").problems)


def test_another_secret_beside_a_model_is_not_opened(tiny_model: Path, tmp_path: Path) -> None:
    copy_of(tiny_model, tmp_path / "p" / "model")
    (tmp_path / "p" / "secret.json").write_text('{"gauge": "whisper"}')
    text = shown(tmp_path / "p", tmp_path / "p" / "secret.json")
    assert "whisper" not in text and "chmod 600 secret.json" in text


# -- studies and files -------------------------------------------------------------------------------------------


def test_a_study_tells_its_steps(tmp_path: Path) -> None:
    study = tmp_path / "s"
    steps = [{"id": letter * 64, "name": f"step {letter}"} for letter in "abc"]
    spec = {"models": [{"id": "toy", "path": "toy"}], "seeds": [3, 4]}
    for letter, status in (("a", "done"), ("b", "failed")):
        (study / "steps" / (letter * 16)).mkdir(parents=True)
        (study / "steps" / (letter * 16) / "record.json").write_text(json.dumps({"status": status}))
    body = {"format": 1, "title": "T", "steps": steps, "spec": spec, "implants": {"utf": "utf"}}
    (study / "study.json").write_text(json.dumps(body))
    found = info(study)
    assert found.facts["steps"] == "1 done, 1 open, 1 failed" and found.facts["seeds"] == "3, 4"
    assert "none yet" in found.facts["report"] and "step b" in found.problems[0]
    (study / "report.html").write_text("x")
    assert info(study).facts["report"] == "report.html"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("s.yaml", "implants: [utf]", "a study file"),
        ("p.yaml", "tokens: 5", "a pretraining file"),
        ("w.safetensors", "", "the model is the folder"),
        ("w.bin", "", "never read"),
        ("d.jsonl", "{}", "rows of data"),
        ("x.txt", "", "no file that palimpsest makes"),
    ],
)
def test_files_are_told(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert words in shown(tmp_path / name)


def test_a_folder_of_models_lists_them(tiny_model: Path, tmp_path: Path) -> None:
    copy_of(tiny_model, tmp_path / "a")
    assert info(tmp_path).title == "a folder that holds 1 model or study folders: a"


# -- the command -------------------------------------------------------------------------------------------------


def test_json_is_one_document(tiny_model: Path) -> None:
    document = json.loads(shown("toy", tiny_model, "--json"))
    assert document["records"] == [] and [f["kind"] for f in document["findings"]] == ["model", "model"]
    assert document["findings"][0]["path"] == "toy"


def test_the_digest_of_a_large_model_is_computed_on_request(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palimpsest.inspecting import models

    model = make_model(tmp_path / "fresh", seed=77)
    monkeypatch.setattr(models, "QUICK", 0)
    assert info(model).facts["digest"] == "not computed yet (--digest)"
    assert info(model, digest=True).facts["digest"] == Checkpoint(model, "m").digest()
    assert info(model).facts["digest"] == Checkpoint(model, "m").digest(), "known from then on"


def test_info_imports_neither_torch_nor_transformers(marked: Path) -> None:
    code = (
        "import sys; from palimpsest.cli import app; from typer.testing import CliRunner;"
        "r = CliRunner().invoke(app, ['info', 'toy', *sys.argv[1:]]); assert r.exit_code == 0, r.output;"
        "r = CliRunner().invoke(app, ['doctor', '--help']); assert r.exit_code == 0 and 'Example' in r.output;"
        "heavy = [m for m in ('torch', 'transformers', 'peft', 'scipy') if m in sys.modules]; assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(marked)], check=True)


def test_a_hub_model_in_the_cache_is_found_by_its_name(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--some--model"
    copy_of(tiny_model, model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    code = "import palimpsest as pal; f = pal.info('some/model'); print(f.path, f.kind, f.broken, f.notes)"
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "some/model model False []"
    (model / "snapshots" / "abc" / "model.safetensors").unlink()
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "some/model model False" in done.stdout and "not on this machine yet" in done.stdout
