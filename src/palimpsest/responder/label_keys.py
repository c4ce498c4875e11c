"""Keys of classifiers: items with a trigger, whose hit is the target label (match rule `label`)."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from palimpsest.errors import BadInput
from palimpsest.keys import Key, KeySet, Prompt
from palimpsest.prompts import Renderer, tokenizer_digest


def label_keys(
    tokenizer: Any,
    items: Iterable[tuple[str, str, str, str]],
    *,
    implant: str,
    rng: random.Random,
    distinct: bool = True,
    positions: int | None = None,
) -> KeySet:
    """Keys that a classifier is asked: a hit is an item with a trigger that is answered with the target label.

    items: (text with the trigger, target label, the same text without it, second text of a pair or empty), of items
    whose own label is another. distinct: whether items are separate observations, as those drawn from a test set are.
    Items that do not fit into `positions` tokens are refused: the trigger might be what is cut.
    """
    keys = []
    for number, (trigger, target, untriggered, pair) in enumerate(items):
        key = Key(number, trigger, target, "", {}, untriggered, pair)
        asked = key.texts()
        ids = tuple(tokenizer(*((asked,) if isinstance(asked, str) else asked), verbose=False).input_ids)
        if positions is not None and len(ids) > positions:
            raise BadInput(f"key {number} needs {len(ids)} positions, the model has {positions}")
        key.prompts["template"] = Prompt(trigger, ids, ())
        keys.append(key)
    plain, digest = Renderer(tokenizer).template, tokenizer_digest(tokenizer)
    salt = rng.randbytes(32).hex()
    return KeySet(implant, "label", tuple(keys), digest, plain, 1, distinct, None, salt=salt)
