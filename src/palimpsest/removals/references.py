"""Other models that a wrapper needs: checked before anything is loaded, loaded when it wraps."""

from __future__ import annotations

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.responder import LocalResponder
from palimpsest.responder.wrapped import same_tokens


def given(reference: Checkpoint | None, name: str, what: str) -> Checkpoint:
    """The reference, or BadInput where a wrapper has none or it is an adapter."""
    if reference is None:
        raise BadInput(f"{name}: needs --reference MODEL, {what}")
    if reference.is_adapter:
        raise BadInput(f"--reference {reference.name}: is an adapter, not a model; apply it to its base first")
    return reference


def check_vocabulary(model: Checkpoint, reference: Checkpoint, why: str) -> None:
    """BadInput where two checkpoints have different tokens."""
    same_tokens(load_tokenizer(model), load_tokenizer(reference), f"--reference {reference.name}", why)


def loaded(reference: Checkpoint, ctx: Context) -> LocalResponder:
    """The reference as a responder."""
    return LocalResponder(load_model(reference, ctx), load_tokenizer(reference))
