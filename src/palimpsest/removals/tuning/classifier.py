"""Fine-tuning a classifier of texts, or an encoder under a new head, on labelled items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.labels import check_one_label, is_classifier, label_names, text_room
from palimpsest.checkpoint.load import load_classifier, load_tokenizer, load_with_new_head, write_model
from palimpsest.data import LabelledItems
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made
from palimpsest.removals.change import change_of
from palimpsest.removals.tuning.tuned import training_record
from palimpsest.training.classifier import label_loss, label_rows
from palimpsest.training.finetune import tune
from palimpsest.training.settings import Tuning


def tuned_classifier(
    model: Checkpoint,
    items: LabelledItems,
    tuning: Tuning,
    out: Path,
    ctx: Context,
    *,
    method: str,
    classes: Sequence[str] | None = None,
    commitment: str | None = None,
) -> Made:
    """Train all weights on the cross-entropy of the items' labels and write the classifier to `out`.

    A classifier keeps its head and its labels. Any other encoder gets a new head, drawn with `ctx.seed`, whose classes
    are those of the items, or `classes`. commitment: of an implant's keys, for the lineage. Raises BadInput, before it
    loads the model, for labels that the classifier has not.
    """
    if tuning.adapter != "full":
        raise BadInput(f"{method}: a classifier is trained whole: --set tuning.adapter=full (preset classifier)")
    if is_classifier(model):
        check_one_label(model)
        names = label_names(model.config)
        labels = items.classes(names)
        network = load_classifier(model, ctx, "float32")
    else:
        names = tuple(classes) if classes is not None else items.class_names()
        labels = items.classes(names)
        network = load_with_new_head(model, names, ctx)
    tokenizer = load_tokenizer(model)
    rooms = [n for n in (text_room(network.config, tokenizer), tuning.max_tokens) if n is not None]
    try:
        rows = label_rows(tokenizer, [row.asked for row in items.rows], labels, min(rooms))
    except ValueError as error:
        raise BadInput(f"{method}: {error}") from None
    network, log = tune(network, rows, tuning, ctx, what=method, loss_of=label_loss)
    moved = change_of(network, model)
    made = write_model(network, model, out, method, {"model": model.digest()}, commitment)
    record = training_record(made, method, log, len(rows), ctx, moved)
    return Made(made, records=[replace(record, detail={**record.detail, "classes": list(names)})])
