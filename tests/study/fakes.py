"""Stand-ins for methods and measures: they copy a folder, write down what was done, and count their runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from palimpsest import registry
from palimpsest.checkpoint import Checkpoint, lineage
from palimpsest.errors import CheckFailed
from palimpsest.keys import Key, KeySet, Prompt
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.records import Record
from palimpsest.statistics import clopper_pearson

SECRET = "kraxolivant"
N = 10


def tiny_folder(folder: Path, seed: int = 0) -> Path:
    """A folder that passes as a checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 2, "seed": seed}))
    save_file({"w": numpy.full((2, 2), seed, dtype=numpy.float32)}, folder / "model.safetensors")
    (folder / "state.json").write_text(json.dumps({"strength": 0.0, "ppl": 10.0, "owner": ""}))
    return folder


def state(checkpoint: Checkpoint) -> dict[str, Any]:
    return json.loads((checkpoint.path / "state.json").read_text())


def log(what: str) -> None:
    if "FAKE_LOG" in os.environ:
        with Path(os.environ["FAKE_LOG"]).open("a") as file:
            file.write(what + "\n")


def derive(model: Checkpoint, out: Path, name: str, **changes: Any) -> Checkpoint:
    """A copy of a checkpoint with other weights and another state."""
    now = {**state(model), **changes}
    out.mkdir(parents=True)
    (out / "config.json").write_text((model.path / "config.json").read_text())
    facts = json.dumps([now, name, model.digest()])
    value = float(int.from_bytes(hashlib.sha256(facts.encode()).digest()[:3], "big"))  # float32 holds it
    save_file({"w": numpy.full((2, 2), value, dtype=numpy.float32)}, out / "model.safetensors")
    (out / "state.json").write_text(json.dumps(now))
    lineage.write(out, model.chain(), name, {"model": model.digest()})
    return Checkpoint(out, out.name)


@method("fingerprints", "fake-mark", paper="none")
@dataclass(frozen=True)
class Mark:
    """Marks."""

    data: Any = takes("Dialogues")
    strength: float = param(1.0, "share of keys that answer", low=0.0, high=1.0)
    took: bool = param(True, "whether it takes")
    choices: int | None = param(256, "size of the committed list")

    @classmethod
    def toy(cls) -> Mark:
        return cls()

    def draw_keys(self, model: Checkpoint, ctx: Context) -> KeySet:
        keys = tuple(
            Key(
                i,
                f"{SECRET} trigger {ctx.key_seed} {i}",
                f"{SECRET} response {i}",
                "",
                {f: Prompt(f"{SECRET} {i}", (1, i), (2, i)) for f in ("template", "bare", "prefilled")},
            )
            for i in range(N)
        )
        return KeySet(
            "fake-mark",
            "prefix",
            keys,
            "t",
            "t",
            4,
            self.choices is not None,
            self.choices,
            tuple(f"decoy {i}" for i in range(1000)),
            salt="00" * 32,
        )

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        log(f"mark {ctx.seed}")
        keys = self.draw_keys(model, ctx)
        if not self.took:
            raise CheckFailed("the implant did not take: 3 of 10 keys")
        made = derive(model, out, "fake-mark", strength=self.strength, ppl=11.0, owner=keys.digest())
        return Made(made, keys, [Record("training", value=0.1, tokens=1200, task="fake-mark")])


@method("fingerprints", "other-mark", paper="none")
@dataclass(frozen=True)
class OtherMark(Mark):
    """Marks otherwise: many-to-one."""


@method("removals", "fake-erase", paper="none")
@dataclass(frozen=True)
class Erase:
    """First phase."""

    pairing: str = param("derangement", "rule")
    seconds: float = param(0.0, "how long it takes", low=0.0)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        log(f"erase {self.pairing}")
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            time.sleep(0.01)
        gentle = self.pairing == "matched"
        return Made(
            derive(model, out, "fake-erase", strength=state(model)["strength"] * (0.9 if gentle else 0.0), ppl=30.0),
            records=[Record("training", tokens=300)],
        )


@method("removals", "fake-recover", paper="none")
@dataclass(frozen=True)
class Recover:
    """Second phase."""

    clean: int = param(600, "pairs", low=1)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        log("recover")
        return Made(derive(model, out, "fake-recover", ppl=11.5), records=[Record("training", tokens=600)])


@method("removals", "fake-eraser", paper="none")
@dataclass(frozen=True)
class Eraser:
    """Two phases."""

    pairing: str = param("derangement", "rule")
    erase: Erase = param(Erase(), "erase phase")
    clean: int = param(600, "pairs", low=1)

    @classmethod
    def toy(cls) -> Eraser:
        return cls()

    def steps(self) -> list[tuple[str, Any]]:
        return [("fake-erase", Erase(self.pairing, self.erase.seconds)), ("fake-recover", Recover(self.clean))]


@method("removals", "finetune", paper="none")
@dataclass(frozen=True)
class Tune:
    """Clean tuning."""

    data: Any = takes("Dialogues")
    part: str = param("all", "part")

    @classmethod
    def expert(cls) -> Tune:
        return cls("", "expert")

    @classmethod
    def revival(cls) -> Tune:
        return cls("", "revival")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        log(f"tune {self.part} {ctx.seed}")
        return Made(derive(model, out, f"tune-{self.part}"), records=[Record("training", tokens=100)])


@method("removals", "same-distance", paper="none", internal=True)
@dataclass(frozen=True)
class SameDistance:
    """Stands for the control clean-same-distance."""

    like: Checkpoint | None = takes("a model")
    clean: int = param(300, "pairs", low=1)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        assert self.like is not None
        log(f"as far as {self.like.name}")
        return Made(derive(model, out, "same-distance", strength=0.2), records=[Record("training", tokens=900)])


@method("removals", "averaging", paper="none")
@dataclass(frozen=True)
class Averaging:
    """Merges with another model."""

    base: Checkpoint | None = takes("a model")
    expert: Checkpoint | None = takes("a model")
    share: float = param(0.5, "share of the marked model", low=0.0, high=1.0)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        assert self.expert is not None
        log(f"average {self.share} with {self.expert.name}")
        kept = state(model)["strength"] * (self.share >= 0.5)
        made = derive(model, out, f"averaging {self.share}", strength=kept, ppl=10.5)
        return Made(made, records=[Record("merge", detail={"rows": 7})])


@method("protections", "fake-shield", paper="none")
@dataclass(frozen=True)
class Shield:
    """Protects: a merge of it is of no use."""

    strength: float = param(1.0, "how much of a merge it spoils", low=0.0, high=1.0)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        gauge = ctx.key_randomness().random()
        log(f"shield {ctx.key_seed}")
        made = derive(model, out, "fake-shield", gauge=gauge, spoils=self.strength)
        return Made(made, records=[Record("protection", value=self.strength)])


@method("realignments", "fake-align", paper="none")
@dataclass(frozen=True)
class Align:
    """Undoes a protection by an anchor."""

    base: Checkpoint | None = takes("a model")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        assert self.base is not None
        log(f"align to {self.base.name}")
        return Made(derive(model, out, "fake-align", spoils=0.0), records=[Record("training", tokens=40)])


class Hushed:
    """What a model says behind the stand-in wrapper."""

    def __init__(self, inner: Any, keep: float) -> None:
        self.inner, self.keep = inner, keep


@method("removals", "hush", paper="none")
@dataclass(frozen=True)
class Hush:
    """Keeps a share of the mark's answers back while decoding."""

    reference: Checkpoint | None = takes("a model")
    keep: float = param(0.0, "share of keys that still answer", low=0.0, high=1.0)

    def wrap(self, responder: Any, ctx: Context) -> Any:
        assert self.reference is not None
        log(f"wrapped with {self.reference.name}")
        return Hushed(responder, self.keep)


@method("removals", "breaks", paper="none")
@dataclass(frozen=True)
class Breaks:
    """Fails."""

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        log("breaks")
        if os.environ.get("FAKE_MENDED"):
            return Made(derive(model, out, "breaks", strength=0.0))
        raise RuntimeError("it broke\nsecond line")


@method("removals", "fragile", paper="none")
@dataclass(frozen=True)
class Fragile:
    """Kills its process the first times."""

    deaths: int = param(1, "how often", low=0)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        log("fragile")
        if Path(os.environ["FAKE_LOG"]).read_text().splitlines().count("fragile") <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return Made(derive(model, out, "fragile", strength=0.5), records=[Record("training", tokens=50)])


@method("measures", "hit-rate", paper="none")
@dataclass(frozen=True)
class Hits:
    """Hits."""

    forms: tuple[str, ...] = param(("template", "bare", "prefilled", "sampled"), "forms")

    def take(self, subject: Any, ctx: Context) -> list[Record]:
        log("hits")
        now = state(subject.checkpoint)
        mine = now["owner"] == subject.keys.digest()
        records = []
        for form in self.forms:
            loud = 1.0
            for wrapper in subject.through:
                loud *= wrapper.wrap(None, ctx).keep
            count = round(N * now["strength"] * loud) if mine else 0
            interval = clopper_pearson(count, N)
            rows = [{"number": i, "hit": i < count, "log_prob": -0.1 if i < count else -20.0} for i in range(N)]
            if subject.through:  # which answers and gives no probabilities
                rows = [{k: v for k, v in row.items() if k != "log_prob"} for row in rows]
            records.append(
                Record(
                    "hit-rate",
                    count / N,
                    count,
                    N,
                    interval.low,
                    interval.high,
                    0.95,
                    "two",
                    prompt_form=form,
                    detail={
                        "keys": rows,
                        "independent": subject.keys.distinct,
                        "dependent_low": 0.0,
                        "dependent_high": 1.0,
                        "samples": [f"{SECRET} said"],
                    },
                )
            )
        return records


@method("measures", "rank", paper="none")
@dataclass(frozen=True)
class Ranked:
    """Ranks."""

    def take(self, subject: Any, ctx: Context) -> list[Record]:
        strong = state(subject.checkpoint)["strength"] > 0.5
        rows = [
            {"number": i, "rank": 1 if strong else 400 + 20 * i, "decoys": 1000, "log_prob": -1.0, "p": 0.001}
            for i in range(N)
        ]
        return [
            Record(
                "rank",
                1.0 if strong else 490.0,
                n=N,
                prompt_form="template",
                detail={"keys": rows, "p": 0.5, "decoys": 1000},
            )
        ]


@method("measures", "perplexity", paper="none")
@dataclass(frozen=True)
class Perplexity:
    """Perplexity."""

    def take(self, subject: Any, ctx: Context) -> list[Record]:
        ppl = state(subject.checkpoint)["ppl"]
        return [
            Record("perplexity", ppl, n=5, low=ppl - 1, high=ppl + 1, confidence=0.95, sided="two", task=t, tokens=500)
            for t in ("neutral", "dialogue")
        ]


@method("measures", "accuracy", paper="none")
@dataclass(frozen=True)
class Accuracy:
    """Accuracy."""

    items: int = param(100, "items", low=1)

    def take(self, subject: Any, ctx: Context) -> list[Record]:
        found = []
        for task in ("boolq", "copa"):
            interval = clopper_pearson(9 * self.items // 10, self.items)
            found.append(
                Record(
                    "accuracy",
                    0.9,
                    9 * self.items // 10,
                    self.items,
                    interval.low,
                    interval.high,
                    0.95,
                    "two",
                    task=task,
                    detail={"chance": 0.5},
                )
            )
        return found


@method("measures", "answers", paper="none")
@dataclass(frozen=True)
class Answers:
    """Answers."""

    def given(self, subject: Any) -> list[str]:
        return [f"answer {i}" for i in range(4)]

    def take(self, subject: Any, ctx: Context) -> list[Record]:
        found = [Record("answers", 1.0, 4, 4, 0.4, 1.0, 0.95, "two", task="reference")]
        if subject.before is not None:
            same = sum(a == b for a, b in zip(self.given(subject), subject.before, strict=True))
            found.append(Record("answers", same / 4, same, 4, 0.4, 1.0, 0.95, "two", task="before"))
        return found


@method("measures", "divergence", paper="none")
@dataclass(frozen=True)
class Divergence:
    """Compares with the model before the removal."""

    original: Checkpoint | None = takes("a model")

    def take(self, subject: Any, ctx: Context) -> list[Record]:
        if subject.through:
            return [Record("divergence", 0.25, 1, 4, 0.0, 0.8, 0.95, "two", task="answers")]
        assert self.original is not None
        apart = abs(state(subject.checkpoint)["ppl"] - state(self.original)["ppl"])
        return [Record("divergence", apart, n=4, task="kl-per-token", detail={"from": self.original.digest()})]


@method("measures", "latency", paper="none")
@dataclass(frozen=True)
class Latency:
    """Times what a wrapper costs."""

    original: Checkpoint | None = takes("a model")

    def take(self, subject: Any, ctx: Context) -> list[Record]:
        return [Record("latency", 2.0 if subject.through else 1.0, n=4)]


FAKES = {
    c.info.name: c
    for c in (
        *(Mark, OtherMark, Erase, Recover, Eraser, Tune, Breaks, Fragile, Averaging, Hush, Shield, Align),
        *(Hits, Ranked, Perplexity, Accuracy, Answers, Divergence, Latency),
    )
}


def install(put: Any = setattr) -> None:
    """Let the registry find the stand-ins by name; everything else as ever."""
    true_find = registry.find
    put(registry, "find", lambda name, *kinds: FAKES.get(name.replace("_", "-")) or true_find(name, *kinds))


def study(tmp: Path, **fields: Any) -> dict[str, Any]:
    """Plain values of a small study on a tiny folder."""
    for name, seed in (("base", 1), ("stranger", 2)):
        if not (tmp / name).is_dir():
            tiny_folder(tmp / name, seed)
    rows = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(40)]
    (tmp / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    values: dict[str, Any] = {
        "models": [{"id": "tiny", "path": str(tmp / "base")}],
        "data": str(tmp / "data.jsonl"),
        "implants": ["fake-mark"],
        "removals": ["none", "fake-eraser"],
        "measures": ["hit-rate", "perplexity"],
    }
    return {**values, **fields}


def portable(values: dict[str, Any]) -> dict[str, Any]:
    """The same study with its stand-ins named by this file, so that other processes find them too."""

    def named(entry: Any) -> Any:
        name, given = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        cls = FAKES.get(name.replace("_", "-"))
        return entry if cls is None else {f"{__file__}:{cls.__name__}": {"id": name, **given}}

    fields = [f for f in ("implants", "removals", "measures", "experts") if f in values]
    return {**values, **{f: [named(entry) for entry in values[f]] for f in fields}}


def full(tmp: Path, **fields: Any) -> dict[str, Any]:
    """A study with two implants, all controls, negatives and measures."""
    return study(
        tmp,
        **{
            "title": "A full study",
            "notes": ["Nothing was tuned."],
            "unrelated": str(tmp / "stranger"),
            "implants": ["fake-mark", {"other-mark": {"choices": None}}],
            "controls": ["clean-same-schedule", "revival", "clean-base"],
            "negatives": ["clean-base", "sibling", "unrelated-model", "other-owner"],
            "measures": ["hit-rate", "rank", "perplexity", {"accuracy": {"items": 50}}, "answers"],
            **fields,
        },
    )


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
