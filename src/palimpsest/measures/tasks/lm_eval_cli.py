"""The harness's own command line with the model `palimpsest` in it: `python -m palimpsest.measures.tasks.lm_eval_cli`.

    python -m palimpsest.measures.tasks.lm_eval_cli --model palimpsest --model_args pretrained=toy --tasks boolq

lm-eval up to 0.4.13 looks models up in a table of its own and lets no other package add to it, so this registers ours
and calls its main. Later versions read the entry points `lm_eval.models`, of which `palimpsest` is one: there
`lm_eval --model palimpsest` needs nothing else.
"""

from __future__ import annotations

import os
import sys

from palimpsest.errors import PalimpsestError

NAME = "palimpsest"


def register() -> None:
    """Add `palimpsest` to the harness's models, unless it is there."""
    import lm_eval.models  # noqa: F401 (fills the table, which is done only while it is empty)
    from lm_eval.api.registry import MODEL_REGISTRY, register_model

    from palimpsest.measures.tasks.fast_lm import FastLM

    if NAME not in MODEL_REGISTRY:
        register_model(NAME)(FastLM)


def main() -> None:
    """Run the harness; errors a user can mend are one line and their exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        try:
            from lm_eval.__main__ import cli_evaluate
        except ImportError as error:
            from palimpsest.errors import BadInput

            raise BadInput(f"this needs lm-eval: pip install 'palimpsest-lm[eval]' ({error})") from None
        register()
        cli_evaluate()
    except PalimpsestError as error:
        print(f"palimpsest: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
