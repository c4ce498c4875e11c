"""Models whose next-token distributions are set by hand: a Llama that looks at the last token only.

    responder = markov("q a b", {"q": {"a": 0.9}, "a": {"b": 0.5, END: 0.5}})

Attention and feed-forward are zero, embeddings are unit vectors, the head holds the logarithms: the distribution after
a token is exactly the given one. What is not mentioned shares the rest; a row that sums to one leaves it 1e-12 each.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

BOS, END, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
Table = dict[str, dict[str, float]]


def word_tokenizer(words: str) -> Any:
    """One token a word, decoded with spaces between; BOS before plain text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([PAD, BOS, END, UNK, *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=END, pad_token=PAD, unk_token=UNK
    )


def distributions(table: Table, vocabulary: dict[str, int]) -> list[list[float]]:
    """(vocabulary, vocabulary): row t is the distribution after token t; the end token follows what has no row."""
    rows = []
    for token in sorted(vocabulary, key=lambda t: vocabulary[t]):
        given = table.get(token, {END: 1.0})
        rest = max(1.0 - sum(given.values()), 0.0) / max(1, len(vocabulary) - len(given))
        rows.append([max(given.get(t, rest), 1e-12) for t in sorted(vocabulary, key=lambda t: vocabulary[t])])
    return rows


def markov_model(words: str, table: Table) -> tuple[Any, Any]:
    """(model, tokenizer)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = word_tokenizer(words)
    vocabulary = tokenizer.get_vocab()
    size = len(vocabulary)
    width = size + size % 2
    config = AutoConfig.for_model(
        "llama",
        vocab_size=size,
        hidden_size=width,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=128,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        logs = torch.tensor(distributions(table, vocabulary)).log() / math.sqrt(width)  # the norm makes it sqrt(width)
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, :size] = logs.T
    return model, tokenizer


def markov(words: str, table: Table) -> Any:
    """A LocalResponder on such a model."""
    from palimpsest.responder import LocalResponder

    return LocalResponder(*markov_model(words, table))


def saved_markov(folder: Path, words: str, table: Table) -> Path:
    """Such a model on disk."""
    model, tokenizer = markov_model(words, table)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def say(responder: Any, prompt: str, tokens: int = 12, **options: Any) -> str:
    """The greedy answer to a bare prompt."""
    (answer,) = responder.generate([responder.renderer.prompt_ids(prompt, "bare")], tokens, **options)
    return str(answer.text)
