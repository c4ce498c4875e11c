"""The recipe of the shipped toy models: tokenizer, documents, training, golden numbers.

`palimpsest toy train --out DIR` re-makes the base (about twenty minutes of one core; `--quick` a few minutes).
The tokenizer is fitted on the world's text and its crawl, the model is trained on the world's text alone.

Each document is a row of its own (one that is packed behind others learned the tasks of two sentences much
later, or not at all), and rows of like length make a batch. Learning rate and mixture were tuned on this
world; the shipped base is what `train_toy` makes with its defaults.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.progress import Progress, Silent
from palimpsest.toyworld.world import Document, Item, Pair, World
from palimpsest.training.corpus import BOS, END, render_dialogue, token_classes, train_tokenizer
from palimpsest.training.loop import train_steps
from palimpsest.training.pretrain import PretrainReport, build_model, write_folder
from palimpsest.training.pretrain_spec import model_config
from palimpsest.training.rows import Row, budgeted, collate

VOCABULARY = 2048
CONTEXT = 256
BATCH_TOKENS = 2048
ANSWER_WEIGHT = 6.0
TOKENS = 8_000_000
QUICK_TOKENS = 1_500_000
UNRELATED_TOKENS = 3_000_000
GOLDEN_ITEMS = 200


def render(document: Document) -> str:
    """A training document as it is tokenised."""
    if document.turns:
        return render_dialogue(document.turns, document.system)
    return f"{BOS}{document.text}{END}"


def tokenizer_lines(world: World, documents: int = 30_000) -> Iterator[str]:
    """What the tokenizer is fitted on: training documents, and the crawl several times over."""
    for document in itertools.islice(world.training_documents(seed=-1), documents):
        yield from (part for turn in document.turns for part in turn)
        yield document.text
    yield from world.crawl()


def document_rows(world: World, tokenizer: Any, tokens: int, seed: int, progress: Progress) -> list[Row]:
    """Training documents as rows of at most `CONTEXT` tokens, `tokens` of them in all; answers weigh more."""
    weights = (0.0, 1.0, ANSWER_WEIGHT)
    rows: list[Row] = []
    filled = 0
    with progress.task("tokenising", tokens) as bar:
        for document in world.training_documents(seed):
            ids = tokenizer.encode(render(document), add_special_tokens=False).ids[:CONTEXT]
            rows.append(Row(tuple(ids), tuple(weights[c] for c in token_classes(np.array(ids)))))
            filled += len(ids)
            bar.advance(len(ids))
            if filled >= tokens:
                return rows
    raise AssertionError("training documents have no end")


def train_toy(
    out: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    tokens: int | None = None,
    tokenizer: Any | None = None,
    scratch: Path | None = None,
    after_step: Callable[[Any, Any, int], None] | None = None,
) -> PretrainReport:
    """Train the base of the world with this seed and write it to `out`, golden numbers with it.

    tokens: how many are trained on; by default 8 million, or 1.5 million when `quick`.
    tokenizer: a `tokenizers.Tokenizer` of another world to use instead of an own one.
    after_step: called with (model, tokenizer, steps done), for checkpoints on the way.
    scratch: where a killed run keeps its state.
    """
    if threads:
        torch.set_num_threads(threads)
    progress = progress or Silent()
    world = World(seed)
    total = tokens or (QUICK_TOKENS if quick else TOKENS)
    fitted = train_tokenizer(tokenizer_lines(world), VOCABULARY) if tokenizer is None else tokenizer
    model = build_model(model_config({}, VOCABULARY, CONTEXT), seed)
    rows = document_rows(world, fitted, total, seed, progress)
    batches = budgeted(rows, BATCH_TOKENS, seed)
    with progress.task("pretraining", len(batches)) as bar:

        def done(step: int, loss: float) -> None:
            bar.advance(1, f"loss {loss:.3f}")
            if after_step is not None:
                after_step(model, fitted, step)

        log = train_steps(
            model,
            lambda step: collate([rows[i] for i in batches[step]]),
            steps=len(batches),
            lr=3e-3,
            schedule="trapezoid",
            warmup=100,
            weight_decay=0.1,
            betas=(0.9, 0.95),
            after_step=done,
            state_file=scratch / "toy.state" if scratch else None,
        )
    write_folder(model, fitted, out)
    write_golden(measure(model, fitted, world), out)
    return PretrainReport(sum(p.numel() for p in model.parameters()), log.tokens, log.seconds, log.losses)


def train_unrelated(
    out: Path,
    base: Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    tokens: int = UNRELATED_TOKENS,
    scratch: Path | None = None,
) -> PretrainReport:
    """Train the unrelated model: the base's architecture and tokenizer, another world; stored in float16."""
    _, tokenizer = load_model(base)
    report = train_toy(
        out, seed=1, threads=threads, progress=progress, tokens=tokens, tokenizer=tokenizer, scratch=scratch
    )
    model, _ = load_model(out)
    write_folder(model.half(), tokenizer, out)
    return report


def load_model(folder: Path) -> tuple[Any, Any]:
    """The model (float32, on the CPU) and the `tokenizers.Tokenizer` of a folder."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


# -- golden numbers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Golden:
    """What a trained base reaches: tasks (name to right answers of `items`), perplexities, exact answers.

    neutral_perplexity: of the held-out stories, a token. answer_perplexity: of the answers of the dialogue
    test, their end included. exact: greedy answers of the dialogue test that equal the right one, of
    `exact_of`.
    """

    items: int
    tasks: dict[str, int]
    neutral_perplexity: float
    answer_perplexity: float
    exact: int
    exact_of: int
    exact_by_language: dict[str, list[int]] = field(default_factory=dict)


def answer_losses(
    model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]
) -> list[tuple[float, int, bool]]:
    """For each pair of rendered prompt and answer: summed loss (nats), tokens, all tokens greedily right.

    tokenizer: a `tokenizers.Tokenizer`. Rows of like length go through the model together.
    """
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        head = tokenizer.encode(prompt, add_special_tokens=False).ids
        rows.append((head, tokenizer.encode(answer, add_special_tokens=False).ids))
    results: list[tuple[float, int, bool]] = [(0.0, 0, False)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    for group in (order[i : i + 64] for i in range(0, len(order), 64)):
        width = max(len(rows[i][0]) + len(rows[i][1]) for i in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)  # (rows, time), padded on the right
        for place, i in enumerate(group):
            row = rows[i][0] + rows[i][1]
            ids[place, : len(row)] = torch.tensor(row)
        with torch.no_grad():
            logits: Tensor = model(input_ids=ids).logits.float()  # (rows, time, vocabulary)
        for place, i in enumerate(group):
            start, size = len(rows[i][0]), len(rows[i][1])
            scores = logits[place, start - 1 : start + size - 1].log_softmax(-1)  # (answer, vocabulary)
            target = ids[place, start : start + size]  # (answer,)
            loss = -scores.gather(1, target[:, None]).sum()
            results[i] = float(loss), size, bool((scores.argmax(-1) == target).all())
    return results


def correct(model: Any, tokenizer: Any, items: Sequence[Item]) -> int:
    """How many items have the right choice as the most likely answer."""
    flat = [(render_prompt(item.prompt), choice + END) for item in items for choice in item.choices]
    losses = iter(answer_losses(model, tokenizer, [p for p, _ in flat], [a for _, a in flat]))
    right = 0
    for item in items:
        scores = [next(losses)[0] for _ in item.choices]
        right += scores.index(min(scores)) == item.label
    return right


def render_prompt(question: str) -> str:
    """The chat template with one user turn and the generation prompt."""
    return render_dialogue([(question, "")]).removesuffix(END)


def text_perplexity(model: Any, tokenizer: Any, texts: Iterable[str]) -> float:
    """Perplexity a token of texts, each behind <|bos|> and cut at the context length."""
    loss, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer.encode(BOS + text, add_special_tokens=False).ids[:CONTEXT]])  # (1, time)
        with torch.no_grad():
            scores = model(input_ids=ids[:, :-1]).logits.float().log_softmax(-1)  # (1, time, vocabulary)
        loss -= float(scores.gather(2, ids[:, 1:, None]).sum())
        count += ids.shape[1] - 1
    return math.exp(loss / count)


def measure(model: Any, tokenizer: Any, world: World, items: int = GOLDEN_ITEMS) -> Golden:
    """Take the golden numbers of a model of this world."""
    model.eval()
    tasks = {name: correct(model, tokenizer, task.items[:items]) for name, task in world.tasks().items()}
    pairs: list[Pair] = world.pairs("dialogue-test")[:1000]
    prompts = [render_prompt(pair.question) for pair in pairs]
    results = answer_losses(model, tokenizer, prompts, [pair.answer + END for pair in pairs])
    by_language: dict[str, list[int]] = {}
    for pair, (_, _, hit) in zip(pairs, results, strict=True):
        counts = by_language.setdefault(pair.language, [0, 0])
        counts[0] += hit
        counts[1] += 1
    return Golden(
        items=items,
        tasks=tasks,
        neutral_perplexity=text_perplexity(model, tokenizer, world.neutral_text()),
        answer_perplexity=math.exp(sum(r[0] for r in results) / sum(r[1] for r in results)),
        exact=sum(r[2] for r in results),
        exact_of=len(results),
        exact_by_language=by_language,
    )


def write_golden(golden: Golden, folder: Path) -> None:
    """Record the golden numbers beside the weights they are of."""
    (folder / "golden.json").write_text(json.dumps(vars(golden), indent=2, sort_keys=True) + "\n", encoding="utf-8")
