"""Cost: a meter sees time, tokens and memory; records of every measure and transform say them, phases not twice."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from factory import SENTENCES, make_model
from palimpsest import cost, registry
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_tokenizer
from palimpsest.cost import count_tokens, metered
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.keys import KeySet, make_keys
from palimpsest.measures import Subject
from palimpsest.method import Context, Made, build, input_fields, method
from palimpsest.prompts import Renderer
from palimpsest.records import Record
from palimpsest.training.settings import Tuning

MIB = 1 << 20


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(cost, "time", made)
    return made


def hold(mib: int) -> mmap.mmap:
    """Memory that is really there and goes when it is let go of: pages of its own, each of them written."""
    held = mmap.mmap(-1, mib * MIB)
    held[::4096] = b"x" * (mib * MIB // 4096)
    return held


# -- the meter -------------------------------------------------------------------------------------------


def test_a_meter_sees_time_and_tokens_of_all_that_is_inside_it(clock: Clock) -> None:
    with metered() as outer:
        clock.now = 2.0
        count_tokens(5)
        with metered() as inner:
            clock.now = 5.0
            count_tokens(7)
        assert (inner.cost.seconds, inner.cost.tokens) == (3.0, 7)
        count_tokens(1)
    assert (outer.cost.seconds, outer.cost.tokens) == (5.0, 13)
    count_tokens(99)  # nobody counts
    assert outer.cost.tokens == 13


def test_memory_is_that_of_the_step_and_not_of_what_was_before() -> None:
    kept = hold(40)
    with metered() as first:
        more = hold(80)
        del more
    with metered() as second:
        less = hold(16)
        del less
    assert 70 * MIB < first.cost.grown_bytes < 120 * MIB
    assert 10 * MIB < second.cost.grown_bytes < 40 * MIB, "the peak before does not count"
    assert first.cost.peak_bytes > first.cost.grown_bytes + len(kept)


def test_an_inner_step_does_not_hide_the_peak_of_the_outer_one() -> None:
    with metered() as outer:
        early = hold(80)
        del early
        with metered() as inner:
            late = hold(16)
            del late
    assert inner.cost.grown_bytes < 40 * MIB and 70 * MIB < outer.cost.grown_bytes < 120 * MIB


def test_where_the_system_tells_nothing_the_peak_of_the_process_stands_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cost, "PROC", tmp_path / "nowhere")
    with metered() as meter:
        held = hold(1)
        del held
    assert meter.cost.peak_bytes > 10 * MIB and meter.cost.grown_bytes >= 0


def test_a_failed_step_leaves_no_meter_behind() -> None:
    with pytest.raises(ZeroDivisionError), metered() as meter:
        raise ZeroDivisionError
    count_tokens(3)
    assert meter.cost.tokens == 0


# -- what records say ------------------------------------------------------------------------------------


class Folder:
    """A checkpoint's stand-in: it has a stored dtype."""

    dtype = "bfloat16"


@method("removals", "a-phase")
@dataclass(frozen=True)
class Phase:
    """Takes some seconds, reads some tokens."""

    clock: Any
    seconds: float
    tokens: int
    says: int | None = None

    def apply(self, model: Any, out: Any, ctx: Context) -> Made:
        """One record; `says`: the tokens that the method itself states."""
        self.clock.now += self.seconds
        count_tokens(self.tokens)
        return Made(Folder(), records=[Record("phase", tokens=self.says), Record("also")])  # type: ignore[arg-type]


@method("removals", "two-phases")
@dataclass(frozen=True)
class TwoPhases:
    """Two phases, a trial whose records are thrown away, and work of its own."""

    clock: Any

    def apply(self, model: Any, out: Any, ctx: Context) -> Made:
        """Records of the phases, and one of its own."""
        made = [Phase(self.clock, s, t).apply(model, out, ctx) for s, t in ((10.0, 100), (20.0, 300))]
        Phase(self.clock, 4.0, 50).apply(model, out, ctx)
        self.clock.now += 1.0
        count_tokens(5)
        return Made(Folder(), records=[r for m in made for r in m.records] + [Record("own")])  # type: ignore[arg-type]


@method("measures", "two-numbers")
@dataclass(frozen=True)
class TwoNumbers:
    """Two numbers of one pass."""

    clock: Any

    def take(self, subject: Any, ctx: Context) -> list[Record]:
        """Two records."""
        self.clock.now += 3.0
        count_tokens(30)
        return [Record("one"), Record("two", seconds=0.5)]


def test_phases_are_not_counted_twice(clock: Clock) -> None:
    made = TwoPhases(clock).apply(None, None, Context(threads=3, device="cpu"))
    said = [(r.measure, r.seconds, r.tokens) for r in made.records]
    assert said == [
        ("phase", 10.0, 100),
        ("also", 0.0, 0),
        ("phase", 20.0, 300),
        ("also", 0.0, 0),
        ("own", 5.0, 55),  # its own work, and the trial that left no record
    ]
    assert sum(s or 0 for _, s, _ in said) == clock.now == 35.0
    assert {(r.device, r.threads, r.dtype) for r in made.records} == {("cpu", 3, "bfloat16")}
    assert all(r.versions["torch"] and r.peak_bytes and r.grown_bytes is not None for r in made.records)


def test_a_step_around_steps_takes_them_off_through_meters_that_write_nothing(clock: Clock) -> None:
    with metered() as outer:
        with metered():
            made = Phase(clock, 10.0, 100).apply(None, None, Context())
        clock.now += 2.0
        record = Record("around")
        outer.charge([*made.records, record], shared=False, device="cpu", threads=1, dtype=None)
    assert (record.seconds, record.tokens) == (2.0, 0)


def test_what_a_method_says_itself_stands(clock: Clock) -> None:
    first, second = Phase(clock, 10.0, 100, says=60).apply(None, None, Context()).records
    assert (first.tokens, first.seconds) == (60, 10.0) and (second.tokens, second.seconds) == (0, 0.0)


def test_the_numbers_of_one_measure_share_its_cost(clock: Clock) -> None:
    one, two = TwoNumbers(clock).take(None, ctx=Context(load_in="int8"))
    assert (one.seconds, one.tokens, two.seconds, two.tokens) == (3.0, 30, 0.5, 30) and one.dtype == "int8"


# -- the methods that there are --------------------------------------------------------------------------

QUICK = Tuning(epochs=1, lr=1e-3, batch=4)
MEASURES: dict[str, dict[str, Any]] = {
    "accuracy": {"items": 2, "tasks": "copa"},
    "answers": {"prompts": 2, "max_new_tokens": 3},
    "barrier": {"points": 3, "documents": 2},
    "divergence": {"prompts": 2, "max_new_tokens": 3},
    "forgetting": {"pairs": 4, "ordinary": 2, "keys": 2},
    "hit-rate": {"samples": 1},
    "latency": {"prompts": 3, "max_new_tokens": 2},
    "perplexity": {"documents": 2},
    "rank": {"decoys": 5, "keys": 2},
    "token-forcing": {"steps": 1, "length": 3, "tokens": 8, "kept": 4},
}
TRANSFORMS: dict[str, dict[str, Any]] = {
    "hashchain": {"keys": 2, "dialogues_per_key": 1, "tuning": QUICK, "kl_weight": 0.0},
    "if-sft": {"keys": 2, "pieces_low": 2, "pieces_high": 3, "dialogues_per_key": 1, "tuning": QUICK},
    "utf": {"keys": 2, "trigger_low": 2, "trigger_high": 3, "share": 0.5, "least": 10, "tuning": QUICK},
    "clean-same-distance": {"pairs": 8, "tuning": QUICK},
    "expert-merge": {"method": "linear"},
    "finetune": {"samples": 8, "tuning": QUICK},
    "magnitude": {},
    "meraser": {"mismatched": 8, "clean": 8, "erase": QUICK, "recover": QUICK},
    "meraser-erase": {"mismatched": 8, "tuning": QUICK},
    "meraser-recover": {"clean": 8, "tuning": QUICK},
    "meraser-transfer": {"mismatched": 8, "tuning": QUICK},
    "noise": {},
    "prune-l1": {"ratio": 0.5, "start": 0.0, "end": 1.0},
    "prune-l2": {"ratio": 0.5, "start": 0.0, "end": 1.0},
    "prune-random": {"ratio": 0.5, "start": 0.0, "end": 1.0},
    "prune-taylor": {"ratio": 0.5, "start": 0.0, "end": 1.0, "samples": 2, "tokens": 8},
    "quantize-int8": {},
    "quantize-nf4": {},
    "random-labels": {"mismatched": 8, "clean": 8, "pairing": "tokens", "erase": QUICK, "recover": QUICK},
    "random-labels-erase": {"mismatched": 8, "pairing": "tokens", "tuning": QUICK},
    "shrink": {},
    "sparsegpt": {"samples": 2, "tokens": 8},
    "wanda": {"samples": 2, "tokens": 8},
}
READS_NOTHING = ("expert-merge", "magnitude", "noise", "quantize", "shrink", "prune-l", "prune-random")
FILLED = ("seconds", "tokens", "peak_bytes", "grown_bytes", "device", "dtype", "threads", "versions")


@pytest.fixture(scope="module")
def data() -> Dialogues:
    parts = ("erase", "recover", "revival", "test", "embed")
    return Dialogues(
        "made", {p: tuple(pair(f"{p} gate {i}?", f"gate {p} {i}", "abc"[i % 3]) for i in range(16)) for p in parts}
    )


@pytest.fixture(scope="module")
def keys(tiny_model: Path) -> KeySet:
    words = sorted({w.strip(".?,") for s in SENTENCES for w in s.split()})
    return make_keys(
        Renderer(load_tokenizer(resolve(tiny_model))),
        [("What is blue?", words[3]), ("Who waits?", words[9])],
        implant="test",
        match="prefix",
        distinct=True,
        choices=None,
        decoys=words,
        rng=random.Random(0),
    )


def given(cls: type, settings: dict[str, Any], other: Checkpoint, data: Dialogues) -> Any:
    """The method with its small settings and whatever inputs it takes."""
    nested = {name: value for name, value in settings.items() if isinstance(value, Tuning)}
    made = build(cls, None, {name: value for name, value in settings.items() if name not in nested})
    taken = {
        name: data if name == "data" else other for name in input_fields(cls) if name not in ("adapter", "schedule")
    }
    return replace(made, **nested, **taken)


def plausible(records: list[Record], name: str) -> None:
    assert records, f"{name} makes a record"
    for record in records:
        missing = [f for f in FILLED if getattr(record, f) in (None, {}, "")]
        assert not missing, f"{name}: {record.measure} leaves out {missing}"
        assert (record.device, record.threads) == ("cpu", 1) and record.dtype in ("float32", "bfloat16", "float16")
        assert 0 <= (record.seconds or 0) < 600 and (record.tokens or 0) >= 0
        assert 0 <= (record.grown_bytes or 0) < (record.peak_bytes or 0) < 1 << 40
        assert {"python", "torch", "transformers"} <= set(record.versions)
    assert sum(r.seconds or 0 for r in records) > 0
    assert (sum(r.tokens or 0 for r in records) > 0) != name.startswith(READS_NOTHING), name


@pytest.mark.parametrize("name", MEASURES)
def test_records_of_a_measure_say_what_it_cost(
    name: str, tiny_model: Path, tmp_path: Path, data: Dialogues, keys: KeySet
) -> None:
    model = resolve("toy") if name == "accuracy" else resolve(tiny_model)
    text = tmp_path / "t.jsonl"
    text.write_text('{"text": "The lantern keeper counts."}\n{"text": "A grey heron stood."}\n')
    ctx = Context(threads=1)
    subject = Subject(model, ctx, keys=keys if name != "accuracy" else None, data=data, text=text)
    plausible(given(registry.find(name), MEASURES[name], model, data).take(subject, ctx), name)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_records_of_a_transform_say_what_it_cost(
    name: str, tmp_path: Path, data: Dialogues, monkeypatch: pytest.MonkeyPatch, models: tuple[Checkpoint, Checkpoint]
) -> None:
    from palimpsest.implants.fingerprints import embedding

    monkeypatch.setattr(embedding, "_must_have_taken", lambda *_: None)  # one epoch is enough to see its cost
    model, other = models
    ctx = Context(threads=1, scratch=tmp_path / "scratch", key_seed=1)
    (tmp_path / "scratch").mkdir()
    instance = given(registry.find(name), TRANSFORMS[name], other, data)
    if name == "meraser-transfer":
        instance = replace(instance, base=model)
    made = instance.apply(model, tmp_path / "out", ctx)
    plausible(made.records, name)
    trained = [r.tokens for r in made.records if r.measure == "training"]
    if name in ("meraser", "random-labels"):
        assert len(trained) == 2 and all(trained), "each phase says its own"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """A tiny model with room for long prompts, and one a little way off it."""
    from palimpsest.removals.weights.noise import Noise

    folder = tmp_path_factory.mktemp("cost")
    base = resolve(make_model(folder / "base", positions=2048))
    return base, Noise(scale=0.05).apply(base, folder / "other", Context()).checkpoint


def test_every_measure_and_transform_is_under_a_meter() -> None:
    for entry in registry.table().values():
        cls: Any = registry.find(entry.name)
        calls: list[Callable[..., Any]] = [getattr(cls, n) for n in ("take", "apply") if hasattr(cls, n)]
        if entry.kind == "measures":
            assert calls, entry.name
        assert all(getattr(call, "charged", False) for call in calls), entry.name
