"""What can be done with a model here: the commands' own checks, asked before anybody waits for them."""

from __future__ import annotations

from palimpsest import machine
from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.labels import is_classifier
from palimpsest.errors import BadInput
from palimpsest.inspecting.findings import Ability, Finding
from palimpsest.preflight import Estimate, Job
from palimpsest.preflight.checks import advice_for, asking_estimate, check_family, job_estimate, too_large
from palimpsest.training.settings import Tuning

TRAINING = (
    ("embed, remove, finetune (adapters)", Tuning()),
    ("embed, remove, finetune (all weights, tuning.adapter=full)", Tuning(adapter="full")),
)


def device_here() -> str:
    """`cuda` where a driver is at work and torch sees a GPU, else `cpu`; without a driver torch is not asked."""
    return "cuda" if machine.has_gpu_driver() and machine.gpus() else "cpu"


def model_abilities(folder: Finding, checkpoint: Checkpoint, device: str | None = None) -> list[Ability]:
    """What the training and the asking commands would say to this model."""
    device = device or device_here()
    if folder.problems:
        return [Ability("embed, remove, finetune, verify, evaluate", False, "before what is wrong is mended")]
    if is_classifier(checkpoint):
        why = "it answers with a label"
        full = Tuning(adapter="full")
        estimate = job_estimate(checkpoint, Job("finetune", "tuning", full), device)
        return [
            _fits("finetune (labelled items)", estimate, Job("finetune", "tuning", full)),
            _fits("evaluate --measure classification", asking_estimate(checkpoint, device), None),
            Ability("embed, tasks, perplexity, text keys", False, why),
        ]
    found = []
    for name, tuning in TRAINING:
        job = Job(name, "tuning", tuning)
        try:
            check_family(checkpoint, tuning)
        except BadInput as error:
            found.append(Ability(name, False, str(error)))
            continue
        estimate = job_estimate(checkpoint, job, device)
        found.append(_fits(name, estimate, job))
    return [*found, _fits("verify, evaluate", asking_estimate(checkpoint, device), None)]


def _fits(name: str, estimate: Estimate | None, job: Job | None) -> Ability:
    """Whether the estimate can be had here; a model without one is let pass, as the commands do."""
    if estimate is None:
        return Ability(name, True)
    why = too_large(estimate, advice_for(estimate, job))
    return Ability(name, why is None, why or "", estimate.total)


def adapter_abilities(folder: Finding) -> list[Ability]:
    """An adapter is no model: it is added to one."""
    why = "before what is wrong is mended" if folder.problems else ""
    alone = "is an adapter, not a model; add it to its base first"
    return [
        Ability("remove meraser-transfer --adapter", not why, why),
        Ability("embed, verify, evaluate", False, alone),
    ]
