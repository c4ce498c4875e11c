"""Loading a model with its linear layers quantised by bitsandbytes: the form in which a thief may serve it.

int8    LLM.int8() (arXiv 2208.07339): weights by rows after rounding to float16, activations by tokens; columns that
        meet inputs above 6 are multiplied apart.
nf4     QLoRA's NormalFloat4 (arXiv 2305.14314): blocks of 64, computed in the dtype that the model is loaded in, or,
        on a CPU with bfloat16 units, in bfloat16.

Embeddings, norms and the output head stay as they are stored. The library is the optional extra `quant`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from palimpsest.checkpoint.reference import Checkpoint
from palimpsest.errors import BadInput, nearest

FORMS = ("int8", "nf4")


def check_load_in(form: str | None) -> None:
    """BadInput for a form that there is not, or without the library."""
    if form is None:
        return
    if form not in FORMS:
        raise BadInput(f"--load-in {form}: is not valid{nearest(form, FORMS, 'value')}")
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise BadInput(
                f"--load-in {form}: needs {package}, which is not installed: pip install 'palimpsest-lm[quant]'; "
                f"or write the quantised weights: palimpsest remove quantize-{form}"
            )


def loading_options(checkpoint: Checkpoint, form: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """What `from_pretrained` takes to quantise while it reads. Raises BadInput for a model that is quantised."""
    check_load_in(form)
    from transformers import BitsAndBytesConfig

    if checkpoint.config.get("quantization_config"):
        raise BadInput(f"{checkpoint.path}: is quantised already (quantization_config), so not --load-in {form}")
    if form == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": device}}
