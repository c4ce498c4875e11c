"""What is measured: a checkpoint (or a ready responder) with the keys and the data that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import Checkpoint, is_toy
from palimpsest.checkpoint.labels import check_one_label, label_names, text_room
from palimpsest.checkpoint.load import load_classifier, load_model, load_tokenizer
from palimpsest.data import Dialogues, LabelledItems
from palimpsest.data.dialogues import toy_dialogues
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet
from palimpsest.method import Context, Wrapper, input_fields, settings_of
from palimpsest.records import Record
from palimpsest.responder import ClassifierResponder, LocalResponder, Responder
from palimpsest.responder.filtered import FilteredClassifier, FiltersTexts, TextFilter


@dataclass
class Subject:
    """A checkpoint under measurement; its model is loaded when first asked for.

    keys: of the implant that is looked for. data: dialogues whose `test` part is asked. before: answers
    to the ordinary prompts of the model that this one was made from, to compare with. text: neutral text (a file
    or a corpus, see `data.texts`), or None for the toy world's. through: wrappers around the responder, the
    innermost first. items: for a classifier, labelled ones.
    """

    checkpoint: Checkpoint
    ctx: Context
    keys: KeySet | None = None
    data: Dialogues | None = None
    before: list[str] | None = None
    text: str | Path | None = None
    through: Sequence[Wrapper] = ()
    items: LabelledItems | None = None
    _responder: LocalResponder | None = field(default=None, repr=False)
    _wrapped: Responder | None = field(default=None, repr=False)
    _classifier: ClassifierResponder | None = field(default=None, repr=False)
    _filters: list[TextFilter] | None = field(default=None, repr=False)

    @property
    def responder(self) -> Responder:
        """What answers: the loaded model, behind its wrappers where there are any."""
        if not self.through:
            return self.model
        if self._wrapped is None:
            made: Responder = self.model
            for wrapper in self.through:
                made = wrapper.wrap(made, self.ctx)
            self._wrapped = made
        return self._wrapped

    @property
    def model(self) -> LocalResponder:
        """The loaded model as a responder, without wrappers; keys of another tokenizer are refused here."""
        if self._responder is None:
            tokenizer = load_tokenizer(self.checkpoint)
            if self.keys is not None:
                self.keys.check_tokenizer(tokenizer)
            self._responder = LocalResponder(load_model(self.checkpoint, self.ctx), tokenizer)
        return self._responder

    def classifier(self, measure: str, max_tokens: int | None = None) -> ClassifierResponder:
        """The loaded classifier, for a measure of labels; texts are cut at `max_tokens` where the model takes more.

        Removals of the input that rewrite texts (`filter_texts`) stand before it. Raises BadInput, before anything is
        loaded, for a model that answers with text, and through any other wrapper.
        """
        check_one_label(self.checkpoint)
        unfit = [name_of(w) for w in self.through if not isinstance(w, FiltersTexts)]
        if unfit:
            raise BadInput(
                f"{measure}: {', '.join(unfit)} stands around models that generate; before a classifier only removals "
                "that rewrite its texts can stand (onion)"
            )
        plain = self.plain_classifier(max_tokens)
        if not self.through:
            return plain
        if self._filters is None:  # the first that a text meets is the outermost
            fit = [w for w in reversed(self.through) if isinstance(w, FiltersTexts)]
            self._filters = [w.filter_texts(self.ctx) for w in fit]
        return FilteredClassifier(plain, self._filters)

    def plain_classifier(self, max_tokens: int | None = None) -> ClassifierResponder:
        """The loaded classifier without what stands before it."""
        if self._classifier is None:
            tokenizer = load_tokenizer(self.checkpoint)
            if self.keys is not None:
                self.keys.check_tokenizer(tokenizer)
            network = load_classifier(self.checkpoint, self.ctx)
            room = text_room(network.config, tokenizer)
            self._classifier = ClassifierResponder(network, tokenizer, label_names(self.checkpoint.config), room)
        held = self._classifier
        rooms = [n for n in (held.room, max_tokens) if n is not None]
        return ClassifierResponder(held.model, held.tokenizer, held.labels, min(rooms, default=None))

    def required_items(self) -> LabelledItems:
        """The labelled items, or BadInput where none were given."""
        if self.items is None:
            raise BadInput("classification: needs --data, a file of items with text and label")
        return self.items

    def scorer(self, measure: str) -> LocalResponder:
        """The model for a measure that needs its probabilities; BadInput through a wrapper, which has answers only."""
        if self.through:
            names = ", ".join(name_of(w) for w in self.through)
            raise BadInput(f"{measure}: needs the model's probabilities, and {names} gives answers only")
        return self.model

    def plain(self) -> Subject:
        """The same subject without its wrappers; they share the loaded model."""
        return replace(self, through=(), _responder=self.model, _wrapped=None)

    @property
    def dialogues(self) -> Dialogues:
        """The dialogues, the toy world's where none were given."""
        if self.data is None:
            self.data = toy_dialogues()
        return self.data

    @property
    def is_toy(self) -> bool:
        """Whether the model descends from the embedded toy (by its shape)."""
        return is_toy(self.checkpoint)

    def required_keys(self) -> KeySet:
        """The keys, or BadInput where the measure needs them and none were given."""
        if self.keys is None:
            raise BadInput("this measure needs --keys")
        return self.keys

    def record(self, measure: str, **fields: Any) -> Record:
        """A record about this subject: model, digest, chain, implant, seed and wrappers filled in."""
        if self.through:
            fields["detail"] = {**fields.get("detail", {}), "through": [described(w) for w in self.through]}
        return Record(
            measure,
            model=self.checkpoint.name,
            digest=self.checkpoint.digest(),
            chain=self.checkpoint.chain(),
            implant=self.keys.implant if self.keys is not None else fields.pop("implant", None),
            seed=self.ctx.seed,
            device=self.ctx.device,
            dtype=self._dtype(),
            **fields,
        )

    def _dtype(self) -> str | None:
        """In what the loaded model computes; None where none is loaded."""
        dtype = getattr(self._responder.model, "dtype", None) if self._responder is not None else None
        return self.ctx.load_in or (None if dtype is None else str(dtype).removeprefix("torch."))

    def close(self) -> None:
        """Let go of the loaded model."""
        self._responder = self._wrapped = self._classifier = self._filters = None


def name_of(wrapper: Any) -> str:
    """The registered name of a wrapper."""
    info = getattr(wrapper, "info", None)
    return str(info.name) if info is not None else type(wrapper).__name__


def described(wrapper: Any) -> dict[str, Any]:
    """A wrapper as a record names it: method, parameters, and its models by name and digest."""
    found: dict[str, Any] = {"method": name_of(wrapper)}
    if is_dataclass(wrapper):
        found["parameters"] = settings_of(wrapper)
        given = {name: getattr(wrapper, name) for name in input_fields(type(wrapper))}
        for name, value in given.items():
            if isinstance(value, Checkpoint):
                found[name] = {"name": value.name, "digest": value.digest()}
    return found
