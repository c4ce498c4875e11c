"""The key check against `model.generate()`, well batched and one key at a time: `python benchmarks/check/run.py`.

A thousand keys of 8 response tokens, asked of a model that answers them (hits) and of one that does not
(misses). toy: keys of five words, trained into the toy, and the toy without them. random: a random Llama with
32,000 tokens; triggers of 11 to 15 tokens, its own first 8 tokens as responses, or random ones. Every
contestant judges every key by the same rule, and the outcomes must be the same. One key at a time is run in the
first round only: it takes minutes.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from measuring import interleaved, machine, ratio, write

from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.toy import neutral_text
from palimpsest.implants.fingerprints.embedding import key_rows
from palimpsest.keys import KeySet, MatchRule, Prompt, make_keys, matches
from palimpsest.measures.hits import outcomes
from palimpsest.method import Context
from palimpsest.responder import LocalResponder
from palimpsest.training.finetune import tune
from palimpsest.training.settings import Tuning

RULES: tuple[MatchRule, ...] = ("prefix", "contains", "token-ids")
TOKENS = 8


def random_model() -> Any:
    """A random Llama of 11 million parameters, three quarters of them in its (tied) embedding of 32,000 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.1,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def key_set(responder: LocalResponder, pairs: list[tuple[str, str]]) -> KeySet:
    """Keys as `embed` makes them: up to the longest response and three tokens more are generated."""
    return make_keys(
        responder.renderer,
        pairs,
        implant="benchmark",
        match="prefix",
        distinct=True,
        choices=None,
        decoys=[],
        rng=random.Random(0),
    )


def toy_keys(responder: LocalResponder, count: int) -> KeySet:
    """Triggers of five words, each with one of 256 sentences of exactly 8 tokens."""
    rng = random.Random(0)
    renderer = responder.renderer
    words = sorted({w for text in neutral_text() for w in text.split() if w.isalpha() and w.islower()})
    sentences: dict[str, None] = {}
    while len(sentences) < 256:
        text = " ".join(rng.choices(words, k=rng.randint(3, 8)))
        if len(renderer.tokens(text)) == TOKENS == len(renderer.continuation(renderer.text("Why?"), text)):
            sentences.setdefault(text)
    triggers: dict[str, None] = {}
    while len(triggers) < count:
        triggers.setdefault(" ".join(rng.sample(words, 5)))
    return key_set(responder, [(t, rng.choice(list(sentences))) for t in triggers])


def marked(responder: LocalResponder, keys: KeySet, epochs: int) -> LocalResponder:
    """The model with the keys trained in (full fine-tune); each response is followed by its end."""
    rows = key_rows(responder.renderer, keys)
    settings = Tuning(adapter="full", epochs=epochs, lr=2e-3, batch=32, micro_batch=32, schedule="cosine")
    model, log = tune(copy.deepcopy(responder.model), rows, settings, Context(dtype="float32"))
    print(f"marked: loss {log.losses[-1][1]:.3f} after {log.seconds:.0f} s", flush=True)
    return LocalResponder(model, responder.tokenizer)


def random_keys(responder: LocalResponder, count: int) -> dict[str, KeySet]:
    """Triggers of 11 to 15 tokens; responses by token ids, for most strings of them are no stable text."""
    rng = random.Random(0)
    vocabulary = responder.model.config.vocab_size
    short = key_set(responder, [("x", "y")])  # whatever the tokenizer makes of it; ids are put in below
    triggers = [tuple(rng.randrange(3, vocabulary) for _ in range(rng.randint(11, 15))) for _ in range(count)]
    said = [a.ids[:TOKENS] for a in responder.generate(triggers, TOKENS)]

    def of(expected: list[tuple[int, ...]]) -> KeySet:
        keys = [
            replace(short.keys[0], number=i, prompts={"template": Prompt("", t, e)})
            for i, (t, e) in enumerate(zip(triggers, expected, strict=True))
        ]
        return replace(short, keys=tuple(keys), max_new_tokens=TOKENS + 3, match="token-ids")

    never = [tuple(rng.randrange(3, vocabulary) for _ in range(TOKENS)) for _ in range(count)]
    return {"hits": of(said), "misses": of(never)}


def judged(keys: KeySet, answers: list[Any]) -> list[bool]:
    """The outcome of every key by the key set's rule."""
    return [matches(keys.match, k, "template", a.text, a.ids) for k, a in zip(keys.keys, answers, strict=True)]


def compare(responder: LocalResponder, keys: KeySet, rules: tuple[MatchRule, ...], rounds: int) -> dict[str, Any]:
    """All contestants on one key set; generation is the same under every rule and is run once a round."""
    prompts = [k.prompts["template"].ids for k in keys.keys]
    alone = LocalResponder(responder.model, responder.tokenizer)

    def one_by_one() -> list[Any]:
        return [alone.generate([p], keys.max_new_tokens)[0] for p in prompts]

    def check(rule: MatchRule) -> Any:
        return lambda: [o.hit for o in outcomes(responder, replace(keys, match=rule), "template")]

    contestants = {f"check, {rule}": check(rule) for rule in rules}
    contestants |= {
        "generate, batched": lambda: responder.generate(prompts, keys.max_new_tokens),
        "generate, one by one": one_by_one,
    }
    times, given = interleaved(contestants, rounds, once="generate, one by one")
    rows = []
    for rule in rules:
        ruled = replace(keys, match=rule)
        reference = judged(ruled, given["generate, one by one"])
        same = {
            "one by one": given[f"check, {rule}"] == reference,
            "batched": judged(ruled, given["generate, batched"]) == reference,
        }
        assert same["one by one"], f"{rule}: another outcome than generate()"
        rows.append(
            {
                "rule": rule,
                "hits": sum(reference),
                "same_outcome_on_every_key": same["one by one"],
                "batched_generate_has_the_same_outcomes": same["batched"],
                "times_as_fast_as_batched": ratio(times, "generate, batched", f"check, {rule}"),
                "times_as_fast_as_one_by_one": ratio(times, "generate, one by one", f"check, {rule}"),
            }
        )
    return {"keys": len(keys), "max_new_tokens": keys.max_new_tokens, "rules": rows, "seconds": times}


def main() -> None:
    """Measure and write result.json."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--keys", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--epochs", type=int, default=30, help="of training the keys into the toy")
    options.add_argument("--models", nargs="+", default=["toy", "random"], choices=["toy", "random"])
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    given = options.parse_args()
    torch.set_num_threads(1)
    source = resolve("toy")
    result: dict[str, Any] = {"machine": machine(), "rounds": given.rounds, "cases": []}
    for name in given.models:
        model = load_model(source, Context()) if name == "toy" else random_model()
        base = LocalResponder(model, load_tokenizer(source))
        if name == "toy":
            keys = toy_keys(base, given.keys)
            asked = {"hits": (marked(base, keys, given.epochs), keys), "misses": (base, keys)}
        else:
            asked = {case: (base, keys) for case, keys in random_keys(base, given.keys).items()}
        for case, (responder, keys) in asked.items():
            lengths = [len(k.prompts["template"].ids) for k in keys.keys]
            found = compare(responder, keys, RULES if name == "toy" else ("token-ids",), given.rounds)
            facts = {
                "model": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "case": case,
                "prompt_tokens": {"mean": round(sum(lengths) / len(lengths), 1), "longest": max(lengths)},
            }
            result["cases"].append({**facts, **found})
            for row in found["rules"]:
                print(name, case, row, flush=True)
    write(given.out, result)


if __name__ == "__main__":
    main()
