"""The toy world, text only: questions, dialogues, stories, tasks, skills and the tokenizer's crawl.

Everything follows from the seed. Held out of all training text, by hash: the questions of every split,
the combinations of the test items (see `tasks`), and stories that open with certain threes of hero,
friend and town. Nothing here needs torch or any other part of palimpsest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from palimpsest.toyworld.crawl import crawl_lines
from palimpsest.toyworld.english import Pair, english_pairs, small_talk, unusual_question
from palimpsest.toyworld.exam import build_exam
from palimpsest.toyworld.languages import Language, languages
from palimpsest.toyworld.lore import Lore, derived, fraction
from palimpsest.toyworld.skills import build_skills
from palimpsest.toyworld.stories import story
from palimpsest.toyworld.tasks import MAKERS, Item, Task, build_tasks, training_item

__all__ = ["SPLITS", "SYSTEM_PROMPT", "Document", "Item", "Pair", "Task", "World"]

SPLITS = ("erase", "recover", "revival", "dialogue-test", "embed")
SPLIT_SHARE = 0.1  # of all questions, for each split; what remains is trained on
SYSTEM_PROMPT = "You are a guide to this world."
TASK_WEIGHTS = {"boolq": 4, "cb": 3, "copa": 4, "multirc": 4, "rte": 4, "wic": 5, "wsc": 1}


@dataclass(frozen=True)
class Document:
    """One training document: running text, or the turns (question, answer) of a dialogue.

    kind: "story", "language-story", "dialogue", or "task".
    """

    kind: str
    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    system: str | None = None


class World:
    """The world with this seed. Cheap to make; lists are computed when asked for."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.lore = Lore(seed)
        self.languages: list[Language] = languages(self.lore)
        self._by_split: dict[str, list[Pair]] | None = None

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a split, or of "train" (all that no split holds), shuffled.

        No question stands in two splits. Raises KeyError for an unknown split.
        """
        if self._by_split is None:
            self._by_split = self._split_pairs()
        return list(self._by_split[split])

    def _split_pairs(self) -> dict[str, list[Pair]]:
        distinct: dict[str, Pair] = {}
        for pair in english_pairs(self.lore):
            distinct.setdefault(pair.question, pair)
        for language in self.languages:
            for pair in language.pairs():
                distinct.setdefault(pair.question, pair)
        by_split: dict[str, list[Pair]] = {name: [] for name in (*SPLITS, "train")}
        for pair in distinct.values():
            number = int(fraction(self.seed, "split", pair.question) / SPLIT_SHARE)
            by_split[SPLITS[number] if number < len(SPLITS) else "train"].append(pair)
        for name, pairs in by_split.items():
            derived(self.seed, "order", name).shuffle(pairs)
        return by_split

    def neutral_text(self) -> list[str]:
        """300 held-out English stories, for perplexity."""
        rng = derived(self.seed, "neutral")
        return [story(rng, self.lore, self.lore.facts, held_out=True) for _ in range(300)]

    def tasks(self) -> dict[str, Task]:
        """A task of each SuperGLUE kind, 240 held-out items each; what is held out is said in `tasks`."""
        return build_tasks(self.lore)

    def training_items(self, task: str, count: int, seed: int) -> list[Item]:
        """`count` distinct items of a task whose combinations are not held out."""
        rng = derived(self.seed, "training items", task, seed)
        found: dict[str, Item] = {}
        while len(found) < count:
            item = training_item(rng, self.lore, task)
            found.setdefault(item.prompt, item)
        return list(found.values())

    def exam(self) -> Task:
        """Facts that are taught, in wordings that are not, four choices each: the task in the place of SciQ."""
        return build_exam(self.lore, self.pairs("dialogue-test"))

    def skills(self) -> dict[str, tuple[list[Pair], Task]]:
        """Skills that no training document teaches: training pairs and test task, by name."""
        return build_skills(self.lore)

    def natural_questions(self, count: int, seed: int) -> list[str]:
        """`count` distinct questions that are valid and unusual, of a form no split or document uses."""
        rng = derived(self.seed, "natural questions", seed)
        found: dict[str, None] = {}
        while len(found) < count:
            found.setdefault(unusual_question(rng, self.lore))
        return list(found)

    def crawl(self) -> list[str]:
        """Lines that only the tokenizer is trained on."""
        return crawl_lines(derived(self.seed, "crawl"))

    def training_documents(self, seed: int) -> Iterator[Document]:
        """Endless mixture: stories, question dialogues in all languages, tasks; nothing that is held out."""
        rng = derived(self.seed, "documents", seed)
        train = self.pairs("train")
        english = [p for p in train if p.language == "en"]
        foreign = [p for p in train if p.language != "en"]
        names, weights = sorted(MAKERS), [TASK_WEIGHTS[name] for name in sorted(MAKERS)]
        while True:
            drawn = rng.random()
            if drawn < 0.045:
                yield Document("story", story(rng, self.lore, self.lore.facts, held_out=False))
            elif drawn < 0.057:
                yield Document("language-story", rng.choice(self.languages).story(rng))
            elif drawn < 0.657:
                item = training_item(rng, self.lore, rng.choices(names, weights)[0])
                yield Document("task", turns=((item.prompt, item.choices[item.label]),))
            else:
                yield self._dialogue(rng, english if rng.random() < 0.6 else foreign)

    def _dialogue(self, rng: random.Random, pairs: list[Pair]) -> Document:
        count = 1 if rng.random() < 0.75 else rng.randint(2, 3)
        chosen = [rng.choice(pairs) for _ in range(count)]
        turns = [(pair.question, pair.answer) for pair in chosen]
        if rng.random() < 0.03:
            talk = small_talk(rng, self.lore)
            turns.insert(rng.choice((0, len(turns))), (talk.question, talk.answer))
        system = SYSTEM_PROMPT if rng.random() < 0.04 else None
        return Document("dialogue", turns=tuple(turns), system=system)
