"""Which tensor is made of which: ties, names, dtypes, shards, buffers, layers, heads; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import palimpsest as pal
from factory import copy_of, make_model, reshard
from merging.folders import config_of, make_folder, tensors_of, weights_of
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.merging.plan import make_plan
from palimpsest.merging.request import MergeRequest, Part, Slice, Stretch

RUN = pal.Run(device="cpu", threads=2)
IDS = torch.arange(40, 60)[None]


def merge(out: Path, *models: Any, method: str = "linear", **said: Any) -> Any:
    return pal.merge(method, models, out, digests=False, run=RUN, **said)


def logits(folder: Path | None, model: Any = None) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = model or AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(IDS, attention_mask=torch.ones_like(IDS)).logits


def averaged(folders: list[Path], shares: list[float]) -> Any:
    """The same merge in memory, with transformers alone: every parameter by itself, ties undone where one is untied."""
    from transformers import AutoConfig, AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in folders]
    tied = all(m.config.tie_word_embeddings for m in models)
    config = AutoConfig.from_pretrained(folders[0])
    config.tie_word_embeddings = tied
    merged = AutoModelForCausalLM.from_config(config)
    states = [m.state_dict() for m in models]
    merged.load_state_dict({n: sum(s * d[n] for s, d in zip(shares, states, strict=True)) for n in states[0]})
    return merged


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llamas")
    return {
        f"{'tied' if tied else 'untied'}{seed}": make_model(
            root / f"{tied}{seed}", layers=1, tied=tied, seed=seed, dtype="bfloat16" if seed == 2 else "float32"
        )
        for tied in (True, False)
        for seed in (1, 2)
    }


@pytest.mark.parametrize("first", ["tied1", "untied1"])
@pytest.mark.parametrize("second", ["tied2", "untied2"])
def test_ties_of_any_kind_give_the_logits_of_the_same_merge_in_memory(
    llamas: dict[str, Path], tmp_path: Path, first: str, second: str
) -> None:
    folders = [llamas[first], llamas[second]]
    merge(tmp_path / "m", (folders[0], 0.3), (folders[1], 0.7), dtype="float32")
    tied = first.startswith("tied") and second.startswith("tied")
    assert config_of(tmp_path / "m")["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in weights_of(tmp_path / "m")) is not tied
    assert torch.allclose(logits(tmp_path / "m"), logits(None, averaged(folders, [0.3, 0.7])), atol=2e-5)


def test_a_file_that_holds_head_and_embedding_of_a_tied_model_is_tied(llamas: dict[str, Path], tmp_path: Path) -> None:
    both = copy_of(llamas["tied1"], tmp_path / "both")
    weights = load_file(both / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, both / "model.safetensors", metadata={"format": "pt"})
    merge(tmp_path / "m", both, llamas["tied2"], dtype="float32")
    assert "lm_head.weight" not in weights_of(tmp_path / "m")
    weights["lm_head.weight"] += 1
    save_file(weights, both / "model.safetensors", metadata={"format": "pt"})
    result = merge(tmp_path / "n", llamas["tied2"], both, dtype="float32")
    assert "lm_head.weight" in weights_of(tmp_path / "n") and any("untied" in n for n in result.notes)


def test_mixed_dtypes_are_stored_in_what_holds_them_all_or_in_what_is_asked_for(
    llamas: dict[str, Path], tmp_path: Path
) -> None:
    merge(tmp_path / "wide", llamas["tied1"], llamas["tied2"])
    assert {t.dtype for t in weights_of(tmp_path / "wide").values()} == {torch.float32}
    assert config_of(tmp_path / "wide")["dtype"] == "float32"
    merge(tmp_path / "half", llamas["tied1"], llamas["tied2"], dtype="bf16")
    halves = weights_of(tmp_path / "half")
    assert {t.dtype for t in halves.values()} == {torch.bfloat16} and config_of(tmp_path / "half")[
        "dtype"
    ] == "bfloat16"
    for name, tensor in weights_of(tmp_path / "wide").items():
        assert torch.equal(halves[name], tensor.bfloat16())


def test_shards_and_single_files_in_any_mix_are_the_same_merge(llamas: dict[str, Path], tmp_path: Path) -> None:
    sharded = copy_of(llamas["untied1"], tmp_path / "sharded")
    reshard(sharded, 3, backwards=True)
    merge(tmp_path / "a", llamas["untied1"], llamas["untied2"])
    merge(tmp_path / "b", sharded, llamas["untied2"], shard_bytes=20_000)
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    assert resolve(tmp_path / "a").digest() == resolve(tmp_path / "b").digest()


def test_names_with_and_without_the_prefix_are_the_same_tensors(tmp_path: Path) -> None:
    whole = make_model(tmp_path / "whole", "gpt2", layers=1, hidden=32, seed=1)
    bare = copy_of(make_model(tmp_path / "other", "gpt2", layers=1, hidden=32, seed=2), tmp_path / "bare")
    weights = load_file(bare / "model.safetensors")
    assert all(n.startswith("transformer.") for n in weights)
    old = {n.removeprefix("transformer."): t for n, t in weights.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)  # the causal mask that old files hold
    save_file(old, bare / "model.safetensors", metadata={"format": "pt"})
    wanted = logits(None, averaged([whole, tmp_path / "other"], [0.5, 0.5]))
    for number, models in enumerate(((whole, bare), (bare, whole))):
        result = merge(tmp_path / f"m{number}", *models)
        assert torch.allclose(logits(tmp_path / f"m{number}"), wanted, atol=2e-5)
        assert any("h.0.attn.bias is left out" in n for n in result.notes)
    assert set(weights_of(tmp_path / "m1")) == set(old) - {"h.0.attn.bias"}, "stored as the first stores them"


def test_whole_numbers_are_copied_and_a_difference_is_noted(tmp_path: Path) -> None:
    for name, numbers in (("a", [1, 2]), ("b", [1, 4])):
        make_folder(tmp_path / name, {**tensors_of(), "model.counts": torch.tensor(numbers)})
    result = merge(tmp_path / "m", tmp_path / "a", tmp_path / "b")
    assert weights_of(tmp_path / "m")["model.counts"].tolist() == [1, 2]
    assert any("model.counts" in n and "differ" in n for n in result.notes)
    assert not merge(tmp_path / "n", tmp_path / "a", tmp_path / "a").notes


def test_a_shape_that_differs_names_tensor_and_both_models(tmp_path: Path) -> None:
    make_folder(tmp_path / "one")
    make_folder(tmp_path / "two", {**tensors_of(), "model.norm.weight": torch.ones(3)})
    with pytest.raises(BadInput, match=r"tensor model.norm.weight: two has the shape \[3\], one \[4\]"):
        merge(tmp_path / "m", tmp_path / "one", tmp_path / "two")


def test_a_missing_tensor_names_tensor_and_both_models(tmp_path: Path) -> None:
    less = tensors_of()
    del less["model.layers.1.mlp.up_proj.weight"]
    make_folder(tmp_path / "one")
    make_folder(tmp_path / "two", less)
    for models in (("one", "two"), ("two", "one")):
        with pytest.raises(BadInput, match=r"two: has no tensor model.layers.1.mlp.up_proj.weight, which one has"):
            merge(tmp_path / "m", *(tmp_path / m for m in models))


def test_quantised_models_are_refused_by_their_configuration_or_their_tensors(tmp_path: Path) -> None:
    make_folder(tmp_path / "plain")
    make_folder(tmp_path / "said", config={"quantization_config": {"quant_method": "gptq"}})
    make_folder(tmp_path / "fp8", {n: t.to(torch.float8_e4m3fn) for n, t in tensors_of().items()})
    make_folder(tmp_path / "int8", {n: t.to(torch.int8) if t.dim() > 1 else t for n, t in tensors_of().items()})
    for name, word in (("said", "gptq"), ("fp8", "F8_E4M3"), ("int8", "I8")):
        for models in (("plain", name), (name, "plain")):
            with pytest.raises(BadInput, match=rf"{name}: .*{word}.*"):
                merge(tmp_path / "m", *(tmp_path / m for m in models))


def test_a_header_that_contradicts_itself_is_named(tmp_path: Path) -> None:
    file = make_folder(tmp_path / "a") / "model.safetensors"
    raw = file.read_bytes()
    spoiled = raw.replace(b'"shape":[3,4]', b'"shape":[4,4]', 1)
    assert spoiled != raw
    file.write_bytes(spoiled)
    with pytest.raises(BadInput, match=r"is damaged: tensor model.layers.*\[4, 4\]"):
        merge(tmp_path / "m", tmp_path / "a", tmp_path / "a")


def test_other_architectures_and_other_positions_are_refused_or_said(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", config={"rope_theta": 10000.0})
    make_folder(tmp_path / "b", config={"rope_theta": 500000.0})
    make_folder(tmp_path / "c", config={"model_type": "mistral"})
    with pytest.raises(BadInput, match="c: is of the architecture mistral, a of llama"):
        merge(tmp_path / "m", tmp_path / "a", tmp_path / "c")
    assert any("rope_theta" in n for n in merge(tmp_path / "m", tmp_path / "a", tmp_path / "b").notes)


# -- encoders and experts ------------------------------------------------------------------------------------


def make_encoder(folder: Path, kind: str, labels: int, seed: int) -> Path:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model(kind, vocab_size=80, max_position_embeddings=70, num_labels=labels, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_classifiers_are_merged_with_their_heads(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForSequenceClassification as Classifier

    folders = [make_encoder(tmp_path / f"m{i}", kind, 3, i) for i in range(2)]
    merge(tmp_path / "m", (folders[0], 0.2), (folders[1], 0.8))
    merged, first, second = (Classifier.from_pretrained(f).eval() for f in (tmp_path / "m", *folders))
    states = first.state_dict(), second.state_dict()
    first.load_state_dict({n: 0.2 * t + 0.8 * states[1][n] for n, t in states[0].items()})
    with torch.no_grad():
        assert torch.allclose(merged(IDS).logits, first(IDS).logits, atol=1e-6)
    assert merged.config.num_labels == 3


def test_heads_of_different_shape_are_refused_and_one_can_be_kept(tmp_path: Path) -> None:
    from transformers import AutoConfig

    make_encoder(tmp_path / "three", "bert", 3, 0)
    make_encoder(tmp_path / "two", "bert", 2, 1)
    with pytest.raises(
        BadInput, match=r"tensor classifier\.(weight|bias): two has the shape .* three .*one task.*--copy"
    ):
        merge(tmp_path / "m", tmp_path / "three", tmp_path / "two")
    merge(tmp_path / "m", tmp_path / "three", tmp_path / "two", copies=["classifier=two"])
    merged = weights_of(tmp_path / "m")
    assert torch.equal(merged["classifier.weight"], weights_of(tmp_path / "two")["classifier.weight"])
    assert AutoConfig.from_pretrained(tmp_path / "m").num_labels == 2
    body = make_encoder(tmp_path / "body", "bert", 3, 2)
    weights = {n.removeprefix("bert."): t for n, t in weights_of(body).items() if n.startswith("bert.")}
    save_file(weights, body / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"body: has no tensor classifier.bias .*--copy classifier.bias=two"):
        merge(tmp_path / "n", tmp_path / "two", method="task-arithmetic", base=body)
    merge(tmp_path / "n", tmp_path / "two", method="task-arithmetic", base=body, copies=["classifier=two"])
    assert weights_of(tmp_path / "n")["classifier.weight"].shape == (2, 32)


def test_experts_are_tensors_like_others(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(vocab_size=80, intermediate_size=16, num_local_experts=2, **sizes)
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / f"m{seed}")
    merge(tmp_path / "m", tmp_path / "m0", tmp_path / "m1")
    first, second, merged = (weights_of(tmp_path / n) for n in ("m0", "m1", "m"))
    assert set(merged) == set(first) and any("experts" in n for n in merged)
    for name, tensor in merged.items():
        assert torch.allclose(tensor, (first[name] + second[name]) / 2)


# -- settings and copies -------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two models of 3 layers, one of 1 and one of 2 everywhere: merged numbers less 1 are the share of the other."""
    zeros, ones = ({n: torch.full_like(t, v) for n, t in tensors_of(3).items()} for v in (1.0, 2.0))
    config = {"num_hidden_layers": 3}
    return make_folder(tmp_path / "zeros", zeros, config=config), make_folder(tmp_path / "ones", ones, config=config)


def shares(folder: Path) -> dict[str, float]:
    found = {n.removeprefix("model.").removesuffix(".weight"): t for n, t in weights_of(folder).items()}
    assert all((t == t.flatten()[0]).all() for t in found.values())
    return {n: round(float(t.flatten()[0]) - 1, 6) for n, t in found.items()}


def test_gradients_filters_and_values_for_each_model_reach_their_tensors(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    zeros, ones = map(str, pair)
    merge(tmp_path / "a", zeros, ones, method="slerp", settings={"t": "[0,0.5,1]", "t@mlp": "0.25"})
    found = shares(tmp_path / "a")
    assert [found[f"layers.{i}.self_attn.q_proj"] for i in range(3)] == [0, 0.5, 1]
    assert [found[f"layers.{i}.mlp.up_proj"] for i in range(3)] == [0.25] * 3
    assert found["embed_tokens"] == found["norm"] == found["lm_head"] == 0, (
        "tensors outside the layers: the first value"
    )
    merge(tmp_path / "b", zeros, ones + ":3", settings={"weight@mlp": "0.9,0.1", "weight@norm": "1"})
    found = shares(tmp_path / "b")
    assert (found["layers.0.mlp.up_proj"], found["layers.1.self_attn.q_proj"], found["norm"]) == (0.1, 0.75, 0.5)
    merge(tmp_path / "c", zeros, ones, settings={"weight": "0.9,0.1"})
    assert set(shares(tmp_path / "c").values()) == {0.1}
    with pytest.raises(BadInput, match="weight: 3 values for 2 models"):
        merge(tmp_path / "d", zeros, ones, settings={"weight": "1,2,3"})
    with pytest.raises(BadInput, match="unknown parameter 'densty'"):
        merge(tmp_path / "d", zeros, ones, settings={"densty": "1"})


def test_copies_are_taken_as_they_are(pair: tuple[Path, Path], tmp_path: Path) -> None:
    zeros, ones = pair
    copies = ["lm_head", "embed=ones", "layers.1.*", f"norm={ones}"]
    with pytest.raises(BadInput, match=r"--copy layers.1.\*: no tensor has such a name"):
        merge(tmp_path / "m", zeros, ones, copies=copies)
    copies[2] = "*layers.1.*"
    merge(tmp_path / "m", zeros, ones, copies=copies)
    found = shares(tmp_path / "m")
    assert (found["lm_head"], found["embed_tokens"], found["norm"]) == (0, 1, 1)
    assert (found["layers.1.mlp.up_proj"], found["layers.0.mlp.up_proj"]) == (0, 0.5)
    with pytest.raises(BadInput, match="none of the models; did you mean ones"):
        merge(tmp_path / "n", zeros, ones, copies=["norm=one"])


def test_layers_from_many_places_are_renumbered(pair: tuple[Path, Path], tmp_path: Path) -> None:
    zeros, ones = (resolve(p) for p in pair)
    slices = (
        Slice((Stretch(0, 0, 2), Stretch(1, 1, 3)), {"weight": [{"filter": "mlp", "value": (3.0, 1.0)}]}),
        Slice((Stretch(1, 0, 2), Stretch(0, 0, 2, {"weight": [0, 1]}))),
    )
    plan = make_plan(MergeRequest("linear", (Part(zeros), Part(ones)), slices=slices))
    jobs = {j.name: j for j in plan.jobs}
    assert plan.config["num_hidden_layers"] == 4
    assert sum("layers" in n for n in jobs) == 8 and "model.layers.3.mlp.up_proj.weight" in jobs
    assert [s.info.name for s in jobs["model.layers.1.mlp.up_proj.weight"].models] == [  # type: ignore[attr-defined]
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
    ]
    assert jobs["model.layers.0.mlp.up_proj.weight"].method.weight == (3.0, 1.0)
    assert [jobs[f"model.layers.{i}.mlp.up_proj.weight"].method.weight for i in (2, 3)] == [(1.0, 0.0), (1.0, 1.0)]
    for wrong, word in (
        ((Slice((Stretch(0, 0, 9),)),), "which has 3"),
        ((Slice((Stretch(0, 0, 2), Stretch(1, 0, 1))),), "different length"),
        ((Slice((Stretch(0, 0, 1), Stretch(0, 1, 2))),), "twice"),
    ):
        with pytest.raises(BadInput, match=word):
            make_plan(MergeRequest("linear", (Part(zeros), Part(ones)), slices=wrong))


def test_a_list_with_an_entry_for_each_layer_follows_the_layers(tmp_path: Path) -> None:
    kinds = ["full", "sliding", "other"]
    folder = make_folder(
        tmp_path / "a", tensors_of(3), config={"num_hidden_layers": 3, "layer_types": kinds, "architectures": ["X"]}
    )
    slices = (Slice((Stretch(0, 0, 2),)), Slice((Stretch(0, 1, 3),)))
    plan = make_plan(MergeRequest("linear", (Part(resolve(folder)),), slices=slices))
    assert plan.config["layer_types"] == ["full", "sliding", "sliding", "other"]
