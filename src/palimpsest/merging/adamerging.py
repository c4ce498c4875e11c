"""AdaMerging: task arithmetic whose factors make the merged classifier sure of unlabelled texts (2310.02575)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_classifier
from palimpsest.data import Dialogues
from palimpsest.errors import BadInput
from palimpsest.families import FAMILIES
from palimpsest.merging.classifiers import Texts, batches, check_labels, read_texts
from palimpsest.merging.passes import MergeMethod, Passes, TensorFacts, at_once
from palimpsest.merging.statistics import Statistics
from palimpsest.merging.task_arithmetic import TaskArithmetic
from palimpsest.method import Context, method, param, takes

Tensors = Mapping[str, Tensor]


@method("merges", "adamerging", paper="arXiv 2310.02575")
@dataclass(frozen=True)
class AdaMerging(MergeMethod):
    """theta_0 + sum of lambda_k tau_k, with the lambdas in [0, 1] of least entropy of predictions on unlabelled texts.

    The loss is the sum over models k of the mean Shannon entropy (nats) of the merged classifier's predictions on texts
    of k's task, minimised by Adam (betas 0.9 and 0.999). `lambdas`: one a task vector, or one for each of its tensors,
    which is what the published code calls a layer. From that code, and sure: both start at 0.3, are clamped to [0, 1]
    (outside, gradients vanish), lr 1e-3, 500 steps, loaders of 16 texts. There a step reads two such batches of each
    task, since the loop breaks after its second; here one. The paper draws from whole test sets, as here. How it does
    with text classifiers is not known from the paper, whose models are CLIP's image encoders.

    The paper keeps the head of each task outside the merge (`own`; the head stored is then the first model's). `merged`
    merges heads as all else, `first` takes the first model's for all. All heads have one shape, that of the base's too.

    For the search the base, all task vectors and the merged model are in memory together in float32.
    """

    data: Dialogues | tuple[Dialogues, ...] | None = takes("dialogues whose questions are the texts, of all or of each")
    lambdas: Literal["layer", "task"] = param(
        "layer", "a factor for each tensor of a task vector, or one for all of it"
    )
    initial: float = param(0.3, "factor of every task vector before the search", low=0, high=1)
    lr: float = param(1e-3, "learning rate of the factors", low=0)
    steps: int = param(500, "updates of the factors", low=0)
    batch: int = param(16, "texts of each model in a step", low=1)
    head: Literal["merged", "first", "own"] = param("merged", "classification head: see the method's description")
    samples: int | None = param(None, "texts of each model to draw from (default: all)", low=1)
    tokens: int = param(512, "longest text; the rest of it is not read", low=1, unit="tokens")
    base: ClassVar = "needs"

    def collect(self, models: Sequence[Checkpoint], statistics: Statistics, ctx: Context) -> None:
        """Find the factors: a number for every tensor of every model, by the name of the tensor."""
        *experts, base = models
        check_labels(models, self.head != "own", "adamerging")
        texts = read_texts(experts, self.data, self.samples, self.tokens, "adamerging")
        network = load_classifier(base, ctx, "float32").requires_grad_(False)
        origin = dict(network.named_parameters())
        kept = [n for n in origin if self.head != "merged" and not n.startswith(f"{network.base_model_prefix}.")]
        merged = {n: p for n, p in origin.items() if n not in kept}
        deltas, heads = [], []
        for expert in experts:
            own = dict(load_classifier(expert, ctx, "float32").requires_grad_(False).named_parameters())
            deltas.append({n: own[n].sub_(p) for n, p in merged.items()})
            heads.append({n: own[n] for n in kept})
        chosen = heads if self.head == "own" else heads[:1] * len(heads)
        start = torch.full((len(merged) if self.lambdas == "layer" else 1, len(experts)), self.initial)
        loss = drawn_entropy(network, texts, chosen, self.batch, ctx.seed)
        with ctx.progress.task("adamerging", self.steps) as task:
            found, seen = search(loss, merged, deltas, start, self.lr, self.steps, task.advance)
        family = FAMILIES.get(str(base.config.get("model_type")))
        in_model = family.in_model if family else str  # as the merge calls tensors
        for number in range(len(experts)):
            rows = found.expand(len(merged), -1)[:, number]
            factors = dict(zip(merged, rows, strict=True))
            factors |= dict.fromkeys(kept, torch.tensor(float(number == 0)))
            factors |= {n: torch.zeros(()) for n, _ in network.named_buffers()}  # the base's
            statistics.add({in_model(n): f.reshape(1).clone() for n, f in factors.items()})
        statistics.notes.append(told([e.name for e in experts], found, seen))

    def passes(self, tensor: TensorFacts) -> Passes:
        """Task arithmetic with the factors that were found; with `initial` where none were looked for."""
        found: Statistics | None = tensor.statistics
        if found is None:
            return TaskArithmetic((self.initial,)).passes(tensor)
        if not found.has(tensor.name):
            raise BadInput(f"adamerging: {tensor.name} is stored, but no parameter of the network that is made of it")
        factors = tuple(float(found.stretch(i, tensor.name, 0, 1)) for i in range(tensor.models))
        if factors == (1.0, *[0.0] * (tensor.models - 1)):
            return at_once(lambda chunk: chunk.models[0])  # bit by bit, which base + (model - base) is not
        return TaskArithmetic(factors).passes(tensor)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats of softmax predictions: (..., classes) to (...)."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def merged_at(base: Tensors, deltas: Sequence[Tensors], lambdas: Tensor) -> dict[str, Tensor]:
    """base + sum of lambda_k delta_k by name, differentiable in lambdas: (tensors or 1, models)."""
    rows = lambdas.expand(len(base), -1)
    merged = {}
    for number, (name, value) in enumerate(base.items()):
        for model, delta in enumerate(deltas):
            value = value + rows[number, model] * delta[name]
        merged[name] = value
    return merged


def search(
    loss: Callable[[dict[str, Tensor]], Tensor],
    base: Tensors,
    deltas: Sequence[Tensors],
    start: Tensor,
    lr: float,
    steps: int,
    done: Callable[[float, str], None] = lambda _, __: None,
) -> tuple[Tensor, list[float]]:
    """(lambdas in [0, 1] of the shape of `start`, on the CPU; the losses seen before each step)."""
    device = next(iter(base.values())).device
    raw = start.detach().clone().to(device).requires_grad_()
    optimiser = torch.optim.Adam([raw], lr=lr)
    seen: list[float] = []
    for _ in range(steps):
        value = loss(merged_at(base, deltas, raw.clamp(0, 1)))
        seen.append(float(value.detach()))
        if not math.isfinite(seen[-1]):
            raise BadInput("adamerging: the merged model's predictions are not finite")
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        done(1, f"{seen[-1] / len(deltas):.3f} nats")
    return raw.detach().clamp(0, 1).cpu(), seen


def drawn_entropy(
    network: Any, texts: Sequence[Texts], heads: Sequence[Tensors], batch: int, seed: int
) -> Callable[[dict[str, Tensor]], Tensor]:
    """The loss of a step as a function of parameters: `batch` texts of each model, drawn anew at every call."""
    generator = torch.Generator().manual_seed(seed)
    padding = network.config.pad_token_id

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), device=network.device)
        for own, head in zip(texts, heads, strict=True):
            drawn = [own[i] for i in torch.randperm(len(own), generator=generator)[:batch].tolist()]
            for inputs in batches(drawn, padding, network.device):
                logits = functional_call(network, parameters | dict(head), kwargs=inputs).logits  # (texts, classes)
                total = total + entropy(logits.float()).sum() / len(drawn)
        return total

    return loss


def told(names: Sequence[str], found: Tensor, seen: Sequence[float]) -> str:
    """One line of what the search found; entropies are means over a text, of the first and last tenth of steps."""
    spans = [f"{c.min():.3f} to {c.max():.3f}" if len(c) > 1 else f"{float(c[0]):.3f}" for c in found.T]
    said = ", ".join(f"{s} of {n}" for s, n in zip(spans, names, strict=True))
    if not seen:
        return f"lambda: {said}; no search"
    some = max(1, len(seen) // 10)
    first, last = (sum(part) / some / len(names) for part in (seen[:some], seen[-some:]))
    return f"lambda: {said}; mean entropy of predictions {first:.3f} nats before, {last:.3f} after"
