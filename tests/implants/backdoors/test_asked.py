"""What a removal of a backdoor is judged on."""

from __future__ import annotations

import json
from pathlib import Path

from factory import make_classifier
from palimpsest.checkpoint import resolve
from palimpsest.data import load_labelled
from palimpsest.implants.backdoors.asked import clean_data
from palimpsest.removals.by_merging.wag import WAG
from palimpsest.removals.tuning.finetune import FineTune


def test_clean_items_are_those_that_the_removal_did_not_train_on(tmp_path: Path) -> None:
    for name, label in (("train", 0), ("held", 1)):
        text = json.dumps({"text": f"a {name} text", "label": label})
        (tmp_path / f"{name}.jsonl").write_text(text + "\n")
    victim = resolve(make_classifier(tmp_path / "victim"))
    train, held = str(tmp_path / "train.jsonl"), f"test={tmp_path / 'held.jsonl'}"

    def texts(removal: object, *references: str) -> list[str] | None:
        found = clean_data(removal, victim, references, None, notes := [])
        assert found is not None or "clean" in notes[0]
        return None if found is None else [row.text for row in found.rows]

    assert texts(WAG(), held) == texts(WAG(), train, held) == ["a held text"]
    assert texts(WAG(), train) == ["a train text"] and texts(WAG()) is None
    assert texts(FineTune(data=load_labelled([train, held])), train, held) == ["a held text"]
    assert texts(FineTune(data=load_labelled(train)), train) is None
