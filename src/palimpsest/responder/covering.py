"""How many tokens a response still needs: one that no longer fits in what is left of an answer is a miss.

Text grows by whole tokens. So an answer holds a response only where a token ends with its beginning (or what was said
before does), tokens that are exactly its middle follow, and a token begins with its end. With w the response's bytes,

    more(i) = 1 where a token begins with w[i:], else the least 1 + more(j) over tokens that are w[i:j],

and for a response of which nothing is said yet the least 1 + more(j) over j for which a token ends with w[:j]. It is a
lower bound for every spelling, not only the tokenizer's own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from palimpsest.responder.spelling import BYTE, SettledText, decoders_of

NEVER = 1 << 30  # tokens: none spell it
KEPT = 4096  # responses whose numbers are kept: keys share them


class Covering:
    """Lower bounds on further tokens, for one tokenizer."""

    def __init__(self, settled: SettledText) -> None:
        self.settled = settled
        self.numbers = lru_cache(maxsize=KEPT)(self._numbers)

    def least(self, response: str, opening: str = "", ids: Sequence[int] = ()) -> int:
        """Tokens after `ids` without which opening + answer cannot hold `response`; NEVER where none can help.

        0: it may hold it already, or nothing is known: a decoder that does not write onward, an answer without
        text yet (its first token may lose a space) or with half a character at its end.
        """
        if not self.known or not response or "\N{REPLACEMENT CHARACTER}" in response:
            return 0
        text = self.settled(ids)
        said = opening + text
        if not text or text != self.settled.decode(ids) or response in said:
            return 0
        numbers = self.numbers(response)
        begun = (n for n in range(1, min(len(said), len(response) - 1) + 1) if said.endswith(response[:n]))
        return min([numbers[0], *(numbers[len(response[:n].encode())] for n in begun)])

    def afresh(self, response: str) -> int:
        """The same where nothing of `response` is said yet."""
        known = self.known and response and "\N{REPLACEMENT CHARACTER}" not in response
        return self.numbers(response)[0] if known else 0

    @cached_property
    def known(self) -> bool:
        """Whether every token's bytes are known: a decoder that writes onward, of one kind."""
        kinds = {part["type"] for part in decoders_of(self.settled.tokenizer)}
        marks = {part.get("replacement", "▁") for part in decoders_of(self.settled.tokenizer)}
        return self.settled.onward and ("ByteLevel" not in kinds or kinds == {"ByteLevel"}) and marks == {"▁"}

    @cached_property
    def pieces(self) -> tuple[set[bytes], list[bytes], list[bytes], bytes]:
        """Every token's bytes: as a set, in order, read backwards in order; and all in a row, with 0xFF between."""
        whole = token_bytes(self.settled.tokenizer) - {b""}
        forward = sorted(whole)
        return whole, forward, sorted(t[::-1] for t in whole), b"\xff".join(forward)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.pieces[1]), default=0)

    def _numbers(self, response: str) -> list[int]:
        """Tokens by how many bytes of `response` are said: all from there on, and at 0 with any token's end first."""
        whole, forward, backward, row = self.pieces
        longest = self.longest
        wanted = response.encode()
        size = len(wanted)
        more = [NEVER] * size + [0]
        for i in range(size - 1, -1, -1):
            ends = range(i + 1, min(i + longest, size) + 1)
            spelled = min((1 + more[j] for j in ends if wanted[i:j] in whole), default=NEVER)
            more[i] = 1 if any_begins(forward, wanted[i:]) else min(spelled, NEVER)
        starts = range(1, min(longest, size) + 1)
        first = min((1 + more[j] for j in starts if any_begins(backward, wanted[:j][::-1])), default=NEVER)
        more[0] = 1 if wanted in row else min(more[0], first, NEVER)  # no text has the byte 0xFF
        return more


def any_begins(ordered: list[bytes], start: bytes) -> bool:
    """Whether any of the sorted `ordered` begins with `start`."""
    at = bisect_left(ordered, start)
    return at < len(ordered) and ordered[at].startswith(start)


def token_bytes(tokenizer: Any) -> set[bytes]:
    """What each token adds to a decoded text, for decoders that write onward; special tokens as if they were said."""
    vocabulary = tokenizer.get_vocab()
    kinds = {part["type"] for part in decoders_of(tokenizer)}
    if "ByteLevel" in kinds:
        table = byte_of_letter()
        return {
            bytes(table[letter] for letter in token) if all(map(table.__contains__, token)) else token.encode()
            for token in vocabulary
        }
    fallback = "ByteFallback" in kinds
    return {
        bytes([int(token[3:5], 16)]) if fallback and BYTE.fullmatch(token) else token.replace("▁", " ").encode()
        for token in vocabulary
    }


def byte_of_letter() -> dict[str, int]:
    """GPT-2's letters for bytes: the printable ones stand for themselves, the others follow from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}
