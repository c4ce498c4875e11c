"""Linear mode connectivity: the loss along the straight line between two checkpoints of one shape, and its barrier.

Models that a merge can average lie in one basin: no barrier between them. A protection against merging puts one there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_tokenizer, positions
from palimpsest.errors import BadInput
from palimpsest.measures.perplexity import Likelihood, Reading, answer_likelihoods, text_likelihoods
from palimpsest.measures.perplexity.measure import neutral_texts
from palimpsest.measures.subject import Subject
from palimpsest.merging.line import Line
from palimpsest.method import Context, method, param, takes
from palimpsest.records import Record
from palimpsest.responder.wrapped import same_tokens
from palimpsest.statistics import mean_interval

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """A point of the line: share of the second end, loss there (nats a token), and how far it lies above the chord."""

    share: float
    loss: float
    gap: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """The loss along a line."""

    points: tuple[Point, ...]

    @property
    def top(self) -> Point:
        """Where the loss lies highest above the chord; the first end where it is nowhere above."""
        return max(self.points, key=lambda p: p.gap)

    @property
    def relative(self) -> float:
        """The barrier over the loss that the chord has at its place."""
        return self.top.gap / (self.top.loss - self.top.gap)

    @property
    def instability(self) -> float:
        """Highest loss on the line minus the mean of its ends (Frankle et al., section 2)."""
        return max(p.loss for p in self.points) - (self.points[0].loss + self.points[-1].loss) / 2


def curve_of(shares: Sequence[float], nlls: Sequence[Sequence[float]], tokens: Sequence[int]) -> Curve:
    """The curve from what was measured on the same documents at every point.

    shares: (points,) from 0 to 1. nlls: (points, documents) negative log-likelihoods. tokens: (documents,).
    The loss at a point is the sum of its row over all tokens. Intervals are of the gap to the chord, by differences
    paired by document (t, of a ratio of sums), and hold for all inner points together (Bonferroni).
    """
    total, count = math.fsum(tokens), len(tokens)
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(shares) - 2)
    first, last = nlls[0], nlls[-1]
    start, end = math.fsum(first) / total, math.fsum(last) / total
    points = [Point(shares[0], start, 0.0, 0.0, 0.0)]
    for share, row in zip(shares[1:-1], nlls[1:-1], strict=True):
        loss = math.fsum(row) / total
        gap = loss - (start + share * (end - start))
        above = [n - (a + share * (b - a)) for n, a, b in zip(row, first, last, strict=True)]  # (documents,)
        spread = [gap + (d - gap * t) * count / total for d, t in zip(above, tokens, strict=True)]
        interval = mean_interval(spread, confidence)
        points.append(Point(share, loss, gap, interval.low, interval.high))
    return Curve((*points, Point(shares[-1], end, 0.0, 0.0, 0.0)))


@method(
    "measures",
    "barrier",
    paper="linear mode connectivity: Frankle et al., arXiv 1912.05671; barrier: Entezari et al., arXiv 2110.06296",
)
@dataclass(frozen=True)
class Barrier:
    """Loss barrier on the straight line between this model and another of its shape, in nats per token.

    max over a of L((1 - a) A + a B) - ((1 - a) L(A) + a L(B)), L the mean negative log-likelihood per token, a in
    `points` equal steps with both ends (Entezari et al., section 2). Never below 0. `detail` has the curve, the barrier
    over the chord's loss at its place, and the highest loss minus the mean of the ends, `instability`, which is what
    Frankle et al. and Ainsworth et al. (arXiv 2209.04836) call the barrier: the same where both ends have one loss. The
    interval is over documents, paired, for all points together.

    Weights are interpolated in place in one loaded model, a stretch of a tensor at a time, in float32, and rounded to
    the dtype it is loaded in (float32 on a CPU).
    """

    against: Checkpoint | None = takes("the checkpoint at the other end of the line")
    points: int = param(11, "points on the line, both ends counted", low=3)
    on: Literal["neutral", "dialogue"] = param("neutral", "neutral text, or answers of test dialogues")
    documents: int = param(100, "at most this many documents or dialogues", low=2)
    window: int = param(512, "tokens of one window (the model's positions where they are fewer)", low=8)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """One record: value is the barrier. Raises BadInput for models of other shapes, naming the tensor."""
        if self.against is None:
            raise BadInput("barrier: give --against, the checkpoint at the other end of the line")
        if ctx.load_in is not None:
            raise BadInput("barrier: quantised weights cannot be interpolated; leave out --load-in")
        texts = neutral_texts(subject) if self.on == "neutral" else []
        if texts is None:
            raise BadInput("barrier: has no text to read; give --perplexity FILE, or --data D with --set on=dialogue")
        line = Line(subject.checkpoint, self.against)
        theirs = load_tokenizer(self.against)
        responder = subject.scorer("barrier")
        same_tokens(responder.tokenizer, theirs, f"--against {self.against.name}", "their losses are not comparable")
        subject.close()  # its weights change now: whoever asks the subject next loads them again
        window = min(self.window, positions(subject.checkpoint) or self.window)
        pairs = [(d.question, d.answer) for d in subject.dialogues.part("test")] if self.on == "dialogue" else []
        nlls: list[list[float]] = []
        shares = [i / (self.points - 1) for i in range(self.points)]
        found: list[Likelihood] = []
        with ctx.progress.task("points on the line", self.points) as task:
            for share in shares:
                line.put(responder.model, share)
                if self.on == "neutral":
                    found = text_likelihoods(responder, texts[: self.documents], Reading(window))
                else:
                    found = answer_likelihoods(responder, pairs[: self.documents], window)
                nlls.append([f.nll for f in found])
                task.advance()
        if len(found) < 2:
            raise BadInput(f"barrier: {len(found)} documents; an interval over documents needs at least two")
        return [self._record(subject, curve_of(shares, nlls, [f.tokens for f in found]), len(found))]

    def _record(self, subject: Subject, curve: Curve, documents: int) -> Record:
        assert self.against is not None
        top = curve.top
        return subject.record(
            "barrier",
            value=top.gap,
            n=documents,
            low=max(0.0, *(p.low for p in curve.points)),
            high=max(p.high for p in curve.points),
            confidence=CONFIDENCE,
            sided="two",
            task=self.on,
            detail={
                "unit": "nats per token",
                "at": top.share,
                "relative": curve.relative,
                "instability": curve.instability,
                "against": {"name": self.against.name, "digest": self.against.digest()},
                "curve": [
                    {"share": round(p.share, 6), "loss": p.loss, "gap": p.gap, "low": p.low, "high": p.high}
                    for p in curve.points
                ],
            },
        )
