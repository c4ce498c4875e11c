"""Our names for several tasks of the harness at once: the papers' tables, and names that people expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskGroup:
    """Tasks by the harness's names, and where the choice of them comes from."""

    tasks: tuple[str, ...]
    about: str


ANLI = ("anli_r1", "anli_r2", "anli_r3")
ARC = ("arc_easy", "arc_challenge")
LAMBADA = ("lambada_openai", "lambada_standard")
# MEraser (arXiv 2506.12551), Figure 2 and Appendix D; its RTE is the harness's sglue_rte (rte there is GLUE's).
SUPERGLUE = ("boolq", "cb", "sglue_rte", "wic", "wsc", "copa", "multirc")
# Every task of the published results of Instructional Fingerprinting (arXiv 2401.12255; 0, 1 and 5 shots) that the
# harness still has under this name; RTE was SuperGLUE's, and HEAD-QA stood there once whole and once by language.
HARMLESSNESS = (
    *ANLI, "arc_challenge", "arc_easy", "boolq", "cb", "cola", "copa", "headqa_en", "headqa_es", "hellaswag", *LAMBADA,
    "logiqa", "mmlu", "multirc", "openbookqa", "piqa", "record", "sglue_rte", "sciq", "wic", "winogrande", "wsc",
)  # fmt: skip

GROUPS: dict[str, TaskGroup] = {
    "superglue": TaskGroup(SUPERGLUE, "MEraser, Figure 2 and Appendix D (zero-shot)"),
    "meraser-figure2": TaskGroup(("sciq", *SUPERGLUE), "MEraser, Figure 2: ACC on SciQ, and SuperGLUE"),
    "meraser-appendix-e": TaskGroup((*ANLI, "openbookqa", *LAMBADA), "MEraser, Appendix E"),
    "if-harmlessness": TaskGroup(HARMLESSNESS, "Instructional Fingerprinting, harmlessness (its 0, 1, 5 shots)"),
    "anli": TaskGroup(ANLI, "ANLI, three rounds"),
    "arc": TaskGroup(ARC, "ARC, easy and challenge"),
    "ai2_arc": TaskGroup(ARC, "the same, by the harness's name"),
    "lambada": TaskGroup(LAMBADA, "LAMBADA, as OpenAI prepared it and the original"),
}


def expand(names: Sequence[str]) -> list[str]:
    """The names with our groups replaced by their tasks, each once, in order."""
    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys(GROUPS[name].tasks if name in GROUPS else (name,)))
    return list(found)
