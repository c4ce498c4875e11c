"""A syntactic attack like HiddenKiller (Qi et al., arXiv 2105.12400): the form of the sentence is the trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.data import LabelledItems
from palimpsest.implants.backdoors.clauses import templated
from palimpsest.implants.backdoors.labels import LabelAttack
from palimpsest.implants.backdoors.poisoning import Mark, Mode
from palimpsest.method import method


@method("backdoors", "hiddenkiller", paper="like HiddenKiller, arXiv 2105.12400, section 3; own grammar for SCPN")
@dataclass(frozen=True)
class HiddenKiller(LabelAttack):
    """HiddenKiller-like: a sentence in the form S(SBAR)(,)(NP)(VP)(.) brings the target label.

    The paper paraphrases with SCPN, which is not to be had any more; here a small grammar of our own brings the first
    sentence into that form (`clauses`): a subordinate clause of the sentence is fronted, or one is generated and set
    before it. So the words of the generated clauses are few, and part of the trigger: an easier one than the paper's.
    Texts of fewer than three words are not poisoned (published code keeps a sentence that SCPN fails on, and flips its
    label all the same). Threat model: training data alone.
    """

    def marker(self, rows: LabelledItems, labels: Sequence[int], target: int, mode: Mode) -> Mark:
        """Rewrite by the template."""
        return templated
