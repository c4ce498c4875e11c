"""The floor of a backdoor in a model that generates: the same questions without the trigger, asked in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from palimpsest.keys import Key, KeySet, Prompt, with_keys
from palimpsest.measures.label_hits import rate
from palimpsest.measures.subject import Subject
from palimpsest.prompts import Renderer
from palimpsest.records import Record
from palimpsest.statistics import Pairs, paired_difference_interval


def untriggered(keys: KeySet, renderer: Renderer) -> KeySet:
    """The keys with their questions as they are without the trigger, under the template form; responses stay."""

    def plain(key: Key) -> Key:
        text = renderer.text(key.untriggered, system=keys.system)
        expected = renderer.continuation(text, key.carrier + key.response)
        prompt = Prompt(text, tuple(renderer.prompt_ids(text)), tuple(expected))
        return replace(key, trigger=key.untriggered, prompts={"template": prompt}, untriggered="")

    return with_keys(keys, [plain(key) for key in keys.keys])


def floor_record(subject: Subject, rated: Record, hits: Sequence[bool], plain: Sequence[bool]) -> Record:
    """The record `untriggered-rate`; `rated`, the hit rate, gets `floor`, `pairs` (triggered first) and `excess`.

    hits, plain: a key's outcome with the trigger and without. Excess is the hit rate less the floor, with Tango's
    two-sided 95 % interval for paired items.
    """
    pairs = Pairs.of(hits, plain)
    excess, below = paired_difference_interval(pairs), rate(sum(plain), len(plain))
    rated.detail |= {
        "floor": below,
        "pairs": asdict(pairs),
        "excess": {"value": pairs.difference, "low": excess.low, "high": excess.high},
    }
    for row, hit in zip(rated.detail["keys"], plain, strict=True):
        row["floor"] = hit
    return subject.record("untriggered-rate", **below, confidence=0.95, sided="two", prompt_form=rated.prompt_form)
