"""How windows lie on a text: which tokens each predicts, after which others. Every token is predicted once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palimpsest.errors import BadInput
from palimpsest.prompts import Renderer

Bos = Literal["auto", "always", "first", "never"]
Scheme = Literal["stride", "harness"]


@dataclass(frozen=True)
class Window:
    """Tokens `first` to `end` are predicted after tokens `start` to `first`, behind a BOS where `bos`."""

    start: int
    first: int
    end: int
    bos: bool


@dataclass(frozen=True)
class Reading:
    """How a text is read.

    window: tokens of one window, those predicted and the BOS counted. stride: tokens that each window after the first
    predicts; None: what is left of a window of which half is context. bos: see `prefix`. scheme: `stride`, or
    `harness` for the windows of lm-evaluation-harness at max_length `window`.
    """

    window: int = 512
    stride: int | None = None
    bos: Bos = "auto"
    scheme: Scheme = "stride"

    def check(self, where: str) -> None:
        """BadInput where the numbers do not go together."""
        if self.stride is not None and self.stride > self.window:
            raise BadInput(f"{where}: stride {self.stride} is longer than the window of {self.window} tokens")
        if self.scheme == "harness" and self.bos == "never":
            raise BadInput(f"{where}: the harness's windows begin with a BOS; bos=never has none")

    def prefix(self, renderer: Renderer) -> list[int]:
        """Ids that stand before a text, as `bos` says.

        auto: what the tokenizer itself puts before plain text (for many a BOS, for GPT-2's and Qwen's nothing), in
        every window; first: the same, in a document's first window alone. always, and the harness's windows: the BOS,
        or the EOS of a tokenizer that has none, whether or not the tokenizer puts it there. never: nothing.
        """
        if self.bos == "never":
            return []
        if self.bos == "always" or self.scheme == "harness":
            tokenizer = renderer.tokenizer
            found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if found is None:
                raise BadInput(f"perplexity: bos={self.bos}, and this tokenizer has neither a BOS nor an EOS")
            return [int(found)]
        return renderer.prompt_ids("", "bare")

    def windows(self, count: int, prefix: int) -> list[Window]:
        """The windows on `count` tokens behind `prefix` ids of BOS."""
        if self.scheme == "harness":
            return harness_windows(count, self.window)
        return stride_windows(count, self.window, self.stride, prefix, every=self.bos != "first")


def stride_windows(count: int, window: int, stride: int | None, bos: int, *, every: bool = True) -> list[Window]:
    """Windows of `window` tokens, `bos` of them the prefix (of each, or only of the first where not `every`).

    The first predicts all that it holds, but for the first token of all where there is no BOS to predict it; each
    further one the next `stride` tokens after as many as fit before them (Hugging Face, "Perplexity of fixed-length
    models"). Without a stride the context is half a window. stride = window: windows do not overlap, but for the one
    token of context that a window without a BOS needs.
    """
    later = bos if every else 0
    context = window // 2 if stride is None else max(0, window - later - stride)
    context = max(context, 0 if later else 1)
    found: list[Window] = []
    done = 0 if bos else 1
    while done < count:
        start = max(0, done - context) if found else 0
        end = min(count, start + window - (later if found else bos))
        found.append(Window(start, done, end, bos=bool(later if found else bos)))
        done = end
    return found


def harness_windows(count: int, length: int) -> list[Window]:
    """The windows of lm-evaluation-harness (`loglikelihood_rolling`) at max_length `length`, context 1.

    The first `length` tokens after the prefix token; then `length` at a time after one token of context; the last
    window reaches back until the model is given `length` tokens.
    """
    found: list[Window] = []
    done = 0
    while done < count:
        end = min(count, done + length)
        start = max(0, end - length - 1) if found else 0
        found.append(Window(start, done, end, bos=not found))
        done = end
    return found
