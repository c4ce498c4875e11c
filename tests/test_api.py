"""The public API: one call a command; phases, adapters and notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import palimpsest as pal
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.removals.tuning.meraser import MEraserErase

QUICK = {"mismatched": 8, "clean": 8, "erase.epochs": 1, "recover.epochs": 1}
RUN = pal.Run(seed=0, device="cpu", threads=1)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": f"q {i}?", "answer": f"a {i}"}) + "\n" for i in range(100)))
    return file


def test_every_exported_name_is_there() -> None:
    for name in pal.__all__:
        assert callable(getattr(pal, name))
    with pytest.raises(AttributeError):
        pal.nothing  # noqa: B018


def test_until_stops_after_the_named_phase(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    from palimpsest.data import load_dialogues
    from palimpsest.training.settings import Tuning

    result = pal.remove("meraser", tiny_model, tmp_path / "e", data=[rows], settings=QUICK, until="erase", run=RUN)
    assert [e["method"] for e in resolve(tmp_path / "e").chain()] == ["meraser-erase"]
    assert [r.task for r in result.records] == ["meraser-erase"]
    phase = MEraserErase(load_dialogues([rows]), 8, tuning=Tuning(rank=16, alpha=32, epochs=1, lr=1e-3, batch=8))
    alone = phase.apply(resolve(tiny_model), tmp_path / "alone", Context(seed=0, threads=1))
    assert alone.checkpoint.digest() == resolve(tmp_path / "e").digest()


def test_an_erasing_adapter_is_made_once_and_added_to_any_model(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    settings = {"mismatched": 8, "tuning.epochs": 1, "save": "adapter"}
    pal.remove("meraser-erase", tiny_model, tmp_path / "adapter", data=[rows], settings=settings, run=RUN)
    expert = pal.finetune(tiny_model, tmp_path / "expert", data=[rows], settings={"tuning.epochs": 1}, run=RUN)
    assert expert.path is not None
    made = pal.remove("meraser-transfer", expert.path, tmp_path / "out", adapter=tmp_path / "adapter", run=RUN)
    assert made.records[0].measure == "transfer" and made.records[0].tokens == 0
    assert set(resolve(tmp_path / "out").chain()[-1]["parents"]) == {"model", "adapter"}


def test_inputs_that_a_method_does_not_need_are_noted(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    result = pal.finetune(tiny_model, tmp_path / "out", data=[rows], settings={"tuning.epochs": 1}, run=RUN)
    assert result.notes == []
    result = pal.remove("meraser", tiny_model, tmp_path / "out2", data=[rows], base=tiny_model, settings=QUICK, run=RUN)
    assert result.notes == ["--base is not needed by meraser"]


def test_evaluate_reads_text_and_dialogues_of_any_model(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("The lantern keeper of Veldt counts the boats every evening.\n\n" * 200)
    records = pal.evaluate(tiny_model, perplexity=text, data=[rows], run=RUN).records
    assert [(r.measure, r.task) for r in records] == [
        ("perplexity", side) for side in ("neutral", "dialogue", "dialogue-and-prompt")
    ]
    assert all(r.value and r.value > 1 and r.digest == resolve(tiny_model).digest() for r in records)
    with pytest.raises(BadInput, match=r"--task-data holds no BoolQ/val\.jsonl"):
        pal.evaluate(tiny_model, tasks=["boolq"], task_data=tmp_path, run=RUN)
    with pytest.raises(BadInput, match="--limit: goes with --tasks"):
        pal.evaluate(tiny_model, perplexity=text, limit=3, run=RUN)


def test_a_plug_in_file_works_wherever_a_name_does(tiny_model: Path, tmp_path: Path) -> None:
    plug = tmp_path / "mine.py"
    plug.write_text(
        "from dataclasses import dataclass\n"
        "from palimpsest.method import Made, method, param\n"
        "from palimpsest.checkpoint.load import load_model, write_model\n"
        "@method('removals', 'scale')\n"
        "@dataclass(frozen=True)\n"
        "class Scale:\n"
        "    'Multiply the final norm.'\n"
        "    factor: float = param(0.5, 'factor', low=0)\n"
        "    def apply(self, model, out, ctx):\n"
        "        net = load_model(model, ctx)\n"
        "        net.model.norm.weight.data *= self.factor\n"
        "        return Made(write_model(net, model, out, 'scale', {'model': model.digest()}))\n"
    )
    pal.remove(f"{plug}:Scale", tiny_model, tmp_path / "out", settings={"factor": 0.25}, run=RUN)
    assert resolve(tmp_path / "out").chain()[-1]["method"] == "scale"
    with pytest.raises(BadInput, match="Scale"):
        pal.remove(f"{plug}:Scael", tiny_model, tmp_path / "x", run=RUN)


def test_a_control_is_called_the_clean_base_where_the_lineage_says_so(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    from factory import make_model
    from palimpsest.judging import relation

    made = pal.finetune(tiny_model, tmp_path / "out", data=[rows], settings={"tuning.epochs": 1}, run=RUN)
    assert made.path is not None
    stranger = resolve(make_model(tmp_path / "stranger", seed=7))
    assert relation(resolve(tiny_model), resolve(made.path)) == "clean-base"
    assert relation(stranger, resolve(made.path)) == "unrelated-model"


def test_a_killed_pretraining_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from palimpsest.checkpoint.digest import cache_folder
    from palimpsest.training import loop

    (tmp_path / "a.txt").write_text("The lantern keeper of Veldt counts the boats every evening. " * 400)
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "model: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,\n"
        "        num_attention_heads: 2, num_key_value_heads: 2}\n"
        "vocabulary: 300\nvocabulary_bytes: 9000\ncontext: 32\nbatch: 4\ntokens: 2560\nwarmup: 2\n"
        "text: [{path: a.txt}]\n"
    )
    whole = pal.pretrain(spec, tmp_path / "whole", run=RUN)
    assert whole.path is not None and not list((cache_folder() / "pretrain").iterdir())
    real, steps = loop._store, []

    def killed(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        steps.append(1)
        if len(steps) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_store", killed)
    defaults = loop.train_steps.__kwdefaults__
    monkeypatch.setitem(defaults, "state_seconds", -1.0)
    with pytest.raises(KeyboardInterrupt):
        pal.pretrain(spec, tmp_path / "again", run=RUN)
    assert not (tmp_path / "again").exists() and list((cache_folder() / "pretrain").iterdir())
    again = pal.pretrain(spec, tmp_path / "again", run=RUN)
    assert again.path is not None and len(steps) < 9 + 20, "the second run did not begin anew"
    assert resolve(again.path).digest() == resolve(whole.path).digest()


def test_auto_is_the_default_where_it_exists_and_nothing_is_set(tiny_model: Path, rows: Path) -> None:
    from palimpsest.calls import method_for

    def made(name: str, model: Path | str, settings: dict[str, object], preset: str | None = None) -> tuple[str, str]:
        instance, notes = method_for(name, ("removals",), resolve(model), preset, settings, [rows])
        return getattr(instance, "strength", ""), " ".join(notes)

    assert made("meraser", tiny_model, {})[0] == "auto"
    assert "preset auto; --preset names another: auto, paper" in made("meraser", tiny_model, {})[1]
    assert made("meraser", tiny_model, {"erase.epochs": 2}) == ("given", "")
    assert made("meraser", tiny_model, {}, "paper") == ("given", "")
    assert made("meraser", "toy", {})[0] == "given" and "preset toy" in made("meraser", "toy", {})[1]
    assert made("finetune", tiny_model, {}) == ("", "")


def test_a_skill_of_the_toy_is_learnt_by_the_preset_for_experts() -> None:
    from palimpsest.calls import method_for

    for data, preset, rows in (("toy:tower-code", "expert", None), ("toy", "toy", 600)):
        instance, notes = method_for("finetune", ("removals",), resolve("toy"), None, None, [data])
        assert notes[0].startswith(f"preset {preset} (the model is the embedded toy)") and instance.samples == rows
    skill = method_for("finetune", ("removals",), resolve("toy"), None, None, ["toy:tower-code"])[0]
    assert (skill.part, len(skill.data.part("recover"))) == ("all", 270)


def test_the_toy_is_asked_its_own_ordinary_prompts_after_learning_a_skill(tmp_path: Path) -> None:
    """The pairs of a skill have no test part."""
    settings = {"tuning.steps": 1, "samples": 8}
    result = pal.finetune("toy", tmp_path / "expert", data=["toy:tower-code"], settings=settings, run=pal.Run(seed=1))
    assert {r.measure for r in result.records} >= {"answers"} and (tmp_path / "expert" / "config.json").is_file()


def test_models_are_merged_and_the_merge_says_what_it_took(tiny_model: Path, tmp_path: Path) -> None:
    result = pal.merge("linear", [tiny_model, (tiny_model, 3)], tmp_path / "m", run=RUN)
    merged, parent = resolve(tmp_path / "m"), resolve(tiny_model)
    assert result.path == tmp_path / "m" and result.to_json()["figures"]["tensors"] == len(parent.tensors())
    both = zip(merged.tensors(), parent.tensors(), strict=True)
    assert all(list(a.chunks()) == list(b.chunks()) for a, b in both), "a model merged with itself is itself"
    assert merged.chain()[-1]["parents"] == {"model-1": parent.digest(), "model-2": parent.digest()}
    with pytest.raises(BadInput, match="--out"):
        pal.merge("linear", [tiny_model])
