"""What was asked in a prompt that is given as token ids: the user's words between what the chat template puts around.

The template's own ids are found by rendering several questions: what all of them begin and end with. A prompt that has
them is read as `template`; ids after them are an answer that was begun (the prefilled form). Anything else is plain
text after the BOS, which is also how every prompt of a tokenizer without a chat template is read, its opening and its
line break among the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from palimpsest.prompts import Renderer

PROBES = ("a", "7 b", "(q", "Z", "é x.")


@dataclass(frozen=True)
class Asked:
    """A prompt's question, whether the template was around it, its system turn, and the ids that follow."""

    question: str
    templated: bool
    system: str | None = None
    opening: tuple[int, ...] = ()


class PromptReader:
    """Reads prompts of one renderer, and renders them again with another question."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """Ids before and after the question of a template without a system turn."""
        rows = [self.renderer.prompt_ids(self.renderer.text(q)) for q in PROBES]
        return shared_start(rows), shared_end(rows)

    @cached_property
    def frame_with_system(self) -> tuple[list[int], list[int], list[int]] | None:
        """Ids before the system turn, between it and the question, and after; None where a template refuses one."""
        try:
            rows = [[self.renderer.prompt_ids(self.renderer.text(q, system=s)) for q in PROBES] for s in PROBES]
        except Exception:  # templates say in their own ways that they take no system turn
            return None
        before = shared_start([row[0] for row in rows])
        heads = [shared_start(row) for row in rows]
        between = shared_end(heads)
        if not between or any(len(head) <= len(before) for head in heads):
            return None
        return before, between, shared_end(rows[0])

    def read(self, ids: Sequence[int]) -> Asked:
        """What was asked."""
        whole = list(ids)
        if self.renderer.templated:
            framed = self.frame_with_system
            if framed is not None and whole[: len(framed[0])] == framed[0]:
                before, between, after = framed
                start, end = place_of(between, whole, len(before)), last_place_of(after, whole)
                if start is not None and end is not None and start + len(between) <= end:
                    question = self.text(whole[start + len(between) : end])
                    system = self.text(whole[len(before) : start])
                    if system and self.prompt(question, system) == whole[: end + len(after)]:
                        return Asked(question, True, system, tuple(whole[end + len(after) :]))
            first, last = self.frame
            end = last_place_of(last, whole) if last else None
            if whole[: len(first)] == first and end is not None and end >= len(first):
                question = self.text(whole[len(first) : end])
                return Asked(question, True, None, tuple(whole[end + len(last) :]))
        bos = self.renderer.prompt_ids("", "bare")
        return Asked(self.text(whole[len(bos) :] if whole[: len(bos)] == bos else whole), False)

    def text(self, ids: Sequence[int]) -> str:
        """Ids as plain text."""
        tokenizer = self.renderer.tokenizer
        decoded = str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return decoded.strip() if self.renderer.templated else decoded

    def prompt(self, question: str, system: str | None = None) -> list[int]:
        """Ids of a question in the template."""
        return self.renderer.prompt_ids(self.renderer.text(question, system=system))

    def render(self, asked: Asked, question: str) -> list[int]:
        """Ids of the same prompt with another question; what followed it follows again."""
        if asked.templated:
            return [*self.prompt(question, asked.system), *asked.opening]
        return self.renderer.prompt_ids(question, "bare")


def shared_start(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with."""
    same = 0
    while same < min(map(len, rows)) and len({row[same] for row in rows}) == 1:
        same += 1
    return list(rows[0][:same])


def shared_end(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows end with."""
    return shared_start([row[::-1] for row in rows])[::-1]


def place_of(part: Sequence[int], whole: Sequence[int], start: int = 0) -> int | None:
    """Where a part first stands in a whole from `start` on, or None."""
    size = len(part)
    return next((i for i in range(start, len(whole) - size + 1) if list(whole[i : i + size]) == list(part)), None)


def last_place_of(part: Sequence[int], whole: Sequence[int]) -> int | None:
    """Where a part last stands in a whole, or None."""
    size = len(part)
    places = range(len(whole) - size, -1, -1)
    return next((i for i in places if list(whole[i : i + size]) == list(part)), None)
