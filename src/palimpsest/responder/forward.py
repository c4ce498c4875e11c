"""One forward pass over rows of branches, and whether a model can make one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from palimpsest.responder.logits import decoder_and_head
from palimpsest.responder.sharing import Row, Sharing

CACHED_LOGITS = 1 << 23  # float32 numbers of one piece on a CPU, 32 MiB: see `responder.local`
LOGITS = 1 << 25
AGREEMENT = 0.05  # of what a wrong mask changes: as far as the probe's results may lie apart
_EXTENSIBLE = ("dynamic", "longrope")  # rotary frequencies that depend on the longest row of a batch


class Forward:
    """Reads rows of one model: hidden states, or logits of chosen columns where they are more than head(hidden)."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self.parts = decoder_and_head(model)
        reader = model if self.parts is None else self.parts[0]
        self.reader = reader
        self.accepted = set(inspect.signature(reader.forward).parameters)
        config = model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        self.config = config
        self.step = max(1, (CACHED_LOGITS if self.device.type == "cpu" else LOGITS) // self.vocabulary)

    def read(
        self,
        ids: Tensor,
        columns: Tensor | None,
        seen: Tensor | None = None,
        positions: Tensor | None = None,
        past: Any = None,
        cache: bool = False,
    ) -> tuple[Tensor, Any]:
        """(features, cache) of ids (rows, time).

        Features are hidden states (rows, time, width), or logits (rows, columns, vocabulary) of `columns` where the
        head is not all that makes them. seen: (rows, 1, time, past + time) bool, else each token sees those before.
        """
        options: dict[str, Any] = {"use_cache": cache or past is not None}
        if seen is not None:
            mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
            options["attention_mask"] = mask.masked_fill_(~seen.to(self.device), torch.finfo(self.dtype).min)
        if positions is not None:
            options["position_ids"] = positions.to(self.device)
        if past is not None:
            options["past_key_values"] = past
        if self.parts is not None:
            output = self.parts[0](input_ids=ids.to(self.device), **options)
            return output.last_hidden_state, getattr(output, "past_key_values", None)
        kept = torch.arange(ids.shape[1]) if columns is None else columns
        if "logits_to_keep" in self.accepted:
            options["logits_to_keep"] = kept.to(self.device)
        output = self.model(input_ids=ids.to(self.device), **options)
        logits = output.logits
        if logits.shape[1] != len(kept):  # an architecture that ignores logits_to_keep
            logits = logits[:, kept.to(self.device)]
        return logits, getattr(output, "past_key_values", None)

    def logits(self, features: Tensor, rows: Tensor, places: Tensor) -> Iterator[Tensor]:
        """Float32 logits (positions, vocabulary) of features[rows, places], piece by piece."""
        for start in range(0, len(rows), self.step):
            piece = slice(start, start + self.step)
            chosen = features[rows[piece].to(self.device), places[piece].to(self.device)]
            yield (chosen if self.parts is None else self.parts[1](chosen)).float()

    def sharing(self, columns: int) -> Sharing:
        """What of sharing this model allows, at most `columns` in a row: by its configuration, and by a probe of it."""
        config = self.config
        pairs = 2 * int(getattr(config, "hidden_size", 256))
        none = Sharing(0, False, pairs)
        kinds = set(getattr(config, "layer_types", None) or ())
        rope = getattr(config, "rope_parameters", None) or {}
        kinds_of_rope = {rope.get("rope_type")} | {r.get("rope_type") for r in rope.values() if isinstance(r, dict)}
        if (
            not {"attention_mask", "position_ids"} <= self.accepted
            or getattr(config, "_attn_implementation", None) not in ("sdpa", "eager")
            or getattr(self.model, "_is_stateful", False)
            or not kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
            or kinds_of_rope & set(_EXTENSIBLE)
            or getattr(config, "alibi", False)
        ):
            return none
        names = ("sliding_window", "window_size", "attention_chunk_size")
        windows = [w for w in (getattr(config, name, None) for name in names) if w]
        # tables of (time, time) in the attention, as older architectures have them
        tables = [b.shape[-1] for b in self.model.buffers() if b.dim() >= 2 and b.shape[-1] == b.shape[-2] > 1]
        most = min([columns, *windows, *tables])
        row, alone, wrong = _probe(self.vocabulary)
        if most < len(wrong):
            return none
        tree = self._agrees(row, alone, wrong, 0)
        cached = tree and not windows and not tables and self._agrees(row, alone, wrong, row.branches[0][1])
        return Sharing(most if tree else 0, cached, pairs)

    @torch.inference_mode()
    def _agrees(self, row: Row, alone: list[int], wrong: list[int], root: int) -> bool:
        """Whether the last branch of a row gives what it gives alone, the first `root` tokens read into a cache."""
        asked = row.branches[-1][1] - row.branches[-1][0]
        try:
            truth = self.read(torch.tensor([alone]), None)[0][0, -asked:].float()
            other = self.read(torch.tensor([wrong]), None)[0][0, -asked:].float()
            past: Any = self.read(torch.tensor([row.ids[:root]]), None, cache=True)[1] if root else None
            if root and (past is None or not hasattr(past, "crop")):
                return False
            seen = torch.from_numpy(row.mask(len(row.ids)))[None, None, root:]
            depths = torch.tensor([row.depths[root:]])
            for _ in range(2 if root else 1):  # the second time behind what was taken back from the cache
                found = self.read(torch.tensor([row.ids[root:]]), None, seen, depths, past)[0][0, -asked:].float()
                if root:
                    past.crop(root - len(row.ids))
        except Exception:  # whatever an architecture says to a mask that it does not take
            return False
        return bool((found - truth).abs().max() <= AGREEMENT * (other - truth).abs().max())


def _probe(vocabulary: int) -> tuple[Row, list[int], list[int]]:
    """A row of two branches; the second as it stands alone; and as it would be read without a mask."""
    start, first, second = (
        [(7 * i + k) % max(2, min(vocabulary, 211)) for i in range(n)] for n, k in ((12, 3), (4, 101), (5, 53))
    )
    row = Row()
    row.add(0, [*start, *first], 0)
    row.add(1, [*start, *second], len(start))
    return row, [*start, *second], [*start, *first, *second]
