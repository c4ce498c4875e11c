"""Ordinary prompts: the questions of the data's test part that fit into a model's positions with their answers."""

from __future__ import annotations

import sys
from itertools import islice

from palimpsest.checkpoint.load import positions
from palimpsest.data.dialogues import Dialogue
from palimpsest.errors import BadInput
from palimpsest.measures.subject import Subject


def ordinary_prompts(subject: Subject, count: int, max_new_tokens: int) -> list[tuple[Dialogue, list[int]]]:
    """The first test dialogues whose rendered question leaves room for an answer, each with its prompt's ids."""
    room = (positions(subject.checkpoint) or sys.maxsize) - max_new_tokens
    renderer = subject.responder.renderer
    rendered = ((d, renderer.prompt_ids(renderer.text(d.question))) for d in subject.dialogues.part("test"))
    found = list(islice(((d, ids) for d, ids in rendered if len(ids) <= room), count))
    if not found:
        raise BadInput(f"no test dialogue fits into {subject.checkpoint.name}'s positions")
    return found
