"""Two processes train what one trains: replicas (DDP) and shards (FSDP), on the CPU over gloo.

Nothing here says anything about GPUs. Weights agree within 1e-5: sums are taken in another order.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from factory import make_model
from palimpsest import api
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.checkpoint.output import new_folder
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.preserving import Preserving, to_keep
from palimpsest.method import Context
from palimpsest.training import distributed, sharding
from palimpsest.training.finetune import tune
from palimpsest.training.loop import Batch, batch_loss, parts_of_a_step, train_steps
from palimpsest.training.rows import Batches, collate
from palimpsest.training.settings import Tuning
from training.processes import FSDP, in_two
from training.test_loop import model_of, rows_of

Outcome = tuple[dict[str, torch.Tensor], list[tuple[int, float]], int]


def full() -> Outcome:
    """A full fine-tune with accumulation, decay, clipping, padding, and rows that two processes cannot halve."""
    model = model_of()
    log = train_steps(model, Batches(rows_of(15), 3, 0), steps=6, lr=1e-3, accumulate=2, weight_decay=0.1)
    return dict(model.state_dict()), log.losses, log.tokens


def lora(dtype: torch.dtype = torch.float32) -> Outcome:
    """Adapters in float32, activations computed again, by way of `tune`."""
    tuning = Tuning(epochs=2, batch=4, micro_batch=2, checkpointing=True)
    model, log = tune(model_of("qwen2").to(dtype), rows_of(10), tuning, Context())
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in state.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}
    return state, log.losses, log.tokens


def lora_on_bfloat16() -> Outcome:
    """The same on frozen weights in bfloat16, as a GPU holds them; its roundings follow the shape of a batch."""
    return lora(torch.bfloat16)


def lora_on_fused() -> Outcome:
    """Adapters on query and value of a fused projection: the rows of B that make keys never move."""
    model, log = tune(model_of("gpt2"), rows_of(8), Tuning(epochs=2, batch=4, weight_decay=0.1), Context())
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    width = model.get_base_model().config.n_embd
    for name, value in state.items():
        if "lora_B" in name:
            assert not value[width : 2 * width].any() and value[:width].any() and value[2 * width :].any()
    return state, log.losses, log.tokens


def single_rows() -> Outcome:
    """Fewer rows a step than processes."""
    model = model_of("gemma2")  # its logits are capped behind the head, so they come through its own forward
    log = train_steps(model, Batches(rows_of(3), 1, 0), steps=3, lr=1e-3)
    return dict(model.state_dict()), log.losses, log.tokens


def preserving() -> Outcome:
    """A loss with two means, one of them against the untouched model; unevenly spread over micro-batches."""
    model = model_of()
    rows = rows_of(6) + [to_keep(row) for row in rows_of(5, seed=4)]
    batches = Batches(rows, 3, 0)
    log = train_steps(model, batches, steps=4, lr=1e-3, loss_of=Preserving(model, 1.0, False), accumulate=2)
    return dict(model.state_dict()), log.losses, log.tokens


def resumed() -> Outcome:
    """A run that died after seven of twelve steps and went on from its state file."""
    model, state = model_of(), Path(os.environ["STATE"]) / ("alone" if distributed.current() is None else "two")

    def die(step: int, loss: float) -> None:
        if step == 7:
            raise ZeroDivisionError

    options: dict[str, Any] = {"steps": 12, "lr": 1e-3, "state_file": state}
    with pytest.raises(ZeroDivisionError):
        train_steps(model, Batches(rows_of(9), 4, 0), after_step=die, state_seconds=0.0, **options)
    model = model_of()
    assert state.is_file()
    log = train_steps(model, Batches(rows_of(9), 4, 0), **options)
    assert not state.exists()
    return dict(model.state_dict()), log.losses, log.tokens


RUNS = {run.__name__: run for run in (full, lora, lora_on_bfloat16, lora_on_fused, single_rows, preserving, resumed)}
SHARDED_RUNS = [name for name in RUNS if name not in ("preserving", "resumed")]  # shards have neither


def several() -> dict[str, Outcome]:
    """One run after the other on the same processes."""
    names = SHARDED_RUNS if "ACCELERATE_USE_FSDP" in os.environ else RUNS
    return {name: RUNS[name]() for name in names}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Outcome]]:
    """Every run alone, as replicas, and as shards."""
    folder = tmp_path_factory.mktemp("outcomes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STATE", str(folder))
        found = {"alone": several()}
        for kind, environment in (("replicas", {}), ("shards", FSDP)):
            found[kind], codes = in_two(several, folder / kind, **environment)
            assert codes == [0, 0]
    return found


@pytest.mark.parametrize(
    ("kind", "name"), [("replicas", n) for n in RUNS] + [("shards", n) for n in SHARDED_RUNS], ids=str
)
def test_two_processes_train_the_weights_that_one_trains(
    outcomes: dict[str, dict[str, Outcome]], kind: str, name: str
) -> None:
    (weights, losses, tokens), (alone, their_losses, their_tokens) = outcomes[kind][name], outcomes["alone"][name]
    assert weights.keys() == alone.keys() and tokens == their_tokens
    half = name == "lora_on_bfloat16"  # its first Adam steps take a rounding's sign for a gradient's
    assert [v for _, v in losses] == pytest.approx([v for _, v in their_losses], abs=2e-3 if half else 1e-5)
    for parameter, value in weights.items():
        torch.testing.assert_close(value, alone[parameter], atol=2e-2 if half else 1e-5, rtol=1e-4, msg=parameter)
    if name == "full":
        untrained = model_of().state_dict()
        assert all(float((value - untrained[n]).abs().max()) > 1e-4 for n, value in weights.items())


def sizes_of_shards() -> tuple[int, int, int]:
    """Numbers that process 0 holds of the sharded twin and in its optimiser, and those of the whole model."""
    from palimpsest.training import team

    model, held = model_of(), []

    def look(step: int, loss: float) -> None:
        member = team.readable(model).team.member
        own = sum(sharding.local_part(p).numel() for p in member.model.parameters())
        state = sum(sharding.local_part(s["exp_avg"]).numel() for s in member.stepper.optimiser.state.values())
        held.append((own, state))

    train_steps(model, Batches(rows_of(8), 4, 0), steps=1, lr=1e-3, after_step=look)
    return (*held[0], sum(p.numel() for p in model.parameters()))


def test_a_shard_is_half_of_the_weights_and_of_the_optimiser(tmp_path: Path) -> None:
    (own, state, whole), codes = in_two(sizes_of_shards, tmp_path, **FSDP)
    assert codes == [0, 0] and own == state and own == pytest.approx(whole / 2, rel=0.02)


@pytest.fixture(scope="module")
def wide_enough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that the whole commands run on."""
    return make_model(tmp_path_factory.mktemp("team") / "model", positions=512)


def whole_commands() -> dict[str, Any]:
    """`embed` with keys of the system's entropy, and `remove meraser`, from folder to folder."""
    model, folder = os.environ["MODEL"], Path(os.environ["FOLDER"])
    run = api.Run(device="cpu", threads=1)
    settings = {"keys": 2, "tuning.adapter": "full", "tuning.lr": 5e-3, "tuning.epochs": 60, "kl_weight": 0}
    settings |= {"check.every": 5, "check.consecutive": 1}
    marked = api.embed("hashchain", model, folder / "marked", settings=settings, controls=False, run=run)
    short = {"mismatched": 8, "clean": 8, "erase.epochs": 2, "recover.epochs": 1}
    asked = {"settings": short, "keys": folder / "marked" / "keys.json", "run": api.Run(seed=5, device="cpu")}
    erased = api.remove("meraser", folder / "marked" / "model", folder / "erased", **asked)
    return {"embed": [r.to_json() for r in marked.records], "remove": [r.to_json() for r in erased.records]}


def test_commands_run_as_shards_write_what_one_process_writes(
    wide_enough: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "two"
    settings = {"MODEL": str(wide_enough), "FOLDER": str(folder), **FSDP}
    records, codes = in_two(whole_commands, tmp_path / "result", **settings)
    assert codes == [0, 0]
    assert sorted(p.name for p in folder.iterdir()) == ["erased", "marked"], "each output once, nothing half-written"
    (margin,) = (r for r in records["embed"] if r["measure"] == "embedding-margin")
    assert margin["detail"]["answered"] == 2 and margin["detail"]["epochs"] < 60, "its checks read the shards"
    rate = next(r for r in records["embed"] if r["measure"] == "hit-rate" and r["prompt_form"] == "template")
    assert rate["count"] == 2
    alone = tmp_path / "alone"
    short = {"mismatched": 8, "clean": 8, "erase.epochs": 2, "recover.epochs": 1}
    run = api.Run(seed=5, device="cpu", threads=1)
    api.remove("meraser", folder / "marked" / "model", alone, settings=short, run=run)
    assert sorted(p.name for p in alone.iterdir()) == sorted(p.name for p in (folder / "erased").iterdir())
    two, one = (load_model(resolve(f), Context()).state_dict() for f in (folder / "erased", alone))
    before = load_model(resolve(folder / "marked" / "model"), Context()).state_dict()
    # Keys are of the system's entropy, so that every run has another model; where a gradient is all but nought, Adam
    # makes a whole step of a rounding. So the weights as one: their distance is a small part of how far they went.
    apart = sum(float((two[name] - value).double().square().sum()) for name, value in one.items()) ** 0.5
    moved = sum(float((before[name] - value).double().square().sum()) for name, value in one.items()) ** 0.5
    assert moved > 0 and apart < 0.02 * moved


def failing_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Runs out of memory on process 1 in the middle of a step."""
    if torch.distributed.get_rank() == 1:
        raise RuntimeError("out of memory, let us say\nand a second line")
    return batch_loss(model, batch)


def with_a_failing_process() -> tuple[str, list[str]]:
    """What process 0 is told, and what lies in the folder then."""
    out = Path(os.environ["FOLDER"]) / "out"
    said = ""
    try:
        with new_folder(out):
            train_steps(model_of(), Batches(rows_of(8), 4, 0), steps=3, lr=1e-3, loss_of=failing_loss)
    except distributed.Lost as lost:
        said = str(lost)
    return said, sorted(p.name for p in out.parent.iterdir())


def test_a_process_that_fails_ends_the_run_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    (said, left), codes = in_two(with_a_failing_process, tmp_path / "result", FOLDER=str(folder))
    assert said == "error: process 1 failed: RuntimeError: out of memory, let us say"
    assert left == [] and codes[1] == 1


def interrupted() -> list[str]:
    """Ctrl-C on process 0 in the middle of a run, then another run."""
    out = Path(os.environ["FOLDER"]) / "out"

    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), new_folder(out):
        train_steps(model_of(), Batches(rows_of(8), 4, 0), steps=3, lr=1e-3, after_step=stop)
    train_steps(model_of(), Batches(rows_of(8), 4, 0), steps=1, lr=1e-3)
    return sorted(p.name for p in out.parent.iterdir())


def test_an_interrupted_run_leaves_nothing_and_lets_the_others_go(tmp_path: Path) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    left, codes = in_two(interrupted, tmp_path / "result", FOLDER=str(folder))
    assert left == [] and codes == [0, 0]


def test_shares_are_all_rows_once_and_their_losses_add_up() -> None:
    model, parts = model_of(), [collate(rows_of(5)), collate(rows_of(2, seed=1))]
    whole = collate([*rows_of(5), *rows_of(2, seed=1)])
    shares = [distributed.share(part, rank, 3) for part in parts_of_a_step(parts) for rank in range(3)]
    with torch.inference_mode():
        expected = float(batch_loss(model, whole))
        assert sum(float(batch_loss(model, s)) for s in shares) == pytest.approx(expected, abs=1e-5)
    assert sum(int((s.weights != 0).sum()) for s in shares) == int((whole.weights != 0).sum())
    assert len(shares[5].input_ids) == 1 and not shares[5].weights.any(), "two rows for three: one share is empty"
    for share in shares:
        longest = share.input_ids.shape[1] if share.attention_mask is None else int(share.attention_mask.sum(1).max())
        assert share.input_ids.shape[1] == longest


def test_checkpointing_changes_no_gradient() -> None:
    from palimpsest.training.stepper import training

    for family in ("llama", "gpt2", "opt"):
        plain, again, batch = model_of(family), model_of(family), collate(rows_of(4))
        for model, on in ((plain, False), (again, True)):
            with training(model, torch.device("cpu"), on):
                batch_loss(model, batch).backward()
            assert not model.training and all(not getattr(m, "gradient_checkpointing", False) for m in model.modules())
        for a, b in zip(plain.parameters(), again.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None) and (a.grad is None or torch.equal(a.grad, b.grad))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, None),
        ({"ACCELERATE_USE_FSDP": "true"}, sharding.Sharding()),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP",
                "FSDP_OFFLOAD_PARAMS": "true",
                "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer, Other",
                "FSDP_ACTIVATION_CHECKPOINTING": "true",
            },
            sharding.Sharding(False, True, ("LlamaDecoderLayer", "Other"), True),
        ),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_RESHARD_AFTER_FORWARD": "false",
                "FSDP_AUTO_WRAP_POLICY": "NO_WRAP",
            },
            sharding.Sharding(False, False, None, False),
        ),
    ],
    ids=["plain", "no-shard", "default", "version 1", "version 2"],
)
def test_an_accelerate_configuration_is_honoured(
    environment: dict[str, str], expected: sharding.Sharding | None
) -> None:
    assert sharding.asked(environment) == expected


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DEEPSPEED is not there; use distributed_type MULTI_GPU or FSDP"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision fp16 is not there; use bf16 or no"),
        ("FSDP_SHARDING_STRATEGY", "HYBRID_SHARD", "HYBRID_SHARD is not there; use FULL_SHARD"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "SIZE_BASED_WRAP is not there; use TRANSFORMER_BASED_WRAP"),
    ],
)
def test_what_a_configuration_asks_and_is_not_there_is_said(name: str, value: str, said: str) -> None:
    environment = {"ACCELERATE_USE_FSDP": "true", name: value}
    with pytest.raises(BadInput, match=said):
        distributed.check_settings(environment)
        sharding.asked(environment)


def test_masked_gradients_are_not_sharded() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    sharding.refuse_hooks([parameter])
    parameter.register_hook(lambda gradient: gradient)
    with pytest.raises(Exception, match="FSDP would lose"):
        sharding.refuse_hooks([parameter])
