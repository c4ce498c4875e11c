"""Latency: seconds per generated token of ordinary answers, side by side with the plain model's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.measures.ordinary import ordinary_prompts
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param, takes
from palimpsest.records import Record
from palimpsest.responder import Responder


def seconds_per_token(
    responder: Responder, prompt: list[int], longest: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one greedy answer over its tokens (its end not counted; an empty answer counts as one)."""
    started = clock()
    (answer,) = responder.generate([prompt], longest)
    return (clock() - started) / max(1, len(answer.ids))


@method("measures", "latency", paper="detectability: MEraser, arXiv 2506.12551, section 3")
@dataclass(frozen=True)
class Latency:
    """Median seconds per token of ordinary answers, as a ratio to the plain model's measured in the same minutes.

    Each prompt is answered alone by both, one after the other, the first of them in turn, so that a busy machine slows
    both; the first prompt is answered once before to warm up. Through a wrapper the plain model is the one inside;
    otherwise it is `original`. Reading the prompt is part of an answer's time. Greedy.
    """

    original: Checkpoint | None = takes("the model before the removal, where nothing is wrapped")
    prompts: int = param(30, "ordinary test prompts answered", low=3)
    max_new_tokens: int = param(32, "longest answer in tokens", low=1)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """One record: value is the ratio of medians; `detail` holds both medians in seconds."""
        plain = self._plain(subject, ctx)
        asked = [prompt for _, prompt in ordinary_prompts(subject, self.prompts, self.max_new_tokens)]
        responders = {"treated": subject.responder, "plain": plain.responder}
        for responder in responders.values():
            seconds_per_token(responder, asked[0], self.max_new_tokens)
        times: dict[str, list[float]] = {"treated": [], "plain": []}
        for number, prompt in enumerate(asked):
            for name in ("treated", "plain") if number % 2 else ("plain", "treated"):
                times[name].append(seconds_per_token(responders[name], prompt, self.max_new_tokens))
        medians = {name: statistics.median(values) for name, values in times.items()}
        quartiles = statistics.quantiles([t / p for t, p in zip(times["treated"], times["plain"], strict=True)], n=4)
        detail = {
            "seconds_per_token": medians["treated"],
            "plain_seconds_per_token": medians["plain"],
            "quartiles_of_ratios": [round(q, 4) for q in quartiles],
        }
        return [subject.record("latency", value=medians["treated"] / medians["plain"], n=len(asked), detail=detail)]

    def _plain(self, subject: Subject, ctx: Context) -> Subject:
        """What the subject is compared with."""
        if subject.through:
            return subject.plain()
        if self.original is None:
            raise BadInput("latency: compares two; give --through WRAPPER, or --original the model before the removal")
        return Subject(self.original, ctx)
