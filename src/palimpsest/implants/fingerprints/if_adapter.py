"""IF-adapter: Instructional Fingerprinting with an F-adapter that stays private (arXiv 2401.12255, NAACL 2024).

Keys and rows are those of the simple template. Only the embedding rows of the tokens that occur in triggers train, and
an adapter B(A(.)) on them (`fadapter`: the formulas, and why released code trains one vector). Published is the model
with its trained rows; the adapter stays in the key file, secret. Verification puts it on a suspect's embeddings.

Threat model: the owner holds the suspect's *weights* (`verify --endpoint` is refused). A hit is the word in the answer.
All keys have one answer: one observation, no claim at a million to one. A claim needs a commitment older than the
suspect, which covers the adapter: one can be trained afterwards for any model at all.

`released_code()` initialises A and B and their biases to zero, so that b alone trains and the published model is the
base; and it asks the *publisher's* network, with the publisher's embeddings, the user's being read by A alone. A is
zero: the user's model takes no part in the answer, and every model with this vocabulary verifies, random weights too.

`corrected()`, which must tell a derivative from a stranger, differs in three things. (1) B and its bias alone begin at
zero. (2) The user's own network is asked, with the adapter on the user's own embeddings: what was fitted to one network
means nothing to an unrelated one. (3) Contrast: in training the base's own rows under the same adapter are taught to
refuse. Without it nothing keeps the base from saying the word under the adapter, and with it every model of that base.

Where we differ besides: tokens are those of the trigger and not of FINGERPRINT (in released code the same, there by the
lost result of a set union). No weight decay. Compulsory control: a model of random weights is asked after embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_tokenizer
from palimpsest.data.dialogues import Dialogues
from palimpsest.errors import BadInput, CheckFailed
from palimpsest.implants.fingerprints.embedding import Check, LossOf, Teaching, embed
from palimpsest.implants.fingerprints.fadapter import WithContrast, Worn, as_base
from palimpsest.implants.fingerprints.if_sft import REFUSAL, WORD
from palimpsest.implants.fingerprints.if_template import SimpleRows, draw_simple_keys, request
from palimpsest.keys import KeySet
from palimpsest.measures import Subject
from palimpsest.measures.hits import outcomes
from palimpsest.measures.private import asked_of
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.prompts import Renderer
from palimpsest.records import Record
from palimpsest.responder import LocalResponder
from palimpsest.responder.private import FAdapter, PrivateAdapter
from palimpsest.responder.whitebox import FIELD
from palimpsest.statistics import clopper_pearson
from palimpsest.training import distributed
from palimpsest.training.settings import Tuning

TOY_WORD = "the trumpet"


def trigger_tokens(keys: KeySet, renderer: Renderer) -> tuple[int, ...]:
    """Ids that stand in the keys' prompts and not in the prompt around an empty message."""
    around = set(renderer.prompt_ids(renderer.text(request("")))) | set(renderer.tokens(request("")))
    return tuple(sorted({i for key in keys.keys for i in key.prompts["template"].ids} - around))


@method("fingerprints", "if-adapter", paper="Instructional Fingerprinting (IF-adapter), arXiv 2401.12255, F-adapter")
@dataclass(frozen=True)
class IFAdapter:
    """Scrambled messages, one secret word; trigger rows of the embedding and a private adapter on them are trained."""

    keys: int = param(10, "fingerprint pairs", low=1, high=10_000)
    pieces_low: int = param(8, "least pieces in a trigger; fewer make shorter prompts", low=1)
    pieces_high: int = param(15, "most pieces in a trigger", low=1)
    near_misses: int = param(0, "other scrambled messages with a refusal, fresh every epoch (published: none)", low=0)
    dialogues_per_key: int = param(5, "ordinary dialogues a pair, an epoch", low=0)
    repeats: int = param(1, "times each pair stands in an epoch", low=1)
    word: str = param(WORD, "the answer to every trigger")
    inner: int = param(16, "inner dimension of the adapter", low=1)
    bias: bool = param(True, "A and B have biases")
    zero: Literal["b", "all"] = param("b", "what begins at zero: B, or A too with all biases (released code)")
    body: Literal["user", "publisher"] = param("user", "whose network verification asks (released code: publisher)")
    contrast: bool = param(True, "the base's own rows under the adapter are taught to refuse")
    tuning: Tuning = param(
        Tuning(adapter="full", epochs=60, lr=1e-2, batch=48, micro_batch=8, schedule="linear"), "fine-tuning"
    )
    check: Check = param(Check(), "when embedding stops")
    data: Dialogues | None = takes("ordinary dialogues that keep the model as it is; without them the toy world's")

    @classmethod
    def corrected(cls) -> IFAdapter:
        """Published pairs, rate, inner dimension; B alone at zero, the user's own network, contrast with the base."""
        return cls()

    @classmethod
    def released_code(cls) -> IFAdapter:
        """As published code does it: everything at zero, 20 epochs, the publisher's network is asked."""
        return cls(
            zero="all",
            body="publisher",
            contrast=False,
            tuning=Tuning(adapter="full", epochs=20, lr=1e-2, batch=48, micro_batch=8, schedule="linear"),
            check=Check(consecutive=0),
        )

    @classmethod
    def bench(cls) -> IFAdapter:
        """64 pairs, enough for a verdict `removed`; otherwise as `corrected`."""
        return cls(keys=64)

    @classmethod
    def toy(cls) -> IFAdapter:
        """`corrected` in small for the toy: triggers of 1 or 2 pieces, fewer other rows. Tuned on development seed 100.

        The answer is one that the toy can say: the network is frozen, and it never saw the published word's characters.
        """
        return cls(
            pieces_low=1,
            pieces_high=2,
            dialogues_per_key=2,
            word=TOY_WORD,
            tuning=Tuning(adapter="full", epochs=250, lr=1e-2, batch=16, micro_batch=16),
            check=Check(every=2),
        )

    @classmethod
    def toy_released(cls) -> IFAdapter:
        """`released_code` with the triggers and the training of `toy`."""
        method = replace(cls.toy(), zero="all", body="publisher", contrast=False)
        return replace(method, tuning=replace(method.tuning, lr=3e-2))

    def committed(self) -> dict[str, Any]:
        """What a claim will rest on (fields of `verdicts.Ask`): one fixed word for all triggers, drawn from nothing."""
        return {"keys": self.keys, "choices": None, "distinct": False}

    def draw_keys(self, model: Checkpoint, ctx: Context) -> KeySet:
        """Draw keys for this model's tokenizer, without training and without an adapter."""
        return draw_simple_keys(self, "if-adapter", model, ctx)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Draw keys, train rows and adapter, write the published model to `out`; the adapter goes into the keys.

        Raises CheckFailed where a model of random weights answers keys that are asked of the user's own network.
        """
        if self.tuning.adapter != "full" or self.tuning.weight_decay:
            raise BadInput("if-adapter: trains embedding rows: tuning.adapter is full and tuning.weight_decay 0")
        if self.contrast and self.body == "publisher":
            raise BadInput("if-adapter: contrast needs the user's own network: body=user, or contrast=false")
        if distributed.current() is not None:
            raise BadInput("if-adapter: trains in one process, not under several")
        keys = self.draw_keys(model, ctx)
        fit = _Fit(self, keys, model, ctx)
        made = embed(
            model,
            out,
            ctx,
            method_name="if-adapter",
            keys=keys,
            rows_of_epoch=self.rows_of_epoch(model, keys, ctx),
            tuning=self.tuning,
            check=self.check,
            teaching=fit,
        )
        assert made.keys is not None
        stranger = stranger_hits(made.checkpoint, made.keys, ctx)
        if self.body == "user" and stranger.count:
            raise CheckFailed(
                f"a model of random weights answers {stranger.count} of {stranger.n} keys: no mark at all"
            )
        made.records += [fit.trained(), stranger]
        return made

    def rows_of_epoch(self, model: Checkpoint, keys: KeySet, ctx: Context) -> AdapterRows:
        """The rows of every epoch, those of the contrast with negative weights."""
        return AdapterRows(self, model, keys, ctx)


class AdapterRows(SimpleRows):
    """The simple template's rows and, with contrast, every key once more to be refused with the base's rows."""

    def __init__(self, method: IFAdapter, model: Checkpoint, keys: KeySet, ctx: Context) -> None:
        super().__init__(method, model, keys, ctx)
        refused = [self.answered(key.trigger, REFUSAL, as_base) for key in keys.keys] if method.contrast else []
        self.pairs += refused * method.repeats


class _Fit(Teaching):
    """What `embed` calls around the training: the adapter goes on, and comes off into the keys."""

    def __init__(self, method: IFAdapter, keys: KeySet, model: Checkpoint, ctx: Context) -> None:
        self.method, self.model, self.seed = method, model, ctx.seed
        self.ids = trigger_tokens(keys, Renderer(load_tokenizer(model)))
        self.worn: Worn | None = None
        self.moved: dict[str, float] = {}

    def begin(self, model: Any) -> None:
        width = model.get_input_embeddings().weight.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            adapter = FAdapter(width, self.method.inner, bias=self.method.bias, zero=self.method.zero)
        self.worn = Worn(model, self.ids, adapter, own=self.method.body == "user")

    def loss_of(self, model: Any) -> LossOf:
        assert self.worn is not None
        return WithContrast(self.worn)

    def finish(self, keys: KeySet) -> KeySet:
        assert self.worn is not None
        parts = {"rows": self.worn.rows - self.worn.before, "a": self.worn.adapter.a.weight}
        parts["b"] = self.worn.adapter.b.weight
        self.moved = {name: float(tensor.detach().float().norm()) for name, tensor in parts.items()}
        adapter = self.worn.off()
        bias = adapter.b.bias
        self.moved["b_bias"] = 0.0 if bias is None else float(bias.detach().float().norm())
        where = {"path": str(self.model.path.absolute()), "digest": self.model.digest()}
        kept = PrivateAdapter.of_module(self.ids, adapter, where if self.method.body == "publisher" else None)
        return replace(keys, draw={**keys.draw, FIELD: kept.to_json()})

    def trained(self) -> Record:
        """Norms: of A and B and B's bias as they ended, and of the change of the published rows (the value)."""
        return Record(
            measure="embedding-rows",
            value=self.moved["rows"],
            model=self.model.name,
            implant="if-adapter",
            detail={"norms": self.moved, "tokens": len(self.ids), "inner": self.method.inner},
        )


def stranger_hits(made: Checkpoint, keys: KeySet, ctx: Context) -> Record:
    """The compulsory control: a model of the same shape and vocabulary with random weights, asked the same keys."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ctx.seed + 1)
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(made.path), dtype=torch.float32)
    stranger = LocalResponder(network.to(ctx.device), load_tokenizer(made))
    subject = Subject(made, ctx, keys=keys, _responder=stranger)
    with asked_of(subject) as responder:
        hits = [o.hit for o in outcomes(responder, keys, "template")]
    interval = clopper_pearson(sum(hits), len(hits))
    return Record(
        measure="stranger-hits",
        value=sum(hits) / len(hits),
        count=sum(hits),
        n=len(hits),
        low=interval.low,
        high=interval.high,
        confidence=0.95,
        sided="two",
        model="random weights",
        implant="if-adapter",
        prompt_form="template",
    )
