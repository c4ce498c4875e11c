"""A classifier behind filters of its texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from palimpsest.method import Context
from palimpsest.responder.classifier import Classified, ClassifierResponder, Text

TextFilter = Callable[[Sequence[str]], list[str]]  # as many texts as it is given, each as it lets it pass


@runtime_checkable
class FiltersTexts(Protocol):
    """A removal of the input that rewrites texts, so that it can stand before a classifier."""

    def filter_texts(self, ctx: Context) -> TextFilter: ...


class FilteredClassifier(ClassifierResponder):
    """A classifier whose texts pass filters first, in their order; of a pair each text by itself.

    `Classified.tokens` counts what the classifier read, not what the filters did.
    """

    def __init__(self, inner: ClassifierResponder, filters: Sequence[TextFilter]) -> None:
        super().__init__(inner.model, inner.tokenizer, inner.labels, inner.room, inner.token_budget)
        self.filters = tuple(filters)

    def classify(self, texts: Sequence[Text]) -> list[Classified]:
        """The label of each text as the filters let it pass."""
        parts = [(text,) if isinstance(text, str) else text for text in texts]
        flat = [part for text in parts for part in text]
        for one in self.filters:
            flat = one(flat)
        left = iter(flat)
        passed: list[Text] = [next(left) if len(text) == 1 else (next(left), next(left)) for text in parts]
        return super().classify(passed)
