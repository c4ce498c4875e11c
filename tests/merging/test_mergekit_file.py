"""mergekit's files, read unchanged: what each field becomes, what mergekit makes of the same file, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import palimpsest as pal
from factory import make_model
from merging.folders import config_of, make_folder, tensors_of, weights_of
from palimpsest.errors import BadInput
from palimpsest.merging.mergekit_file import read_mergekit
from palimpsest.merging.plan import make_plan
from palimpsest.merging.request import MergeRequest
from palimpsest.merging.tokens import read_tokens

RUN = pal.Run(device="cpu", threads=2)
RESCALING = ("dare", "dare-ties", "della", "della-linear", "ties")


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three folders in the current one, with their names as a file would give them."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        make_folder(tmp_path / name, seed=seed, tokens=["x", "y"])
    return ["a", "./b", str(tmp_path / "c")]


def read(tmp_path: Path, text: str) -> MergeRequest:
    file = tmp_path / "merge.yml"
    file.write_text(text)
    return read_mergekit(file)


LINEAR = """
models:
  - model: a
    parameters:
      weight: 1.0
  - model: ./b
    parameters: {weight: [0, 0.5, 1]}
merge_method: linear
dtype: float16
"""


def test_models_with_weights(tmp_path: Path, names: list[str]) -> None:
    request = read(tmp_path, LINEAR)
    assert request.method == "linear" and [p.model.name for p in request.parts] == ["a", "b"]
    assert [p.settings for p in request.parts] == [{"weight": 1.0}, {"weight": [0, 0.5, 1]}]
    assert (request.dtype, request.base, request.vocabulary) == ("float16", None, "unchecked")
    assert request.settings["normalize"] is True and not request.notes


def test_task_vector_methods_leave_the_base_out_of_the_models(tmp_path: Path, names: list[str]) -> None:
    request = read(
        tmp_path,
        """
base_model: a
models:
  - model: a
    parameters: {weight: 7}
  - model: b
    parameters: {weight: 0.5}
  - model: c
merge_method: task_arithmetic
parameters: {lambda: 0.7, int8_mask: true, normalize: true, density: 0.5}
dtype: bfloat16
out_dtype: float32
name: mine
""",
    )
    assert request.method == "task-arithmetic" and request.base is not None and request.base.name == "a"
    assert [p.model.name for p in request.parts] == ["b", "c"] and request.parts[0].settings == {"weight": 0.5}
    assert request.settings == {"lambda": 0.7, "normalize": True} and request.dtype == "float32"
    said = " ".join(request.notes)
    assert all(word in said for word in ("int8_mask", "density", "is the base, so its weight", "name is not used"))


def test_for_linear_the_base_is_a_model_that_gives_configuration_and_tokenizer(
    tmp_path: Path, names: list[str]
) -> None:
    request = read(tmp_path, LINEAR + "base_model: b\n")
    assert request.base is None and request.donor == 1 and request.outline.name == "b" and len(request.parts) == 2
    request = read(tmp_path, LINEAR + "base_model: c\nparameters: {weight: 1}\n")
    assert [p.model.name for p in request.parts] == ["a", "b", "c"] and request.outline.name == "c"
    with pytest.raises(BadInput, match="base_model: counts as a model of linear and has no weight"):
        read(tmp_path, LINEAR + "base_model: c\n")


def test_for_slerp_the_base_is_the_first_and_t_the_share_of_the_other(tmp_path: Path, names: list[str]) -> None:
    text = """
slices:
  - sources:
      - {model: b, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2]}
merge_method: slerp
base_model: a
parameters:
  t:
    - {filter: self_attn, value: [0, 1]}
    - {filter: mlp, value: [1, 0]}
    - value: 0.5
"""
    request = read(tmp_path, text)
    assert request.base is not None and request.base.name == "a" and [p.model.name for p in request.parts] == ["b"]
    jobs = {j.facts.name: j for j in make_plan(request).jobs}
    parts = ("embed_tokens", "layers.0.mlp.up_proj", "layers.1.mlp.up_proj", "layers.1.self_attn.q_proj")
    assert [jobs[f"model.{n}.weight"].method.t for n in parts] == [0.5, 1, 0, 1]
    first = jobs["model.norm.weight"].models
    assert [s.model for s in first] == ["a", "b"]  # type: ignore[attr-defined]


def test_rules_that_are_built_in_there_and_parameters_here_are_theirs(tmp_path: Path, names: list[str]) -> None:
    request = read(tmp_path, "merge_method: sce\nbase_model: a\nmodels: [{model: b}, {model: c}]\n")
    assert request.settings == {"select_topk": 1.0, "floor": 1e-6}


@pytest.mark.parametrize("said", ["true", "false", None])
def test_rescale_is_mergekits_and_mergekits_default_stands_where_the_file_is_silent(
    tmp_path: Path, names: list[str], said: str | None
) -> None:
    for method in RESCALING:
        theirs = {"dare": "dare_linear"}.get(method, method.replace("-", "_"))
        rescale = "" if said is None else f", rescale: {said}"
        request = read(
            tmp_path,
            f"merge_method: {theirs}\nbase_model: a\nmodels: [{{model: b, parameters: {{weight: 1, density: 0.5}}}}]\n"
            f"parameters: {{lambda: 1{rescale}}}\n",
        )
        silent = "none" if method == "ties" else "l1"
        assert request.method == method
        assert request.settings["rescale"] == {"true": "l1", "false": "none", None: silent}[said]
        assert request.settings["normalize"] is (method in ("ties", "della"))


def test_settings_of_source_slice_module_and_file_count_in_this_order(tmp_path: Path, names: list[str]) -> None:
    request = read(
        tmp_path,
        """
merge_method: linear
modules:
  default:
    parameters:
      weight: [{filter: norm, value: 5}]
    slices:
      - sources:
          - model: a
            layer_range: [0, 1]
            parameters: {weight: {filter: mlp, value: 9}}
          - {model: b, layer_range: [1, 2]}
        parameters:
          weight: [{filter: q_proj, value: 3}]
      - sources: [{model: a, layer_range: [0, 2]}]
parameters: {weight: 1}
""",
    )
    plan = make_plan(request)
    jobs = {j.name: j.method.weight for j in plan.jobs}
    assert jobs["model.layers.0.mlp.up_proj.weight"] == (9, 1)
    assert jobs["model.layers.0.self_attn.q_proj.weight"] == (3, 3)
    assert jobs["model.norm.weight"] == (5,) and jobs["model.embed_tokens.weight"] == (1, 1)
    assert plan.config["num_hidden_layers"] == 3 and len(request.parts) == 2


def test_a_stack_takes_configuration_and_tokenizer_of_a_base_that_gives_no_layer(
    tmp_path: Path, names: list[str]
) -> None:
    (tmp_path / "c" / "chat_template.jinja").write_text("{{ c }}")
    text = """
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [0, 2], parameters: {scale: 0.5}}]
merge_method: passthrough
base_model: c
tokenizer_source: base
"""
    (tmp_path / "merge.yml").write_text(text)
    pal.merge(config=tmp_path / "merge.yml", out=tmp_path / "out", run=RUN)
    merged, second = weights_of(tmp_path / "out"), weights_of(tmp_path / "b")
    assert torch.equal(merged["model.layers.3.mlp.up_proj.weight"], second["model.layers.1.mlp.up_proj.weight"] / 2)
    assert config_of(tmp_path / "out")["num_hidden_layers"] == 4
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ c }}"


def test_tokenizers(tmp_path: Path, names: list[str]) -> None:
    for text, how, owner in (
        ("tokenizer_source: base", "base", None),
        ("tokenizer_source: union", "union", None),
        ("tokenizer_source: b", "base", "b"),
        ("tokenizer: {source: union}", "union", None),
        ("tokenizer: {source: ./b}", "base", "b"),
    ):
        request = read(tmp_path, LINEAR + text + "\n")
        assert request.vocabulary == how and (request.owner.name if request.owner else None) == owner
    for text, where in (
        ("tokenizer: {tokens: {x: {source: a}}}", "tokenizer.tokens"),
        ("tokenizer: {pad_to_multiple_of: 64}", "tokenizer.pad_to_multiple_of"),
        ("tokenizer: {source: base}\ntokenizer_source: base", "not both"),
    ):
        with pytest.raises(BadInput, match=where):
            read(tmp_path, LINEAR + text + "\n")


def test_the_tokenizer_of_a_model_is_kept_with_its_numbers(tmp_path: Path, names: list[str]) -> None:
    make_folder(tmp_path / "d", seed=5, rows=3, tokens=["y", "z", "x"])
    text = "merge_method: linear\nmodels: [{model: a}, {model: d}]\ntokenizer_source: d\nparameters: {weight: 1}\n"
    (tmp_path / "merge.yml").write_text(text + 'chat_template: "{{ mine }}"\n')
    pal.merge(config=tmp_path / "merge.yml", out=tmp_path / "out", run=RUN)
    assert read_tokens(tmp_path / "out") == {"y": 0, "z": 1, "x": 2}
    assert config_of(tmp_path / "out")["vocab_size"] == 3
    a, d, merged = (weights_of(tmp_path / n)["lm_head.weight"] for n in ("a", "d", "out"))
    assert torch.allclose(merged, (d + torch.stack([a[1], d[1], a[0]])) / 2)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ mine }}"


def test_the_tokenizer_of_a_model_that_gives_no_weights(tmp_path: Path, names: list[str]) -> None:
    make_folder(tmp_path / "d", rows=3, tokens=["new", "y", "x"])
    text = "merge_method: linear\nmodels: [{model: a}, {model: b}]\ntokenizer_source: d\nparameters: {weight: 1}\n"
    (tmp_path / "merge.yml").write_text(text)
    result = pal.merge(config=tmp_path / "merge.yml", out=tmp_path / "out", run=RUN)
    a, b, merged = (weights_of(tmp_path / n)["lm_head.weight"] for n in ("a", "b", "out"))
    assert torch.allclose(merged[1:], ((a + b) / 2)[[1, 0]]) and not merged[0].any()
    assert any("zero in the merge: 1" in n for n in result.notes)


def test_a_file_without_a_tokenizer_source_merges_rows_by_number_and_says_so(tmp_path: Path, names: list[str]) -> None:
    make_folder(tmp_path / "d", seed=5, tokens=["y", "x"])
    (tmp_path / "merge.yml").write_text(
        "merge_method: linear\nmodels: [{model: a}, {model: d}]\nparameters: {weight: 1}\n"
    )
    result = pal.merge(config=tmp_path / "merge.yml", out=tmp_path / "out", run=RUN)
    assert any("tokenizers differ" in n and "by number" in n for n in result.notes)


def test_references_with_an_adapter(tmp_path: Path, names: list[str]) -> None:
    base = make_model(tmp_path / "base", layers=1)
    from merging.test_adapters import make_adapter

    make_adapter(base, tmp_path / "lora")
    for said in ("base+lora", "{model: base, lora: lora}", "{model: {path: base}, lora: ./lora}"):
        request = read(tmp_path, f"merge_method: task_arithmetic\nbase_model: base\nmodels: [{{model: {said}}}]\n")
        assert request.parts[0].on is not None and request.parts[0].model.is_adapter
        assert len(make_plan(request).jobs) > 5
    with pytest.raises(BadInput, match="a base with an adapter on it is not read"):
        read(tmp_path, "merge_method: task_arithmetic\nbase_model: base+lora\nmodels: [{model: base}]\n")


# -- mergekit itself -----------------------------------------------------------------------------------------

FILES = {
    "linear": "models: [{model: A, parameters: {weight: [0, 1]}}, {model: B, parameters: {weight: 1}}]\n"
    "merge_method: linear\nbase_model: B\n",
    "slerp": "slices: [{sources: [{model: B, layer_range: [0, 2]}, {model: A, layer_range: [0, 2]}]}]\n"
    "merge_method: slerp\nbase_model: A\nparameters: {t: [{filter: self_attn, value: [0, 0.3, 1]}, {value: 0.7}]}\n",
    "task_arithmetic": "models: [{model: A}, {model: B, parameters: {weight: 0.4}}, {model: C, parameters: "
    "{weight: [{filter: mlp, value: 0.9}, {value: -0.2}]}}]\nmerge_method: task_arithmetic\nbase_model: A\n"
    "parameters: {normalize: false, int8_mask: true, lambda: 1.5}\n",
    "stack": "slices: [{sources: [{model: A, layer_range: [0, 2]}, {model: B, layer_range: [0, 2]}], parameters: "
    "{weight: [0.1, 0.9]}}, {sources: [{model: B, layer_range: [1, 2], parameters: {weight: 3}}]}]\n"
    "merge_method: linear\nparameters: {weight: 2, normalize: true}\n",
}
_TASKS = FILES["task_arithmetic"]
FILES |= {
    "ties": _TASKS.replace("lambda: 1.5", "density: [0.9, 0.5]").replace(
        "merge_method: task_arithmetic", "merge_method: ties"
    ),
    "breadcrumbs": _TASKS.replace("lambda: 1.5", "density: 0.8, gamma: 0.02").replace(
        "merge_method: task_arithmetic", "merge_method: breadcrumbs_ties"
    ),
    "sce": _TASKS.replace("lambda: 1.5", "select_topk: 0.6").replace(
        "merge_method: task_arithmetic", "merge_method: sce"
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mergekit")
    return {n: make_model(root / n, "mistral", seed=i) for i, n in enumerate("ABC")}


@pytest.mark.parametrize("name", FILES)
def test_mergekit_makes_the_same_of_the_same_file(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    text = re.sub(r"(?<=model: )([ABC])\b", lambda m: str(models[m[1]]), FILES[name]) + "dtype: float32\n"
    (tmp_path / "merge.yml").write_text(text)
    options = MergeOptions(copy_tokenizer=True, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(tmp_path / "theirs"), options)
    pal.merge(config=tmp_path / "merge.yml", out=tmp_path / "ours", digests=False, run=RUN)
    theirs, ours = weights_of(tmp_path / "theirs"), weights_of(tmp_path / "ours")
    assert set(ours) == set(theirs)
    for key, tensor in ours.items():
        assert torch.allclose(tensor, theirs[key], atol=2e-6), key
    for key in ("num_hidden_layers", "vocab_size", "tie_word_embeddings"):
        assert config_of(tmp_path / "ours")[key] == config_of(tmp_path / "theirs").get(key, False)
    assert read_tokens(tmp_path / "ours") == read_tokens(tmp_path / "theirs")


# -- refusals ------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, str]] = [
    ("merge_methud: linear", r"unknown field 'merge_methud'; did you mean merge_method"),
    ("merge_method: linaer", r"merge_method: there is no merge 'linaer'; did you mean linear"),
    ("models: []\nmerge_method: linear", r"give one of models, slices and modules; here are none"),
    (LINEAR + "slices: [{sources: []}]", r"give one of .*; here are models, slices"),
    (LINEAR.replace("model: a", "modle: a"), r"models\[0\]: unknown field 'modle'; did you mean model"),
    (LINEAR.replace("model: a", "model: none/of/it"), r"models\[0\].model: there is no model folder"),
    (
        LINEAR.replace("weight: 1.0", "wieght: 1.0"),
        r"models\[0\].parameters: unknown parameter 'wieght'; did you mean w",
    ),
    (LINEAR.replace("weight: 1.0", "weight: [{filtr: a}]"), r"models\[0\].parameters.weight: .* is no"),
    (LINEAR + "dtype: float8", r"float8"),
    (LINEAR + "out_dtype: int8", r"int8"),
    (LINEAR + "base_model: a@main", r"base_model: a revision is not read; run `hf download"),
    (LINEAR.replace("linear", "ties"), r"base_model: is missing"),
    ("merge_method: linear\nmodules: {x: {models: [{model: a}]}, y: {}}", r"modules: only models of one module"),
    ("merge_method: linear\nmodels: {model: a}", r"models: is no list"),
    ("merge_method: linear\nparameters: [1]\nmodels: [{model: a}]", r"parameters: is no mapping"),
    (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0]}]}]",
        r"sources\[0\].layer_range: expected",
    ),
    ("merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}], residual_weight: 1}]", r"residual_w"),
    ("- a\n- b", r"is no mapping"),
    ("a: [1", r"merge.yml:\d+: is no YAML"),
    ("a: 1\n---\nb: 2", r"holds 2 documents"),
    ("models: 3\nmerge_method: 3", r"merge_method: is missing"),
]


@pytest.mark.parametrize(("text", "problem"), WRONG, ids=[p[:30] for _, p in WRONG])
def test_what_is_wrong_is_named_with_file_and_field(tmp_path: Path, names: list[str], text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem) as caught:
        read(tmp_path, text)
    assert "merge.yml" in str(caught.value)


LEAVES = st.sampled_from(
    [None, True, 0, -1, 0.5, "a", "./b", "a+b", "base", "union", "weight", [], {}, [0, 1], [0, 2], "x@y"]
)
KEYS = ["models", "slices", "sources", "model", "layer_range", "parameters", "weight", "filter", "value", "base_model"]
KEYS += ["dtype", "tokenizer", "tokenizer_source", "source", "chat_template", "modules", "t", "density", "normalize"]
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(
    method=st.sampled_from(["linear", "slerp", "ties", "passthrough"]),
    body=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=4),
    models=st.lists(
        st.fixed_dictionaries({"model": LEAVES}, optional={"parameters": JUNK, "layer_range": LEAVES}), max_size=3
    ),
    sliced=st.booleans(),
)
def test_no_file_whatever_raises_anything_but_bad_input(
    tmp_path: Path, names: list[str], method: str, body: dict[str, Any], models: list[Any], sliced: bool
) -> None:
    said = {"merge_method": method, **body, **({"slices": [{"sources": models}]} if sliced else {"models": models})}
    try:
        make_plan(read(tmp_path, yaml.safe_dump(said)))
    except BadInput as error:
        assert "\n" not in str(error)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--config .*none.yml: cannot be read"):
        read_mergekit(tmp_path / "none.yml")


def test_the_same_words_mean_the_same_in_a_call(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "merge.yml").write_text(LINEAR)
    pal.merge(config=tmp_path / "merge.yml", out=tmp_path / "file", run=RUN)
    pal.merge("linear", ["a:1.0", "b"], tmp_path / "call", settings={"weight": [0, 0.5, 1]}, dtype="float16", run=RUN)
    file, call = weights_of(tmp_path / "file"), weights_of(tmp_path / "call")
    assert all(torch.equal(t, call[n]) for n, t in file.items()) and set(file) == set(tensors_of())


def test_other_options_may_not_contradict_the_file(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "merge.yml").write_text(LINEAR)
    said: list[dict[str, Any]] = [{"method": "ties"}, {"models": ["a"]}, {"base": "a"}, {"settings": {"x": "1"}}]
    said += [{"dtype": "float32"}, {"vocabulary": "base"}, {"copies": ["x"]}]
    for more in said:
        with pytest.raises(BadInput, match=r"and --config .*merge.yml: the file says"):
            pal.merge(out=tmp_path / "out", config=tmp_path / "merge.yml", run=RUN, **more)
