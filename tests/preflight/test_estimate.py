"""Estimates: hand-worked parts, the measured peaks that they must stay near, and the page made of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from palimpsest.errors import BadInput
from palimpsest.preflight.estimate import PROGRAM, estimate_memory, micro_rows, state_bytes
from palimpsest.training.settings import Tuning

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "memory" / "records.jsonl"
TINY = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
}
# embeddings 2 * 800, last norm 8; a layer: q 64, k and v 32 each, o 64, feed-forward 3 * 160, norms 16
PARAMETERS = 1608 + 2 * (64 + 32 + 32 + 64 + 480 + 16)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"memory_{name}", ROOT / "benchmarks" / "memory" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_weights_and_states_of_adapters_by_hand() -> None:
    parts = estimate_memory(TINY, tuning=Tuning(rank=3)).parts
    adapters = 2 * 3 * ((8 + 8) + (8 + 4))  # two layers, rank 3, query and value
    assert parts["weights"] == 4 * PARAMETERS and parts["trained"] == 16 * adapters
    assert parts["program"] == PROGRAM


def test_all_weights_take_sixteen_bytes_a_parameter_and_bfloat16_half_the_weights() -> None:
    full = estimate_memory(TINY, tuning=Tuning(adapter="full"))
    assert full.certain == 16 * PARAMETERS and full.dtype == "float32"
    lora = estimate_memory(TINY, tuning=Tuning(), device="cuda")
    assert lora.parts["weights"] == 2 * PARAMETERS and lora.dtype == "bfloat16"
    assert estimate_memory(TINY, tuning=Tuning(adapter="full"), device="cuda").parts["weights"] == 4 * PARAMETERS


def test_activations_and_logits_of_one_token_by_hand() -> None:
    parts = estimate_memory(TINY, tuning=Tuning(), rows=1, tokens=1).parts
    kept = 2 * 8 * 4 + (8 + 4 * 8 + 3 * 20) * 4  # two norms; input, q k v and output, the feed-forward's three
    assert parts["activations"] == 3 * kept + 4 and parts["logits"] == 16 * 100


def test_a_batch_is_cut_into_equal_parts_and_rows_at_the_positions() -> None:
    assert micro_rows(Tuning(batch=36, micro_batch=32)) == 18
    short = estimate_memory(TINY, tuning=Tuning(batch=8, max_tokens=4096))
    assert short == estimate_memory(TINY, tuning=Tuning(), rows=8, tokens=64)


def test_more_rows_longer_rows_and_more_trained_never_take_less() -> None:
    one = estimate_memory(TINY, tuning=Tuning(), rows=1, tokens=32).total
    assert one < estimate_memory(TINY, tuning=Tuning(), rows=2, tokens=32).total
    assert one < estimate_memory(TINY, tuning=Tuning(), rows=1, tokens=64).total
    assert one < estimate_memory(TINY, tuning=Tuning(targets="all-linear"), rows=1, tokens=32).total
    assert one < estimate_memory(TINY, tuning=Tuning(adapter="full"), rows=1, tokens=32).total


def test_generating_keeps_keys_and_values_of_the_groups_only() -> None:
    deep = {**TINY, "num_hidden_layers": 500}
    parts = estimate_memory(deep, rows=100, tokens=50).parts
    assert parts["keys and values"] == 2 * 5000 * 500 * 4 * 4


def test_the_state_of_a_killed_run_is_trained_weights_and_two_moments() -> None:
    assert state_bytes(TINY, Tuning(adapter="full")) == 12 * PARAMETERS
    assert state_bytes(TINY, Tuning(rank=1)) == 12 * 2 * 28


def test_a_config_without_its_numbers_is_refused() -> None:
    with pytest.raises(BadInput, match="vocab_size is missing"):
        estimate_memory({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1})


def test_estimates_stay_within_a_factor_of_two_of_the_measured_peaks() -> None:
    measure = script("measure")
    records = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    assert {r["case"] for r in records} == set(measure.CASES)
    for record in records:
        case = measure.CASES[record["case"]]
        tuning = measure.tuning_of(case)
        now = estimate_memory(case["config"], tuning=tuning, rows=case["rows"], tokens=case["tokens"])
        own = (now.total - PROGRAM) / (record["peak"] - record["program"])
        assert 0.5 < own < 2, record["case"]


def test_the_pages_are_those_that_the_scripts_make() -> None:
    assert script("table").page() == (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    records = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    assert script("measure").table(records) == RECORDS.with_name("results.md").read_text(encoding="utf-8")
