"""Divergence of a classifier's labels: how far a removal moved what it says of ordinary items."""

from __future__ import annotations

import math
from collections import Counter

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.labels import label_names
from palimpsest.errors import BadInput
from palimpsest.measures.label_hits import rate
from palimpsest.measures.subject import Subject
from palimpsest.method import Context
from palimpsest.records import Record
from palimpsest.responder.wrapped import same_tokens
from palimpsest.statistics import mean_interval


def label_divergence(subject: Subject, original: Checkpoint | None, ctx: Context) -> list[Record]:
    """Records `divergence` of task kl-per-item, in nats with a t interval over items, and of task labels.

    KL(original || treated) of the label distributions, a mean over the subject's items; and the share of items that get
    another label, with `detail.changed` item by item and both sides' counts of labels. Labels of the items are not
    looked at. Through input filters, original None, the plain classifier is compared with the filtered one.
    """
    items = subject.required_items()
    texts = [row.asked for row in items.rows]
    after = subject.classifier("divergence")
    if original is None:
        if not subject.through:
            raise BadInput("divergence: give --original, the model before the removal (or --through WRAPPER)")
        before = subject.plain_classifier()
    else:
        if label_names(original.config) != label_names(subject.checkpoint.config):
            raise BadInput(f"--original {original.name}: has other labels than {subject.checkpoint.name}")
        before = Subject(original, ctx).classifier("divergence")
        same_tokens(after.tokenizer, before.tokenizer, f"--original {original.name}", "nothing can be compared")
    ours, theirs = before.classify(texts), after.classify(texts)
    kl = [label_kl(a.log_probs, b.log_probs) for a, b in zip(ours, theirs, strict=True)]
    changed = [a.label != b.label for a, b in zip(ours, theirs, strict=True)]
    interval = mean_interval(kl) if len(kl) > 1 else None
    names = label_names(subject.checkpoint.config)
    counts = {
        side: [Counter(a.label for a in given)[i] for i in range(len(names))]
        for side, given in (("before", ours), ("after", theirs))
    }
    known = {} if original is None else {"original": {"name": original.name, "digest": original.digest()}}
    return [
        subject.record(
            "divergence",
            value=math.fsum(kl) / len(kl),
            n=len(kl),
            low=None if interval is None else max(0.0, interval.low),
            high=None if interval is None else interval.high,
            confidence=0.95,
            sided="two",
            task="kl-per-item",
            tokens=sum(a.tokens for a in (*ours, *theirs)),
            detail={"items": items.name, **known},
        ),
        subject.record(
            "divergence",
            **rate(sum(changed), len(changed)),
            confidence=0.95,
            sided="two",
            task="labels",
            detail={"changed": "".join(str(int(c)) for c in changed), "classes": list(names), **counts},
        ),
    ]


def label_kl(original: tuple[float, ...], treated: tuple[float, ...]) -> float:
    """KL(original || treated) in nats of two label distributions given as log-probabilities."""
    return max(0.0, math.fsum(math.exp(p) * (p - q) for p, q in zip(original, treated, strict=True) if p > -math.inf))
