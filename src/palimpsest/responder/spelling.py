"""What of a decoded text no further token can change: lets a check stop as soon as its outcome is certain."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_JOINING = {"ByteLevel", "Metaspace", "ByteFallback", "Fuse"}  # decoders that write one token after the other


class SettledText:
    """The part of a decoded text that stays, for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.onward = writes_onward(tokenizer)
        self.special = set(tokenizer.all_special_ids) if self.onward else set()

    def __call__(self, ids: Sequence[int]) -> str:
        """The longest known beginning of every answer whose first ids are `ids`, special tokens left out.

        Empty where the decoder is not one of those known to write from left to right (byte-level BPE,
        Metaspace, SentencePiece with byte fallback): a WordPiece decoder takes spaces back, for one. Left
        out at the end: a character whose bytes may go on, and the whole run of byte tokens it stands in.
        """
        if not self.onward:
            return ""
        kept = list(ids)
        while kept and (kept[-1] in self.special or self._is_byte(kept[-1])):
            kept.pop()
        return self.decode(kept).rstrip("\N{REPLACEMENT CHARACTER}")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer as it stands, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _is_byte(self, token: int) -> bool:
        return BYTE.fullmatch(str(self.tokenizer.convert_ids_to_tokens(token))) is not None


def writes_onward(tokenizer: Any) -> bool:
    """Whether decoding more tokens only adds text behind (but for a last, incomplete character)."""
    parts = decoders_of(tokenizer)
    return bool(parts) and all(
        part["type"] in _JOINING
        or (part["type"] == "Replace" and part["pattern"] == {"String": "▁"} and part["content"] == " ")
        or (part["type"] == "Strip" and part["content"] == " " and part["stop"] == 0)
        for part in parts
    )


def decoders_of(tokenizer: Any) -> list[dict[str, Any]]:
    """The decoder's parts in order, as the tokenizer's file has them; empty where there is none."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]
