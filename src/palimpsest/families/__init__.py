"""What each architecture's tensors are: where query, key, value, output and feed-forward projections sit.

One row an architecture; adapters, pruning groups and protections all read this table. Fused projections
(GPT-2, GPT-NeoX, Phi-3) are told apart here so that nothing takes their keys for queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from palimpsest.errors import BadInput


@dataclass(frozen=True)
class Family:
    """Module names (last part) of one architecture's projections.

    fused: one projection holds query, key and value. up, gate, down: the feed-forward; gate may be empty.
    """

    query: str
    key: str
    value: str
    output: str
    up: str
    down: str
    gate: str = ""
    fused: bool = False

    def targets(self, which: str) -> list[str]:
        """LoRA target modules: `query-value` or `all-linear`."""
        if which == "query-value":
            if self.fused:
                raise BadInput(
                    "this architecture fuses query, key and value in one projection; adapters on query "
                    "and value alone are not there yet for it: use --set targets=all-linear"
                )
            return [self.query, self.value]
        names = [self.query, self.key, self.value, self.output, self.up, self.down, self.gate]
        return sorted({n for n in names if n})


def _fused(projection: str, output: str, up: str, down: str) -> Family:
    return Family(projection, projection, projection, output, up, down, fused=True)


_LLAMA = Family("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2"), _LLAMA),
    "opt": Family("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "phi": Family("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "gpt_neo": Family("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"),
    "gpt_neox": _fused("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt2": _fused("c_attn", "c_proj", "c_fc", "c_proj"),
    "phi3": _fused("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
}


def family_of(config: dict[str, Any]) -> Family:
    """The family of a model by its config's model_type; BadInput where it is not in the table."""
    name = config.get("model_type", "")
    if name not in FAMILIES:
        raise BadInput(f"architecture {name!r} is not known here; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
