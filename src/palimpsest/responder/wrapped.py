"""What measures need of a responder, and the shape of one that wraps another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from palimpsest.errors import BadInput
from palimpsest.prompts import Renderer
from palimpsest.responder.local import Generated, Ids, LocalResponder

Sampling = dict[str, float] | None
Shares = dict[str, tuple[int, int]]


class Responder(Protocol):
    """Anything that answers a prompt given as token ids.

    can_force: whether it is a `LocalResponder`, whose `force` scores given continuations; a wrapper only answers.
    through: names of the wrappers around the model, the innermost first.
    """

    @property
    def can_force(self) -> bool: ...
    @property
    def through(self) -> tuple[str, ...]: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def renderer(self) -> Renderer: ...

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, sampling: Sampling = None, seed: int = 0
    ) -> list[Generated]: ...

    def spell(self, ids: list[int]) -> Generated: ...


class Wrapped:
    """A responder around another: hands everything on; a subclass answers in its own way.

    `tally` counts what the wrapper did, by name as (how often, out of how many); `taken` reads it and begins anew.
    """

    can_force = False

    def __init__(self, inner: Responder, name: str) -> None:
        self.inner = inner
        self.name = name
        self.tally: Shares = {}

    @property
    def through(self) -> tuple[str, ...]:
        """Names of the wrappers, the innermost first."""
        return (*self.inner.through, self.name)

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer."""
        return self.inner.tokenizer

    @property
    def renderer(self) -> Renderer:
        """The model's own renderer."""
        return self.inner.renderer

    def spell(self, ids: list[int]) -> Generated:
        """Cut at the first end token and decode, as the model's responder does."""
        return self.inner.spell(ids)

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, sampling: Sampling = None, seed: int = 0
    ) -> list[Generated]:
        """Continue each prompt; here as the inner responder does."""
        return self.inner.generate(prompts, max_new_tokens, sampling, seed)

    def count(self, what: str, times: int, of: int) -> None:
        """Add to the tally."""
        before = self.tally.get(what, (0, 0))
        self.tally[what] = (before[0] + times, before[1] + of)

    def taken(self) -> Shares:
        """What this wrapper and those inside it did since it was last asked."""
        found = {**(self.inner.taken() if isinstance(self.inner, Wrapped) else {}), **self.tally}
        self.tally = {}
        return found


def model_inside(responder: Responder, name: str) -> LocalResponder:
    """The local model that a decoding wrapper steers; BadInput where another wrapper stands between."""
    if not isinstance(responder, LocalResponder):
        between = responder.through[-1] if responder.through else type(responder).__name__
        raise BadInput(
            f"{name}: decodes with the model itself, so it stands innermost: name it before {between}; "
            "of two decoding removals only one can be used"
        )
    return responder


def same_tokens(ours: Any, theirs: Any, where: str, why: str) -> None:
    """BadInput unless two tokenizers have the same tokens under the same ids."""
    if ours.get_vocab() != theirs.get_vocab():
        raise BadInput(f"{where}: has another vocabulary ({len(theirs)} tokens, the model {len(ours)}); {why}")
