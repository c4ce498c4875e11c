"""Every legal symmetry leaves every family's function as it is: alone, together, over shapes and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import FAMILIES
from palimpsest.symmetry import COMPONENTS, components_of, draw, edit_for, legal
from symmetry.networks import drawn, everything, legality, load, network, write

EXACT = 1e-4  # of the largest logit, float32
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FAMILIES),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}),
    ("llama", {"tied": True, "num_key_value_heads": 1}),
    ("qwen2", {"tied": True}),
    ("mistral", {"sliding_window": 8}),
    ("gemma", {"tied": False}),
    ("gemma2", {"tied": False, "attn_logit_softcapping": 2.0}),
    ("gpt2", {"tied": False}),
    ("opt", {"tied": False}),
    ("opt", {"do_layer_norm_before": False}),
    ("opt", {"activation_function": "gelu"}),
    ("opt", {"layer_norm_elementwise_affine": False}),
    ("phi", {"qk_layernorm": True}),
    ("phi", {"num_key_value_heads": 2}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox", {"rotary_pct": 1.0}),
    ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    ("olmo", {"clip_qkv": 0.5}),
    ("olmo", {"tied": True}),
]
CASES = [(f, v, c) for f, v in VARIANTS for c in (*COMPONENTS, "everything")]
LABELS = [f"{f}-{'-'.join(f'{k}={x}' for k, x in v.items() if not isinstance(x, dict))}-{c}" for f, v, c in CASES]


def made(family: str, changes: dict[str, Any]) -> Any:
    frozen = {k: v for k, v in changes.items() if not isinstance(v, dict)}
    return network(family, **frozen) if frozen == changes else rotary_in_part()


_KEPT: list[Any] = []


def rotary_in_part() -> Any:
    """Phi-3 with half of a head turning (its settings are no key of a cache)."""
    if not _KEPT:
        import tempfile

        from factory import make_model
        from palimpsest.checkpoint import Checkpoint

        changes = next(v for f, v in VARIANTS if f == "phi3" and v)
        folder = tempfile.TemporaryDirectory()
        _KEPT.extend([folder, load(Checkpoint(make_model(Path(folder.name) / "m", "phi3", **changes), "phi3"))])
    return _KEPT[1]


@pytest.mark.parametrize(("family", "changes", "component"), CASES, ids=LABELS)
def test_a_legal_symmetry_changes_weights_and_no_logit(family: str, changes: dict[str, Any], component: str) -> None:
    model = made(family, changes)
    allowed = legality(model)
    wanted = everything(allowed) if component == "everything" else (component,)
    if component not in ("everything", *allowed.allowed):
        assert allowed.refused[component]
        return
    gauge = draw(model.config, wanted, drawn())
    assert components_of(gauge) == tuple(c for c in COMPONENTS if c in wanted)
    edit, names, config = edit_for(gauge, model.checkpoint)
    assert config == {}
    changed = 0
    for name, parameter in model.model.named_parameters():
        after = parameter.detach().clone()
        edit(name, after)
        assert (name in names) or torch.equal(after, parameter), f"{name} changes and is not announced"
        changed += not torch.equal(after, parameter)
    assert changed > 0
    assert model.moved(edit) < EXACT


@settings(max_examples=25)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    heads=st.integers(2, 5),
    groups=st.integers(1, 5),
    inner=st.integers(3, 50),
    seed=st.integers(0, 1 << 30),
    condition=st.sampled_from([1.0, 1.5, 4.0]),
    exact=st.booleans(),
    tied=st.booleans(),
)
def test_all_together_over_shapes_and_seeds(
    tmp_path_factory: pytest.TempPathFactory,
    family: str, heads: int, groups: int, inner: int, seed: int, condition: float, exact: bool, tied: bool,
) -> None:  # fmt: skip
    from factory import make_model
    from palimpsest.checkpoint import Checkpoint

    sizes: dict[str, Any] = {"hidden": 16 * heads}
    if "num_key_value_heads" in FAMILIES[family]:
        sizes["num_key_value_heads"] = next(g for g in range(min(groups, heads), 0, -1) if heads % g == 0)
    sizes |= {"ffn_dim": inner} if family == "opt" else {"n_inner" if family == "gpt2" else "intermediate_size": inner}
    if family == "opt":
        sizes["word_embed_proj_dim"] = 16 * heads
    if family == "gpt_neo":
        sizes["num_heads"] = heads
    folder = tmp_path_factory.mktemp("shapes") / "m"
    model = load(Checkpoint(make_model(folder, family, seed=seed % 97, tied=tied, **sizes), family))
    allowed = legal(model.config)
    gauge = draw(model.config, everything(allowed, not exact), drawn(seed), condition, exact=exact)
    assert model.moved_by(gauge) < EXACT


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2"])
def test_a_tied_model_is_turned_once_its_head_is_written_apart(family: str, tmp_path: Path) -> None:
    model = network(family, tied=True)
    gauge = draw(model.config, ("residual-rotation", "final-norm", "norms"), drawn(), untied=True)
    written = write(model.checkpoint, gauge, tmp_path / "out", untie=True)
    assert written.config["tie_word_embeddings"] is False
    assert "lm_head.weight" in {t.name for t in written.tensors()}
    before, after = model.logits(), load(written).logits()
    assert float((after - before).abs().max() / before.abs().max()) < EXACT


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "opt", "gpt_neox", "gemma2"])
def test_permutations_signs_and_powers_of_two_keep_every_digit_of_bfloat16(family: str) -> None:
    model = network(family, dtype="bfloat16")
    gauge = draw(model.config, everything(legality(model), False), drawn(), condition=4.0, exact=True)
    edit, names, _ = edit_for(gauge, model.checkpoint)
    assert names
    for name, parameter in model.model.named_parameters():
        wide, narrow = parameter.detach().clone(), parameter.detach().bfloat16()
        edit(name, wide)
        edit(name, narrow)
        assert torch.equal(narrow.float(), wide), name
    assert model.moved(edit) < EXACT


def test_drawn_matrices_are_as_well_conditioned_as_asked() -> None:
    config = network("gpt2").config
    layer = draw(config, ("value-output", "query-key"), drawn(), condition=3.0).layers[0]
    assert layer.value_output is not None and layer.query_key_still is not None
    for matrices in (layer.value_output, layer.query_key_still):
        sizes = torch.linalg.svdvals(matrices.double())
        assert float(sizes.max()) <= 3.0001 and float(sizes.min()) >= 1 / 3.0001 and float(sizes.std()) > 0.1
    orthogonal = draw(config, ("value-output",), drawn(), condition=1.0).layers[0].value_output
    assert orthogonal is not None
    torch.testing.assert_close(orthogonal @ orthogonal.mT, torch.eye(16).expand(4, 16, 16), atol=1e-5, rtol=0)
