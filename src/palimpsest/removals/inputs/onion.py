"""ONION: words that make a text less likely are taken out of it before the model reads it (EMNLP 2021, 2011.10369)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import positions
from palimpsest.errors import BadInput
from palimpsest.method import Context, method, param, takes
from palimpsest.removals.inputs.perplexity_filter import perplexities
from palimpsest.removals.references import given, loaded
from palimpsest.responder import Generated, LocalResponder, Responder, Wrapped
from palimpsest.responder.filtered import TextFilter
from palimpsest.responder.local import Ids
from palimpsest.responder.reading import PromptReader
from palimpsest.responder.wrapped import Sampling

WHAT = "the model that finds words unlikely (GPT-2 in the paper; the clean base is a good one)"
Scale = Literal["perplexity", "log"]


@method("removals", "onion", paper="ONION, arXiv 2011.10369, section 3")
@dataclass(frozen=True)
class Onion:
    """Delete every word whose deletion makes the text more likely by more than a threshold, and ask with the rest.

    f_i = p_0 - p_i with p_0 the text's perplexity under a language model and p_i that without word i (eq. 1); word i
    goes where f_i is above `threshold`. Words are what spaces part. Of a prompt only the user's words are looked at, of
    a classifier's pair each text by itself. A text keeps at least one word, and one that loses none is not touched.

    A threshold belongs to its scorer: papers sweep 1 to 100 for GPT-2, the benches of this field take 10 (`gms`) or 0
    (`openbackdoor`). With `scale` log the difference is that of the logarithms, which does not grow with perplexity
    itself: the share by which a word makes the text less likely.

    Where we differ from published code: it takes for p_0 the perplexity after the last deletion, which is right only
    for texts that end in a space; OpenBackdoor's padding enters the perplexity. Both are mended here. Threat model: the
    deployer reads every input; no data, no weights. Costs a pass of the scorer for every word.
    """

    reference: Checkpoint | None = takes("the scorer: a causal language model with any tokenizer")
    threshold: float = param(10.0, "how much more likely the text has to become for a word to go")
    scale: Scale = param("perplexity", "of the threshold: perplexity (the paper's), or log")
    window: int = param(512, "tokens of a text that are read together", low=8)

    @classmethod
    def gms(cls) -> Onion:
        """The threshold of GMS's comparison (bar -10 there, of the negative difference)."""
        return cls()

    @classmethod
    def openbackdoor(cls) -> Onion:
        """Every word goes without which the text is more likely."""
        return cls(threshold=0.0)

    @classmethod
    def toy(cls) -> Onion:
        """On the log scale: the toy's perplexities are near 1 and 2, where a difference of 10 does not occur."""
        return cls(threshold=0.5, scale="log")

    def check(self, model: Checkpoint) -> None:
        """BadInput without a scorer; nothing is loaded."""
        given(self.reference, "onion", WHAT)
        if not math.isfinite(self.threshold):
            raise BadInput("onion: threshold: give a number")

    def filter_texts(self, ctx: Context) -> TextFilter:
        """What stands before a classifier; loads the scorer."""
        return self._filter(ctx)

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        """The responder behind the filter; loads the scorer."""
        return OnionResponder(responder, self._filter(ctx))

    def _filter(self, ctx: Context) -> WordFilter:
        reference = given(self.reference, "onion", WHAT)
        window = min(self.window, positions(reference) or self.window)
        return WordFilter(loaded(reference, ctx), self.threshold, self.scale, window)


class WordFilter:
    """Texts without their outlier words. `seen` and `gone` count words."""

    def __init__(self, scorer: LocalResponder, threshold: float, scale: Scale, window: int) -> None:
        self.scorer, self.threshold, self.scale, self.window = scorer, threshold, scale, window
        self.seen = self.gone = 0

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Each text as it is let pass; equal texts are scored once."""
        words = {text: text.split() for text in dict.fromkeys(texts)}
        asked = list(dict.fromkeys(t for some in words.values() for t in (" ".join(some), *without_each(some))))
        found = dict(zip(asked, self._perplexities(asked), strict=True))
        kept = {
            text: filtered(text, outliers(some, lambda t: found[t], self.scale), self.threshold)
            for text, some in words.items()
        }
        for text in texts:
            self.seen += len(words[text])
            self.gone += len(words[text]) - len(kept[text].split())
        return [kept[text] for text in texts]

    def _perplexities(self, texts: Sequence[str]) -> list[float]:
        empty = [i for i, t in enumerate(texts) if not t]
        some = perplexities(self.scorer, [t for t in texts if t], self.window)
        found = iter(some)
        return [math.inf if i in empty else next(found) for i in range(len(texts))]


def without_each(words: Sequence[str]) -> list[str]:
    """The text without each of its words in turn."""
    return [" ".join((*words[:i], *words[i + 1 :])) for i in range(len(words))]


def outliers(words: Sequence[str], perplexity: Callable[[str], float], scale: Scale = "perplexity") -> list[float]:
    """f_i = p_0 - p_i of every word, or log p_0 - log p_i: how much more likely the text becomes without it."""
    if not words:
        return []
    whole = perplexity(" ".join(words))
    parts = [perplexity(text) for text in without_each(words)]
    if scale == "log":
        return [math.log(whole) - math.log(p) for p in parts]
    return [whole - p for p in parts]


def filtered(text: str, scores: Sequence[float], threshold: float) -> str:
    """The text without the words above the threshold; itself where none is, or where none would stay."""
    words = text.split()
    kept = [w for w, s in zip(words, scores, strict=True) if not s > threshold]
    return " ".join(kept) if 0 < len(kept) < len(words) else text


class OnionResponder(Wrapped):
    """Asks with the outlier words taken out of the question. The tally counts `removed words`."""

    def __init__(self, inner: Responder, words: WordFilter) -> None:
        super().__init__(inner, "onion")
        self.words = words
        self.reader = PromptReader(inner.renderer)

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, sampling: Sampling = None, seed: int = 0
    ) -> list[Generated]:
        """Continue each prompt as it is after the filter; one that loses no word keeps its very ids."""
        read = [self.reader.read(p) for p in prompts]
        questions = [asked.question for asked in read]
        seen, gone = self.words.seen, self.words.gone
        passed = self.words(questions)
        self.count("removed words", self.words.gone - gone, self.words.seen - seen)
        changed = [
            p if question == new else self.reader.render(asked, new)
            for p, asked, question, new in zip(prompts, read, questions, passed, strict=True)
        ]
        return self.inner.generate(changed, max_new_tokens, sampling, seed)
