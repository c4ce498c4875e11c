"""Expert merging: the thief averages the mark away (MEraser, arXiv 2506.12551, section 5.3, eq. 9 to 13).

The marked model and another fine-tune of the same base, an expert, are merged. `share` is always that of the marked
model: its task vector has the weight `share`, the expert's 1 - share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from palimpsest.checkpoint import Checkpoint, lineage
from palimpsest.checkpoint.load import copy_tokenizer
from palimpsest.errors import BadInput
from palimpsest.merging.folder import merge_to_folder
from palimpsest.merging.plan import make_plan
from palimpsest.merging.request import MergeRequest, Part
from palimpsest.merging.task_vectors import TaskVectors, task_vectors
from palimpsest.merging.tokens import read_tokens
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.records import Record
from palimpsest.removals.change import change

Merge = Literal["task-arithmetic", "dare", "dare-ties", "ties", "linear", "slerp"]
WITHOUT_BASE = ("linear", "slerp")
SPARSE = ("dare", "dare-ties", "ties")


@method("removals", "expert-merge", paper="MEraser, arXiv 2506.12551, section 5.3, eq. 9 to 13 (baseline removal)")
@dataclass(frozen=True)
class ExpertMerge:
    """Merge the marked model with an expert of the same base; no training, no key.

    Task arithmetic: base + s d_marked + (1 - s) d_expert, which is the plain average s marked + (1 - s) expert, since
    the weights add up to one (so `linear` makes the same model without a base). DARE keeps each entry of a task vector
    with probability `density` and divides it by that (eq. 11 to 13). TIES keeps the largest entries, elects a sign a
    position and averages those that agree: an entry that only one model has keeps its full size, whatever the share.
    SLERP goes from the marked model to the expert by t = 1 - share.

    Threat model: a thief with the weights, the public base and any public expert of it; he knows no key. Published
    code is mergekit, whose DARE rescales to the L1 norm (`mergekit()`), where the paper divides by the density.
    """

    base: Checkpoint | None = takes(
        "the common base; linear and slerp need none, and with it task vectors are reported"
    )
    expert: Checkpoint | None = takes("another fine-tune of the same base")
    method: Merge = param("task-arithmetic", "how they are merged")
    share: float = param(0.5, "share of the marked model; the expert has the rest", low=0.0, high=1.0)
    density: float = param(0.4, "share of each task vector that dare, dare-ties and ties keep", low=0.0, high=1.0)
    rescale: Literal["paper", "l1"] = param("paper", "DARE's rescaling: by 1/density, or to the L1 norm (mergekit)")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = param("auto", "as stored; auto: what holds all inputs")

    @classmethod
    def paper(cls) -> ExpertMerge:
        """Task arithmetic at 5:5, the middle of the paper's 4:6, 5:5 and 6:4 (M_task, eq. 9 and 10)."""
        return cls()

    @classmethod
    def paper_dare(cls) -> ExpertMerge:
        """DARE at 5:5 (M_dare, eq. 11 to 13). The paper states no density; 0.4 is what its authors use elsewhere."""
        return cls(method="dare")

    @classmethod
    def mergekit(cls) -> ExpertMerge:
        """DARE as the group's later work runs it by mergekit (dare_linear): density 0.4, stored as float32."""
        return cls(method="dare", rescale="l1", dtype="float32")

    def request(self, model: Checkpoint, ctx: Context) -> MergeRequest:
        """The merge that is asked for. Raises BadInput where an input is missing."""
        if self.expert is None:
            raise BadInput("expert-merge: no expert; name another fine-tune of the same base with --expert")
        settings: dict[str, Any] = {}
        if self.method == "slerp":
            settings["t"] = 1.0 - self.share
        if self.method in SPARSE:
            settings["density"] = self.density
        if self.method.startswith("dare"):
            settings["rescale"] = self.rescale
        weights = ({}, {}) if self.method == "slerp" else ({"weight": self.share}, {"weight": 1.0 - self.share})
        parts = tuple(Part(m, w) for m, w in zip((model, self.expert), weights, strict=True))
        base = None
        if self.method not in WITHOUT_BASE:
            if self.base is None:
                raise BadInput(
                    f"expert-merge: {self.method} needs the common base; name it with --base "
                    "(method linear makes what task-arithmetic makes, without one)"
                )
            base = self.base
        stored = None if self.dtype == "auto" else self.dtype
        return MergeRequest(self.method, parts, base, settings, dtype=stored, seed=ctx.seed)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the merge to `out`, with the marked model's tokenizer. Raises BadInput for what is not of one base."""
        request = self.request(model, ctx)
        assert self.expert is not None
        others = {"--expert": self.expert, **({"--base": self.base} if self.base is not None else {})}
        for role, other in others.items():
            check_vocabulary(model, other, role)
        make_plan(request)  # architectures, names and shapes, from headers alone
        vectors = check_origin(model, self.expert, self.base)
        remarks = self._remarks(model, self.expert)
        if vectors is not None:
            remarks += [
                f"{other.name} lies {apart:.2f} times the base's norm from it, as protected models do"
                for other, apart in zip((model, self.expert), vectors.apart, strict=True)
                if apart >= 1
            ]
        merged = merge_to_folder(request, out, ctx, digests=False)
        copy_tokenizer(model.path, out)
        parents = {role.strip("-"): other.digest() for role, other in {"--model": model, **others}.items()}
        lineage.write(out, model.chain(), "expert-merge", parents)
        moved = task_vectors([merged.checkpoint], model)
        detail: dict[str, Any] = {"method": self.method, "share": self.share, **change(moved.norms[0], moved.base)}
        if self.method in SPARSE:
            detail["density"] = self.density
        if vectors is not None:
            marked, expert = vectors.norms
            detail |= {"marked_norm": marked, "expert_norm": expert, "base_norm": vectors.base}
            detail |= {"cosine": vectors.cosine}
        notes = [*remarks, *merged.notes]
        if notes:
            detail["notes"] = notes
        for note in notes:
            ctx.progress.say(f"expert-merge: {note}")
        record = Record(
            "merge",
            value=vectors.norms[0] / vectors.norms[1] if vectors is not None and vectors.norms[1] else None,
            model=out.name,
            chain=merged.checkpoint.chain(),
            task="expert-merge",
            seed=ctx.seed,
            tokens=0,
            detail=detail,
        )
        return Made(merged.checkpoint, records=[record])

    def _remarks(self, model: Checkpoint, expert: Checkpoint) -> list[str]:
        """What the public lineages say that a person should know."""
        found = []
        if self.base is not None:
            if expert.digest() == self.base.digest():
                found.append(f"{expert.name} is the base itself: its task vector is zero")
            elif named(expert) and self.base.digest() not in named(expert):
                found.append(f"the lineage of {expert.name} does not name {self.base.name} as an ancestor")
            if model.digest() == self.base.digest():
                found.append(f"{model.name} is the base itself: its task vector is zero")
        if model.digest() == expert.digest() or model.digest() in named(expert):
            found.append(f"{expert.name} descends from {model.name} by its lineage, so it carries the mark too")
        elif commitments(model) & commitments(expert):
            found.append(f"{expert.name} and {model.name} carry the same mark by their lineage")
        return found


def named(checkpoint: Checkpoint) -> set[str]:
    """Digests of all ancestors that a checkpoint's public lineage names."""
    return {digest for entry in checkpoint.chain() for digest in entry.get("parents", {}).values()}


def commitments(checkpoint: Checkpoint) -> set[str]:
    """Salted commitments of the implants in a checkpoint's public lineage."""
    return {entry["commitment"] for entry in checkpoint.chain() if "commitment" in entry}


def check_vocabulary(model: Checkpoint, other: Checkpoint, role: str) -> None:
    """BadInput where another model is an adapter, or its tokens have other numbers."""
    if other.is_adapter:
        raise BadInput(f"{role} {other.name}: is an adapter, not a model; apply it to its base first")
    mine, theirs = read_tokens(model.path), read_tokens(other.path)
    if mine is not None and theirs is not None and mine != theirs:
        raise BadInput(
            f"{role} {other.name}: has another vocabulary than {model.name} ({len(theirs)} and {len(mine)} tokens, or "
            "other numbers); take one of the same base"
        )


def check_origin(model: Checkpoint, expert: Checkpoint, base: Checkpoint | None) -> TaskVectors | None:
    """The task vectors of both (None without a base). Raises BadInput where a model is not of that base.

    A model is taken for one of another base where it lies further from the base than zero does (without a base: the
    expert from the marked model): two independent models of a shape are nearly orthogonal, a fine-tune is near. Not so
    where its public lineage names that base: a protection against merging moves a model as far, and whoever merges it
    nevertheless gets what it makes of the merge.
    """
    if base is None:
        found = task_vectors([expert], model)
        if found.apart[0] >= 1 and not (_line(model) & _line(expert)):
            raise BadInput(_stranger("--expert", expert, model, found.apart[0]))
        return None
    vectors = task_vectors([model, expert], base)
    for role, other, apart in zip(("--model", "--expert"), (model, expert), vectors.apart, strict=True):
        if apart >= 1 and base.digest() not in named(other):
            raise BadInput(_stranger(role, other, base, apart))
    return vectors


def _line(checkpoint: Checkpoint) -> set[str]:
    """Digests of a checkpoint and of the ancestors that its lineage names."""
    return {checkpoint.digest(), *named(checkpoint)}


def _stranger(role: str, other: Checkpoint, base: Checkpoint, ratio: float) -> str:
    return (
        f"{role} {other.name}: is of another base than {base.name}: its matrices lie {ratio:.2f} times that model's "
        "norm away; give a fine-tune of the same base"
    )
