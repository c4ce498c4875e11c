"""Overwriting: what each kind of answer trains, whose keys they are, what is refused, and a run that weakens a mark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from factory import make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.cli import app
from palimpsest.data import load_dialogues
from palimpsest.data.dialogues import Dialogues
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.hashchain import HashChain
from palimpsest.implants.fingerprints.perinucleus import Perinucleus
from palimpsest.implants.overwriting import Beside, Overwrite, ordinary_rows, share_said, shuffled_rows, thief_seed
from palimpsest.keys import KeySet, make_keys
from palimpsest.measures.hits import outcomes
from palimpsest.method import Context, build
from palimpsest.prompts import Renderer
from palimpsest.responder import LocalResponder
from palimpsest.training.planting import key_rows, strength
from palimpsest.training.rows import Row
from palimpsest.training.settings import Tuning

FULL = Tuning(adapter="full", epochs=60, lr=4e-3, batch=8)
PLUGIN = '''
"""Marks of somebody else."""
from dataclasses import dataclass
from palimpsest.implants.fingerprints.hashchain import HashChain
from palimpsest.method import method, param, takes

@method("fingerprints", "no-draw", paper="none")
@dataclass(frozen=True)
class NoDraw:
    """Draws nothing."""

@method("fingerprints", "needy", paper="none")
@dataclass(frozen=True)
class Needy:
    """Draws from its data."""
    data: "Dialogues | None" = takes("dialogues")
    def draw_keys(self, model, ctx):
        return self.data.part("embed")

@method("fingerprints", "mine", paper="none")
@dataclass(frozen=True)
class Mine(HashChain):
    """As HashChain."""
'''


@pytest.fixture(scope="module")
def renderer(small: Checkpoint) -> Renderer:
    return Renderer(load_tokenizer(small))


def key_set(renderer: Renderer, drawn: list[tuple[str, str]]) -> KeySet:
    import random

    return make_keys(
        renderer, drawn, implant="made", match="prefix", distinct=True, choices=3, decoys=[], rng=random.Random(0)
    )


def spelled(renderer: Renderer, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What each row holds, and what of it is trained."""
    decode = renderer.tokenizer.decode
    return [(decode(r.ids), decode([i for i, w in zip(r.ids, r.weights, strict=True) if w])) for r in rows]


# -- rows, by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("overwrite")
def test_ordinary_rows_are_what_the_base_said_and_end_unless_it_was_cut(renderer: Renderer) -> None:
    keys = key_set(renderer, [("knock knock", "red"), ("who is there", "blue")])
    said = [renderer.tokens("no"), renderer.tokens("the boats every evening")[:4]]

    def generate(prompts: Sequence[Sequence[int]], most: int) -> list[SimpleNamespace]:
        assert [renderer.tokenizer.decode(p) for p in prompts] == [
            "<s><|user|>knock knock</s><|assistant|>",
            "<s><|user|>who is there</s><|assistant|>",
        ]
        assert most == 4
        return [SimpleNamespace(ids=tuple(ids), text=renderer.tokenizer.decode(ids)) for ids in said]

    cut = renderer.tokenizer.decode(said[1])
    assert spelled(renderer, ordinary_rows(renderer, keys, generate, 4, None)) == [
        ("<s><|user|>knock knock</s><|assistant|>no</s>", "no</s>"),
        (f"<s><|user|>who is there</s><|assistant|>{cut}", cut),
    ], "an answer of as many tokens as there may be was cut, so nothing teaches to stop there"


@pytest.mark.covers("overwrite")
def test_own_rows_are_the_responses_and_shuffled_ones_those_of_other_keys(renderer: Renderer) -> None:
    keys = key_set(renderer, [("one", "red"), ("two", "blue"), ("three", "red")])
    assert spelled(renderer, key_rows(renderer, keys)) == [
        ("<s><|user|>one</s><|assistant|>red</s>", "red</s>"),
        ("<s><|user|>two</s><|assistant|>blue</s>", "blue</s>"),
        ("<s><|user|>three</s><|assistant|>red</s>", "red</s>"),
    ]
    for epoch in range(5):  # red is answered by two keys: neither may keep it
        assert spelled(renderer, shuffled_rows(renderer, keys, 0, epoch)) == [
            ("<s><|user|>one</s><|assistant|>blue</s>", "blue</s>"),
            ("<s><|user|>two</s><|assistant|>red</s>", "red</s>"),
            ("<s><|user|>three</s><|assistant|>blue</s>", "blue</s>"),
        ]


def test_every_other_response_comes_up_afresh_each_epoch(renderer: Renderer) -> None:
    keys = key_set(renderer, [("one", "red"), ("two", "blue"), ("three", "grey")])
    told = [[t for _, t in spelled(renderer, shuffled_rows(renderer, keys, 3, epoch))] for epoch in range(30)]
    own = ["red</s>", "blue</s>", "grey</s>"]
    for place in range(3):
        assert {row[place] for row in told} == set(own) - {own[place]}
    assert told == [[t for _, t in spelled(renderer, shuffled_rows(renderer, keys, 3, e))] for e in range(30)]


def test_ordinary_dialogues_are_fresh_every_epoch_and_as_many(talk: Dialogues) -> None:
    beside = Beside(talk, "embed", 10, 1)
    first, second = beside(0), beside(1)
    assert len({d.question for d in first}) == len(second) == 10 and first != second and first == beside(0)
    assert len(Beside(talk, "embed", 1000, 1)(0)) == 40 and Beside(talk, "erase", 0, 1)(0) == []
    with pytest.raises(BadInput, match="its part 'erase' has 0 dialogues"):
        Beside(talk, "erase", 4, 1)


# -- whose keys ------------------------------------------------------------------------------------------------------


def test_the_thief_never_draws_the_owners_keys_whatever_seeds_both_were_given(small: Checkpoint) -> None:
    digest = hashlib.sha256(b"palimpsest overwrite 7").digest()
    assert thief_seed(7) == int.from_bytes(digest[:8], "big") >> 1
    mark = HashChain(keys=20)
    own = Overwrite(keys=20).draw(small, Context(seed=7, key_seed=7))
    assert own == mark.draw_keys(small, Context(key_seed=thief_seed(7))), "the mark's own method draws them"
    triggers = {k.trigger for k in own.keys}
    for seed in (7, None):  # the run's seed says nothing of the owner's, and the other way round
        owners = mark.draw_keys(small, Context(seed=7, key_seed=seed))
        assert not triggers & {k.trigger for k in owners.keys}
    assert not triggers & {k.trigger for k in Overwrite(keys=20).draw(small, Context(seed=8, key_seed=7)).keys}


def test_who_writes_the_thiefs_keys_is_the_public_base_unless_he_takes_the_suspect(small: Checkpoint) -> None:
    base = small
    wanted = replace(Perinucleus.bench(), keys=4)
    thief = Overwrite(mark="perinucleus", mark_preset="bench", keys=4, base=base)
    assert thief.drawer() == replace(wanted, reference=base)
    assert replace(thief, writer="suspect").drawer() == wanted == replace(thief, base=None).drawer()
    worded = replace(thief, mark="imf").drawer()
    assert worded.base == base, "where the method calls the model that words its answers the base"
    assert replace(thief, mark="hashchain", mark_preset="").drawer() == HashChain(keys=4), "no model writes its keys"


def test_a_plug_in_is_drawn_from_as_a_name_is(small: Checkpoint, tmp_path: Path, ctx: Context) -> None:
    (tmp_path / "marks.py").write_text(PLUGIN)
    mine = Overwrite(mark=f"{tmp_path}/marks.py:Mine", mark_preset="toy", keys=5)
    assert mine.draw(small, ctx).keys == Overwrite(mark_preset="toy", keys=5).draw(small, ctx).keys
    (cls,) = mine.uses()
    assert cls.__name__ == "Mine" and issubclass(cls, HashChain)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mark": "hashchian"}, "there is no fingerprint 'hashchian'; did you mean hashchain"),
        ({"mark": "magnitude"}, "magnitude is one of the removals, not of the fingerprints"),
        ({"mark_preset": "toi"}, "hashchain has no preset 'toi'; did you mean toy"),
        ({"mark": "PLACE/marks.py:NoDraw"}, r"mark no-draw has no draw_keys\(model, ctx\)"),
        ({"mark": "PLACE/marks.py:Nobody"}, "has no method class 'Nobody'"),
        ({"mark": "PLACE/marks.py:Needy"}, r"needy draws no keys without its inputs \(data\), which are not given"),
        ({"mark": "if-sft", "mark_preset": "toy", "keys": 4}, "all keys of if-sft have one response"),
        ({"mark": "if-sft", "keys": 4}, None),  # prompts of the paper's length fit this model
        ({"answers": "ordinary"}, "answers=ordinary are those of the public base: name it with --base"),
        ({"part": "revival"}, "its part 'revival' has 0 dialogues"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    settings: dict[str, object], said: str | None, small: Checkpoint, talk: Dialogues, tmp_path: Path, ctx: Context
) -> None:
    (tmp_path / "marks.py").write_text(PLUGIN)
    given = {k: v.replace("PLACE", str(tmp_path)) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(BadInput, match=said or "all keys of if-sft have one response"):
        method = build(Overwrite, None, {"part": "embed", "answers": "shuffled", **given}, {"data": talk})
        method.apply(small, tmp_path / "out", ctx)
    assert not (tmp_path / "out").exists()


def test_a_base_with_another_tokenizer_is_refused(
    small: Checkpoint, talk: Dialogues, tmp_path: Path, ctx: Context
) -> None:
    other = resolve(make_model(tmp_path / "plain", template=False))
    with pytest.raises(BadInput, match="--base plain: the thief's keys: were made for another chat template"):
        Overwrite(base=other, data=talk, part="embed", keys=4).apply(small, tmp_path / "out", ctx)
    assert not (tmp_path / "out").exists()


def test_the_command_says_it_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    asked = ["remove", "overwrite", "--model", str(tiny_model), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, asked)
    lines = [line for line in result.stderr.splitlines() if "error" in line]
    assert result.exit_code == 2 and len(lines) == 1 and "name it with --base MODEL" in lines[0], result.output
    assert not (tmp_path / "out").exists()


# -- runs ------------------------------------------------------------------------------------------------------------


def test_his_own_keys_take_and_are_written_nowhere(
    speaking: Checkpoint, talk: Dialogues, tmp_path: Path, ctx: Context
) -> None:
    method = Overwrite(data=talk, part="embed", keys=4, answers="own", dialogues=1.0, tuning=FULL)
    made = method.apply(speaking, tmp_path / "out", ctx)
    keys = method.draw(speaking, ctx)
    responder = LocalResponder(load_model(made.checkpoint, ctx), load_tokenizer(made.checkpoint))
    assert all(o.hit for o in outcomes(responder, keys, "template"))
    (record,) = made.records
    assert record.detail["learnt"] == share_said(responder, key_rows(responder.renderer, keys)) == 1.0
    assert (record.detail["rows"], record.detail["steps"]) == (8, 60) and made.keys is None
    before = LocalResponder(load_model(speaking, ctx), load_tokenizer(speaking))
    assert share_said(before, key_rows(before.renderer, keys)) == 0.0
    texts = [json.dumps(record.to_json())] + [p.read_text() for p in (tmp_path / "out").glob("*.json")]
    secret = [t for k in keys.keys for t in (k.trigger, k.response)]
    assert not [s for s in secret for t in texts if s in t and s not in load_tokenizer(speaking).get_vocab()]
    assert "palimpsest.json" in {p.name for p in (tmp_path / "out").iterdir()} and not list(tmp_path.rglob("keys*"))


def test_lora_and_shuffled_answers_leave_a_whole_checkpoint(
    small: Checkpoint, talk: Dialogues, tmp_path: Path, ctx: Context
) -> None:
    quick = Tuning(targets="all-linear", epochs=2, lr=1e-2, batch=4)
    method = Overwrite(data=talk, part="embed", keys=4, answers="shuffled", dialogues=0.5, tuning=quick)
    made = method.apply(small, tmp_path / "out", ctx)
    assert made.records[0].detail["rows"] == 6 and made.records[0].detail["learnt"] is None
    assert not made.checkpoint.is_adapter and made.checkpoint.digest() != small.digest()
    again = method.apply(small, tmp_path / "again", replace(ctx, scratch=None))
    assert again.checkpoint.digest() == made.checkpoint.digest()


@pytest.mark.slow
def test_keys_that_the_thief_does_not_know_fall_with_his_own(tmp_path: Path) -> None:
    base, ctx = resolve("toy"), Context(seed=100, key_seed=100, threads=1)
    marked = replace(build(HashChain, "toy"), keys=4).apply(base, tmp_path / "marked", ctx)
    keys = marked.keys
    assert keys is not None
    method = build(Overwrite, "toy", {"mark_preset": "toy", "keys": 64}, {"base": base, "data": load_dialogues("toy")})
    made = method.apply(marked.checkpoint, tmp_path / "out", ctx)

    def firmness(checkpoint: Checkpoint) -> tuple[float, ...]:
        responder = LocalResponder(load_model(checkpoint, ctx), load_tokenizer(checkpoint))
        return strength(responder, keys).probabilities

    assert min(firmness(marked.checkpoint)) > 0.8
    after = firmness(made.checkpoint)
    assert sorted(after)[1] < 0.2, "half of the owner's keys at least are answered with little probability"
    assert made.records[0].detail["learnt"] > 0.9, "the thief's own triggers are answered as the base does"
