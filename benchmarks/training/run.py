"""The training loop against transformers' Trainer with PEFT: `python benchmarks/training/run.py --data FILE.jsonl`.

The same random Llama, rows, batch size, epochs and optimiser settings, LoRA (rank 16) on query and value,
float32, one thread. Ours: `palimpsest.training.finetune.tune`. The peers: the Trainer with PEFT and
DataCollatorForSeq2Seq (padding to the longest of the batch), batches at random, and grouped by length.
Rows: dialogues of --data, tokenised by a byte-pair tokenizer fitted on them; without it synthetic rows whose
lengths are drawn from a stated distribution. Loss is trained on the answers' tokens.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from measuring import interleaved, machine, ratio, write

from palimpsest.method import Context
from palimpsest.training.finetune import tune, with_adapter
from palimpsest.training.rows import Row, collate
from palimpsest.training.settings import Tuning

VOCABULARY = 32_000
SHAPES: dict[str, dict[str, int]] = {
    "11M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
    "25M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
}


def model_of(shape: str) -> Any:
    """A random Llama with 32,000 tokens and tied embeddings: its head dominates, as in small open models."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        use_cache=False,
        **SHAPES[shape],
    )
    return LlamaForCausalLM(config)


def dialogue_rows(path: Path, count: int, longest: int) -> list[Row]:
    """`count` dialogues of a file, the answers' tokens supervised, cut at `longest` tokens."""
    from palimpsest.data import load_dialogues
    from palimpsest.training.corpus import train_tokenizer

    data = load_dialogues([str(path)])
    found = [d for part in data.parts.values() for d in part]
    random.Random(0).shuffle(found)
    tokenizer = train_tokenizer((t.content for d in found for t in d.turns), 16_000)
    rows = []
    for dialogue in found[:count]:
        ids: list[int] = []
        weights: list[float] = []
        for turn in dialogue.turns:
            spelled = tokenizer.encode(turn.content, add_special_tokens=False).ids
            ids += [1, *spelled, 2]  # a role token before, an end token behind
            weights += [0.0] + [float(turn.role == "assistant")] * (len(spelled) + 1)
        if any(weights[1:longest]):
            rows.append(Row(tuple(ids[:longest]), tuple(weights[:longest])))
    return rows


def synthetic_rows(count: int, longest: int) -> list[Row]:
    """Log-normal lengths (question: median 40, answer: median 180, sigma 0.9), random ids."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        question, answer = (max(2, round(median * math.exp(rng.gauss(0, 0.9)))) for median in (40, 180))
        ids = [rng.randrange(3, VOCABULARY) for _ in range(question + answer)][:longest]
        weights = ([0.0] * question + [1.0] * answer)[:longest]
        if any(weights[1:]):
            rows.append(Row(tuple(ids), tuple(weights)))
    return rows


def ours(model: Any, rows: list[Row], settings: Tuning) -> dict[str, Any]:
    """One run of our loop."""
    losses: list[float] = []
    tuned, log = tune(copy.deepcopy(model), rows, settings, Context(dtype="float32"))
    for step, loss in log.losses:
        losses += [loss] * (step - len(losses))  # each entry is the mean over the steps since the last one
    return {"steps": log.steps, "tokens": log.tokens, "mean_loss": statistics.fmean(losses), "model": tuned}


def trainer(model: Any, rows: list[Row], settings: Tuning, grouped: bool) -> dict[str, Any]:
    """One run of the Trainer with the same adapter and optimiser; nothing is saved, evaluated or reported."""
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Trainer, TrainingArguments

    torch.manual_seed(0)
    adapted = with_adapter(copy.deepcopy(model), settings)
    seen = {"tokens": 0}
    pad = DataCollatorForSeq2Seq(
        _padding_tokenizer(PreTrainedTokenizerFast), padding="longest", label_pad_token_id=-100
    )

    def collated(features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = pad(features)
        seen["tokens"] += int(batch["attention_mask"].sum())
        return dict(batch)

    data = [
        {
            "input_ids": list(row.ids),
            "attention_mask": [1] * len(row.ids),
            "labels": [t if w else -100 for t, w in zip(row.ids, row.weights, strict=True)],
            "length": len(row.ids),
        }
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=settings.batch,
            num_train_epochs=settings.epochs,
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            max_grad_norm=1.0,
            train_sampling_strategy="group_by_length" if grouped else "random",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=0,
        )
        run = Trainer(model=adapted, args=arguments, train_dataset=data, data_collator=collated)
        done = run.train()
    return {"steps": done.global_step, "tokens": seen["tokens"], "mean_loss": done.training_loss, "model": adapted}


def _padding_tokenizer(kind: Any) -> Any:
    """A tokenizer that only pads: with 0, on the right."""
    from tokenizers import Tokenizer, models

    return kind(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")), pad_token="<pad>")


def loss_on(model: Any, rows: list[Row]) -> float:
    """Mean loss (nats) of all supervised tokens, by the model's own loss, eight rows at a time."""
    total = count = 0.0
    model.eval()
    for start in range(0, len(rows), 8):
        batch = collate(rows[start : start + 8])
        labels = batch.input_ids.masked_fill(batch.weights == 0, -100)
        with torch.inference_mode():
            loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        n = int((labels[:, 1:] != -100).sum())
        total, count = total + float(loss) * n, count + n
    return total / count


def main() -> None:
    """Measure and write result.json."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, help="a JSONL file of dialogues; without it synthetic rows")
    options.add_argument("--rows", type=int, default=128)
    options.add_argument("--longest", type=int, default=512, help="tokens at which rows are cut")
    options.add_argument("--epochs", type=int, default=1)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--lr", type=float, default=2e-3)
    options.add_argument("--shapes", nargs="+", default=["11M"], choices=list(SHAPES))
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    given = options.parse_args()
    torch.set_num_threads(1)
    rows = dialogue_rows(given.data, given.rows, given.longest) if given.data else None
    rows = rows or synthetic_rows(given.rows, given.longest)
    lengths = sorted(len(r.ids) for r in rows)
    settings = Tuning(epochs=given.epochs, lr=given.lr, batch=8, micro_batch=8)
    result: dict[str, Any] = {
        "machine": machine(),
        "rounds": given.rounds,
        "rows": {
            "from": given.data.name if given.data else "synthetic, log-normal lengths",
            "count": len(rows),
            "tokens": sum(lengths),
            "supervised": sum(sum(w != 0 for w in r.weights[1:]) for r in rows),
            "length": {"median": statistics.median(lengths), "longest": lengths[-1], "shortest": lengths[0]},
        },
        "settings": {"batch": 8, "epochs": given.epochs, "lr": given.lr, "rank": settings.rank, "clip": settings.clip},
        "cases": [],
    }
    for shape in given.shapes:
        model = model_of(shape)
        contestants = {
            "palimpsest": lambda model=model: ours(model, rows, settings),
            "Trainer + PEFT": lambda model=model: trainer(model, rows, settings, False),
            "Trainer + PEFT, grouped by length": lambda model=model: trainer(model, rows, settings, True),
        }
        times, last = interleaved(contestants, given.rounds)
        case: dict[str, Any] = {
            "shape": shape,
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss_before": round(loss_on(model, rows), 4),
            "contestants": {
                name: {
                    "steps": done["steps"],
                    "tokens": done["tokens"],
                    "mean_loss_of_training": round(done["mean_loss"], 4),
                    "loss_after": round(loss_on(done["model"], rows), 4),
                }
                for name, done in last.items()
            },
            "times_as_fast": {peer: ratio(times, peer, "palimpsest") for peer in contestants if peer != "palimpsest"},
            "seconds": times,
        }
        result["cases"].append(case)
        print(shape, case["times_as_fast"], case["loss_before"], case["contestants"], flush=True)
    write(given.out, result)


if __name__ == "__main__":
    main()
