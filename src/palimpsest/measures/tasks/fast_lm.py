"""FastLM: lm-evaluation-harness's `LM` interface over `responder.continuations`, with the numbers of its own HFLM.

The harness turns every item of a task into (context, continuation) pairs and HFLM reads each pair whole, save that
pairs which differ in their last token only are read once. Here all that pairs begin with in common is read once. What
is a token, where a continuation begins, what stands before an empty context, how long contexts are cut and how long
texts roll is as in HFLM (lm-eval 0.4.13), so that log-likelihoods are the same.

    from palimpsest.measures.tasks import FastLM
    lm_eval.simple_evaluate(model=FastLM(pretrained="toy", dtype="float32"), tasks=["boolq"])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import DTYPES, load_model, load_tokenizer, stored_dtype
from palimpsest.cost import count_tokens
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.responder.continuations import ContinuationScorer

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm  # which lm-eval needs too
except ImportError as error:
    raise BadInput(f"FastLM needs lm-eval: pip install 'palimpsest-lm[eval]' ({error})") from None

ENDLESS = 10**29  # tokenizers that know no limit give 1e30
LENGTH = 2048  # tokens read at most, where neither model nor tokenizer says
ENCODED = 1024  # texts encoded together


class FastLM(TemplateLM):  # type: ignore[misc]
    """A causal LM as the harness asks it: log-likelihoods fast, generation by HFLM itself.

    pretrained: `toy`, a model folder, a hub id, or a model of transformers with its `tokenizer`. dtype: float32,
    bfloat16, float16, or auto (as stored); log-probabilities are always taken in float32. device: auto (default), cpu,
    cuda; untested on GPUs. max_length: tokens read at most (default: the model's positions). add_bos_token,
    prefix_token_id: as HFLM has them. token_budget: tokens of one forward pass. share: False reads every request by
    itself. batch_size: rows of one batch of generation; log-likelihoods need none. chat_template_args: given to the
    chat template. One process, one device. Raises BadInput.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: Any = "toy",
        dtype: str | torch.dtype | None = "auto",
        device: str | None = None,
        tokenizer: Any = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        token_budget: int | None = None,
        share: bool = True,
        chat_template_args: dict[str, Any] | None = None,
        trust_remote_code: bool | None = False,
    ) -> None:
        super().__init__()
        if trust_remote_code:
            raise BadInput("trust_remote_code: code that comes with a model is never run")
        self.checkpoint: Checkpoint | None = None
        if isinstance(pretrained, str | Path | Checkpoint):
            self.checkpoint = resolve(pretrained)
            model, own = _loaded(self.checkpoint, dtype, device or "auto", add_bos_token, tokenizer is None)
            tokenizer = own if tokenizer is None else tokenizer
        else:
            model = pretrained.eval()
            if tokenizer is None:
                raise BadInput("FastLM(pretrained=<model>): needs its tokenizer, tokenizer=...")
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(resolve(tokenizer))
        self.model, self.tokenizer = model, tokenizer
        self.scorer = ContinuationScorer(model, token_budget, share)
        self._device = self.scorer.forward.device
        self._max_length, self.add_bos_token, self._prefix = max_length, add_bos_token, prefix_token_id
        self.batch_size = int(batch_size) if batch_size is not None and str(batch_size).isdigit() else 1
        self.chat_template_args = chat_template_args or {}
        self._generator: Any = None

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context and before the first token of a text: BOS, else EOS."""
        if self._prefix is not None:
            return self._prefix
        known = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if known is None else known)

    @property
    def max_length(self) -> int:
        """Tokens read at most: as given, by the model's configuration, by its tokenizer, or 2,048."""
        if self._max_length:
            return self._max_length
        config = getattr(self.model.config, "text_config", None) or self.model.config
        for name in ("n_positions", "max_position_embeddings", "n_ctx"):
            if getattr(config, name, None) is not None:
                return int(getattr(config, name))
        limit = getattr(self.tokenizer, "model_max_length", None)
        return LENGTH if limit is None or limit > ENDLESS else int(limit)

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells request caches apart by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; special tokens by the tokenizer's habit, but no second BOS before a text that has one."""
        return self._encoded([string], add_special_tokens)[0]

    def _encoded(self, texts: Sequence[str], special: bool | None = None) -> list[list[int]]:
        """Token ids of many texts, as `tok_encode` makes them one by one."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        usual = self.add_bos_token if special is None else special
        found: list[list[int]] = [[] for _ in texts]
        groups: dict[bool | None, list[int]] = {}
        for number, text in enumerate(texts):
            opened = special is None and text.startswith(prefix)
            groups.setdefault(False if opened else usual, []).append(number)
        for asked, numbers in groups.items():
            options = {} if asked is None else {"add_special_tokens": asked}
            for start in range(0, len(numbers), ENCODED):
                piece = numbers[start : start + ENCODED]
                encoded = self.tokenizer(
                    [texts[i] for i in piece], return_attention_mask=False, verbose=False, **options
                ).input_ids
                for number, ids in zip(piece, encoded, strict=True):
                    found[number] = ids
        return found

    def pairs(self, requests: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) in token ids of pairs of texts, by HFLM's rules.

        Spaces at the end of a context go to the continuation; both are then encoded together, and the continuation is
        what follows as many tokens as the context alone has. Before an empty context stands `prefix_token_id`, unless
        the continuation begins with it.
        """
        split = []
        for context, continuation in requests:
            bare = context.rstrip()
            split.append((bare, context[len(bare) :] + continuation))
        plain = [bool(context) for context, _ in requests]
        wanted = {t: 0 for (c, k), p in zip(split, plain, strict=True) if p for t in (c, c + k)}
        known = dict(zip(wanted, self._encoded(list(wanted)), strict=True))
        alone = list({k: 0 for (_, k), p in zip(split, plain, strict=True) if not p})
        bare_ids = dict(zip(alone, self._encoded(alone, special=False), strict=True))
        found = []
        for (context, continuation), has_context in zip(split, plain, strict=True):
            if has_context:
                before = known[context]
                pair = (before, known[context + continuation][len(before) :])
            else:
                after = bare_ids[continuation]
                begins = after[:1] == [self.prefix_token_id]
                pair = (after[:1], after[1:]) if begins else ([self.prefix_token_id], after)
            found.append(pair)
        return found

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding would say it) of each continuation after its context."""
        texts = [request.args for request in requests]
        ids = self.pairs(texts)
        return self._loglikelihood_tokens(
            [(t, *pair) for t, pair in zip(texts, ids, strict=True)], disable_tqdm=disable_tqdm
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The same for ((texts), context ids, continuation ids)."""
        for text, context, continuation in requests:
            if not context or not continuation or len(continuation) > self.max_length:
                wrong = "no context" if not context else "no continuation" if not continuation else "too long"
                raise BadInput(f"a request has {wrong} in tokens ({self.max_length} are read at most): {_shown(text)}")
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            scored = self.scorer.score([(c, k) for _, c, k in requests], self.max_length, bar.update)
        answers = [(s.log_prob, s.greedy) for s in scored]
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability (nats) of whole texts, each token predicted once, in windows of `max_length`."""
        texts = [request.args[0] for request in requests]
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for number, ids in enumerate(self._encoded(texts)):
            rolled = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, rolled):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(texts)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[number] += value
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop sequence: HFLM's own, with this model and tokenizer."""
        if self._generator is None:
            from lm_eval.models.huggingface import HFLM

            self._generator = HFLM(
                pretrained=self.model,
                tokenizer=self.tokenizer,
                backend="causal",
                max_length=self._max_length,
                add_bos_token=self.add_bos_token,
                prefix_token_id=self._prefix,
                batch_size=self.batch_size,
            )
        self._generator.set_cache_hook(self.cache_hook)
        with torch.inference_mode():
            said = [str(text) for text in self._generator.generate_until(requests, disable_tqdm=disable_tqdm)]
        count_tokens(sum(map(len, self._encoded([*(r.args[0] for r in requests), *said]))))
        return said

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat in the tokenizer's template; a system turn that the template refuses is left out."""
        from jinja2.exceptions import TemplateError

        def rendered(turns: Iterable[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    list(turns),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **self.chat_template_args,
                )
            )

        try:
            return rendered(chat_history)
        except TemplateError:
            return rendered(turn for turn in chat_history if turn["role"] != "system")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "model_num_parameters": sum(p.numel() for p in self.model.parameters()),
            "model_dtype": self.scorer.forward.dtype,
            "model_revision": "",
            "model_sha": self.checkpoint.digest() if self.checkpoint is not None else "",
        }


def _loaded(
    checkpoint: Checkpoint, dtype: Any, device: str, add_bos_token: bool | None, with_tokenizer: bool
) -> tuple[Any, Any]:
    """The model, and its tokenizer where it is asked for."""
    name = str(dtype or "auto").removeprefix("torch.")
    if name != "auto" and name not in DTYPES:
        raise BadInput(f"dtype {name}: is none of auto, {', '.join(DTYPES)}")
    tokenizer = load_tokenizer(checkpoint) if with_tokenizer else None
    if tokenizer is not None and add_bos_token is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.path, add_bos_token=add_bos_token, local_files_only=True, trust_remote_code=False
        )
    if name == "auto":
        stored = stored_dtype(checkpoint)
        name = next(n for n, kind in DTYPES.items() if kind == stored)
    return load_model(checkpoint, Context(device=device), name), tokenizer


def _shown(text: Any) -> str:
    """The end of a request, short enough for one line."""
    context, continuation = text if text is not None else ("", "")
    return f"{context[-40:]!r} + {continuation[:40]!r}"
