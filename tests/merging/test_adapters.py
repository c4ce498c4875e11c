"""LoRA adapters: on their base they are whole models, alone they are merged by delta or by factor, as PEFT has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import palimpsest as pal
from factory import copy_of, make_model
from merging.folders import weights_of
from palimpsest import registry
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.files import TensorInfo
from palimpsest.errors import BadInput
from palimpsest.merging.adapter_merge import stacked
from palimpsest.merging.adapters import Adapter, Pair
from palimpsest.method import input_fields

RUN = pal.Run(device="cpu", threads=2)
IDS = torch.arange(30, 50)[None]
ALL = ["q_proj", "v_proj", "down_proj"]


def merge(out: Path, *models: Any, method: str = "linear", **said: Any) -> Any:
    return pal.merge(method, models, out, digests=False, run=RUN, **said)


def make_adapter(base: Path, folder: Path, seed: int = 0, **said: Any) -> Path:
    """An adapter with random factors, as PEFT writes it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL, **said}))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data = 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained(folder)
    return folder


def loaded(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS, attention_mask=torch.ones_like(IDS)).logits


def deltas(base: Path, adapter: Path) -> dict[str, Tensor]:
    """What an adapter adds to each weight, as PEFT says."""
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = loaded(base, adapter).merge_and_unload().state_dict()
    return {n: after[n] - before[n] for n in before}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("lora") / "base", layers=1, tied=False)


@pytest.fixture(scope="module")
def pair(base: Path) -> tuple[Path, Path]:
    return make_adapter(base, base.parent / "a", 1), make_adapter(base, base.parent / "b", 2, r=3, lora_alpha=5)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 9},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.down_proj": 32, "v_.*": 1}},
    "saved": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_its_base_is_the_model_that_peft_makes_of_them(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = make_adapter(base, tmp_path / "a", 3, **KINDS[kind])
    merge(tmp_path / "m", adapter, base=base)
    merge(tmp_path / "plus", f"{base}+{adapter}")
    peft = loaded(base, adapter)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m")), logits(peft), atol=1e-4)
    wanted = peft.merge_and_unload().state_dict()
    found, again = weights_of(tmp_path / "m"), weights_of(tmp_path / "plus")
    for name, tensor in found.items():
        assert torch.allclose(tensor, wanted[name], atol=1e-6), name
        assert torch.equal(tensor, again[name])


def test_a_conv1d_adapter_is_laid_the_other_way_round(tmp_path: Path) -> None:
    gpt = make_model(tmp_path / "gpt", "gpt2", layers=1)
    adapter = make_adapter(gpt, tmp_path / "a", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    merge(tmp_path / "m", adapter, base=gpt)
    assert torch.allclose(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m")), logits(loaded(gpt, adapter)), atol=1e-4
    )
    other = make_adapter(gpt, tmp_path / "b", 5, target_modules=["c_attn"], fan_in_fan_out=True)
    merge(tmp_path / "ab", adapter, other)
    both = deltas(gpt, tmp_path / "ab")
    first, second = deltas(gpt, adapter), deltas(gpt, other)
    assert all(torch.allclose(both[n], (first[n] + second[n]) / 2, atol=1e-6) for n in both)


def test_an_adapter_of_a_tied_embedding_unties_it(tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", layers=1, tied=True)
    adapter = make_adapter(tied, tmp_path / "a", target_modules=["embed_tokens"])
    merge(tmp_path / "m", adapter, base=tied)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert not merged.config.tie_word_embeddings
    assert torch.allclose(logits(merged), logits(loaded(tied, adapter)), atol=1e-4)


def test_every_method_takes_adapters_and_gives_a_whole_model(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = (deltas(base, p) for p in pair)
    plain = AutoModelForCausalLM.from_pretrained(base).state_dict()
    merge(tmp_path / "ta", (pair[0], 0.5), (pair[1], 2.0), method="task-arithmetic", base=base)
    merge(tmp_path / "mixed", pair[0], base, base=base)
    merge(tmp_path / "slerp", f"{base}+{pair[0]}", f"{base}+{pair[1]}", method="slerp")
    found, mixed = weights_of(tmp_path / "ta"), weights_of(tmp_path / "mixed")
    for name in found:
        assert torch.allclose(found[name], plain[name] + 0.5 * first[name] + 2 * second[name], atol=1e-6)
        assert torch.allclose(mixed[name], plain[name] + 0.5 * first[name], atol=1e-6)
    assert (tmp_path / "slerp" / "tokenizer.json").is_file()
    for entry in registry.table().values():
        if (
            entry.kind == "merges"
            and registry.find(entry.name).base == "needs"
            and not input_fields(registry.find(entry.name))
        ):
            merge(tmp_path / entry.name, *pair, method=entry.name, base=base)
            assert set(weights_of(tmp_path / entry.name)) == set(found)


def test_bf16_models_with_adapters_are_rounded_once(tmp_path: Path) -> None:
    half = make_model(tmp_path / "half", layers=1, dtype="bfloat16")
    adapter = make_adapter(half, tmp_path / "a")
    merge(tmp_path / "m", adapter, base=half)
    exact = AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(exact, adapter).merge_and_unload().state_dict()
    for name, tensor in weights_of(tmp_path / "m").items():
        assert tensor.dtype == torch.bfloat16
        assert (tensor.float() - wanted[name]).abs().max() <= wanted[name].abs().max() / 256


def test_tensors_that_an_adapter_changes_are_copied_as_they_are_with_it(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    merge(tmp_path / "m", *pair, base=base, copies=["q_proj=b", "v_proj"])
    changed = weights_of(base)[name] + deltas(base, pair[1])[name]
    assert torch.allclose(weights_of(tmp_path / "m")[name], changed, atol=1e-6)
    other = name.replace("q_proj", "v_proj")
    assert torch.equal(weights_of(tmp_path / "m")[other], weights_of(base)[other])
    with pytest.raises(BadInput, match="--copy q_proj: is not for adapters alone"):
        merge(tmp_path / "n", *pair, copies=["q_proj"])
    result = merge(tmp_path / "n", *pair, base=base, adapters="factor")
    assert any("--adapters has no effect" in n for n in result.notes)


def test_an_adapter_that_brought_tokens_of_its_own(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    count = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    model.resize_token_embeddings(count + 1)
    saved = ["embed_tokens", "lm_head"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    adapted.save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    with pytest.raises(BadInput, match=r"'<extra>' is .* --vocabulary base"):
        merge(tmp_path / "m", tmp_path / "a", method="task-arithmetic", base=base)
    merge(tmp_path / "m", tmp_path / "a", method="task-arithmetic", base=base, vocabulary="union")
    merged = weights_of(tmp_path / "m")["model.embed_tokens.weight"]
    assert torch.allclose(merged, model.get_input_embeddings().weight, atol=1e-6)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "m")) == count + 1


# -- adapters alone ------------------------------------------------------------------------------------------


def test_by_delta_the_merged_adapter_does_what_the_mean_of_the_adapters_does(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = make_adapter(base, tmp_path / "c", 7, target_modules=["q_proj", "o_proj"], use_rslora=True)
    result = merge(tmp_path / "m", (pair[0], 1), (pair[1], 2), (other, 5))
    found = deltas(base, tmp_path / "m")
    each = [deltas(base, p) for p in (*pair, other)]
    for name in found:
        assert torch.allclose(
            found[name], sum(w * d[name] for w, d in zip((1, 2, 5), each, strict=True)) / 8, atol=1e-6
        )
    config = json.loads((tmp_path / "m" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] and not config["use_rslora"]
    assert result.figures["tensors"] == 8 and resolve(tmp_path / "m").is_adapter
    assert resolve(tmp_path / "m").chain()[-1]["method"] == "merge linear"


def test_task_arithmetic_of_adapters_adds_them_up(base: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    merge(tmp_path / "m", (pair[0], 0.3), (pair[1], -1), method="task-arithmetic", settings={"lambda": 2})
    first, second, found = (deltas(base, p) for p in (*pair, tmp_path / "m"))
    assert all(torch.allclose(found[n], 0.6 * first[n] - 2 * second[n], atol=1e-6) for n in found)


def test_by_factor_is_the_mean_of_factors_and_not_of_adapters(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    second = make_adapter(base, tmp_path / "second", 9)
    result = merge(tmp_path / "m", pair[0], second, adapters="factor")
    files = [load_file(f / "adapter_model.safetensors") for f in (pair[0], second, tmp_path / "m")]
    assert all(torch.allclose(t, (files[0][n] + files[1][n]) / 2) for n, t in files[2].items())
    found, a, b = (deltas(base, p) for p in (tmp_path / "m", pair[0], second))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(found[name], (a[name] + b[name]) / 2, atol=1e-3)
    assert "not the average of the adapters" in result.notes[0]
    with pytest.raises(BadInput, match=r"rank 3 and scale .* in b.*--adapters delta"):
        merge(tmp_path / "n", *pair, adapters="factor")


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    """Two adapters of rank 1: B1 A1 = [[1, 0], [0, 0]] and B2 A2 = [[0, 0], [0, 1]]."""
    infos = []
    for number, place in enumerate((0, 1)):
        one = torch.zeros(1, 2)
        one[0, place] = 1
        save_file({"A": one, "B": one.T.clone()}, tmp_path / f"{number}.safetensors")
        infos.append(tmp_path / f"{number}.safetensors")

    def info(file: Path, name: str) -> TensorInfo:
        from palimpsest.checkpoint.files import read_header

        return next(t for t in read_header(file) if t.name == name)

    pairs = [Pair("m", info(f, "A"), info(f, "B"), 1.0) for f in infos]
    a, b = stacked([(p, 0.5, "m") for p in pairs])
    assert (b @ a).tolist() == [[0.5, 0.0], [0.0, 0.5]]
    mean_a = sum(load_file(f)["A"] for f in infos) / 2
    mean_b = sum(load_file(f)["B"] for f in infos) / 2
    assert (mean_b @ mean_a).tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_whole_tensors_in_adapters_are_averaged_where_all_have_them(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    saved = [make_adapter(base, tmp_path / f"s{i}", i, modules_to_save=["lm_head"]) for i in range(2)]
    merge(tmp_path / "m", *saved)
    heads = [loaded(base, p).merge_and_unload().lm_head.weight for p in (*saved, tmp_path / "m")]
    assert torch.allclose(heads[2], (heads[0] + heads[1]) / 2, atol=1e-6)
    with pytest.raises(BadInput, match="whole in an adapter, and a has none; give --base"):
        merge(tmp_path / "n", saved[0], pair[0])


# -- refusals ------------------------------------------------------------------------------------------------


def spoiled(adapter: Path, folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    copy_of(adapter, folder)
    said = json.loads((folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    if tensors:
        weights = load_file(folder / "adapter_model.safetensors") | tensors
        save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"use_dora": True}, "DoRA"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "bias on B"),
    ],
)
def test_adapters_of_another_kind_are_refused(
    pair: tuple[Path, Path], base: Path, tmp_path: Path, config: dict[str, Any], word: str
) -> None:
    wrong = spoiled(pair[0], tmp_path / "wrong", **config)
    for said in ({}, {"base": base}):
        with pytest.raises(BadInput, match=f"wrong: .*{word}"):
            merge(tmp_path / "m", wrong, **said)


def test_adapters_that_do_not_fit_are_refused_with_what_does_not(
    pair: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    deeper = spoiled(
        pair[0], tmp_path / "deeper", {name.format(5, "A"): torch.ones(4, 64), name.format(5, "B"): torch.ones(64, 4)}
    )
    with pytest.raises(BadInput, match=r"deeper: is an adapter for model.layers.5.* which base does not have"):
        merge(tmp_path / "m", deeper, base=base)
    wider = spoiled(pair[0], tmp_path / "wider", {name.format(0, "A"): torch.ones(4, 65)})
    with pytest.raises(BadInput, match=r"the adapter wider is for the shape \[64, 65\], base has \[64, 64\]"):
        merge(tmp_path / "m", wider, base=base)
    with pytest.raises(BadInput, match="adapters of different models"):
        merge(tmp_path / "m", wider, pair[0])
    half = spoiled(pair[0], tmp_path / "half", {name.format(1, "A"): torch.ones(4, 64)})
    with pytest.raises(BadInput, match=r"half: .* has A and not A and B"):
        merge(tmp_path / "m", half, base=base)
    bad = torch.ones(4, 64)
    bad[1, 2] = float("nan")
    with pytest.raises(BadInput, match=r"lora_A.weight holds nan at position 66"):
        merge(tmp_path / "m", spoiled(pair[0], tmp_path / "bad", {name.format(0, "A"): bad}), base=base)
    assert not (tmp_path / "m").exists()


def test_what_stands_on_what_has_to_be_said(pair: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a: is an adapter.*--base, or write --model WHOLE\+ADAPTER"):
        merge(tmp_path / "m", pair[0], base)
    with pytest.raises(BadInput, match="slerp: adapters alone are merged by linear and task-arithmetic; with --base"):
        merge(tmp_path / "m", *pair, method="slerp")
    with pytest.raises(BadInput, match="a whole model and a LoRA adapter of it"):
        merge(tmp_path / "m", f"{pair[0]}+{pair[1]}")
    with pytest.raises(BadInput, match="is an adapter; the base is a whole model"):
        merge(tmp_path / "m", base, base=pair[0], method="task-arithmetic")
    with pytest.raises(BadInput, match="not a gradient or filters"):
        merge(tmp_path / "m", *pair, settings={"weight": [0, 1]})


def test_scales_are_those_that_peft_computes(base: Path, tmp_path: Path) -> None:
    for kind, said in KINDS.items():
        folder = make_adapter(base, tmp_path / kind, **said)
        peft = loaded(base, folder)
        scales = {
            n: m.scaling["default"] for n, m in peft.named_modules() if isinstance(getattr(m, "scaling", None), dict)
        }
        for module, pair in Adapter(resolve(folder)).pairs.items():
            assert pair.scale == pytest.approx(scales[f"base_model.model.{module}"]), (kind, module)
