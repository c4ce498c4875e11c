"""Tokenizers as files: which token has which number, and what is written beside a merged model.

Read from the files themselves, so that transformers need not be loaded and nothing is added on the way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.checkpoint.load import copy_tokenizer
from palimpsest.errors import BadInput

# A template that many chat models share; other names of mergekit's are its own files.
TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
}


def read_tokens(folder: Path) -> dict[str, int] | None:
    """Token to number, or None where the folder has no tokenizer that says. Raises BadInput for a broken file."""
    whole, plain = folder / "tokenizer.json", folder / "vocab.json"
    try:
        if whole.is_file():
            said = json.loads(whole.read_text(encoding="utf-8"))
            tokens = _vocabulary(said["model"]["vocab"])
            tokens |= {t["content"]: int(t["id"]) for t in said.get("added_tokens") or []}
        elif plain.is_file():
            tokens = _vocabulary(json.loads(plain.read_text(encoding="utf-8")))
            more = folder / "added_tokens.json"
            if more.is_file():
                tokens |= _vocabulary(json.loads(more.read_text(encoding="utf-8")))
        else:
            return None
        for number, token in _settings(folder).get("added_tokens_decoder", {}).items():
            tokens.setdefault(token["content"], int(number))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{whole if whole.is_file() else plain}: is no tokenizer file that can be read") from None
    return tokens


def _vocabulary(said: Any) -> dict[str, int]:
    if isinstance(said, Mapping):
        return {str(token): int(number) for token, number in said.items()}
    return {entry[0]: number for number, entry in enumerate(said)}  # unigram: [token, score] in the order of numbers


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        raise BadInput(f"{file}: is no JSON") from None
    return found if isinstance(found, dict) else {}


def added_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """How a tokenizer's added tokens are described in its tokenizer.json, by token."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    return {t["content"]: t for t in json.loads(file.read_text(encoding="utf-8")).get("added_tokens") or []}


def write_tokenizer(source: Path, out: Path, added: Sequence[Mapping[str, Any]], template: str | None) -> None:
    """Copy a tokenizer's files; `added` tokens are put into its tokenizer.json, a chat template in place of its own."""
    copy_tokenizer(source, out)
    if added:
        file = out / "tokenizer.json"
        said = json.loads(file.read_text(encoding="utf-8"))
        said["added_tokens"] = [*(said.get("added_tokens") or []), *added]
        file.write_text(json.dumps(said, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if template is not None:
        settings = _settings(out) | {"chat_template": template}
        (out / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n")
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")


def template_of(folder: Path) -> str | None:
    """The chat template of a tokenizer, or None."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    said = _settings(folder).get("chat_template")
    if isinstance(said, list):  # several, by name
        said = next((t.get("template") for t in said if t.get("name") == "default"), None)
    return said if isinstance(said, str) else None


def chosen_template(said: str | None, folders: Sequence[Path]) -> str | None:
    """The chat template that a request names: None keeps the tokenizer's; `auto` is the commonest of the models'.

    Raises BadInput for a name that stands for no template here.
    """
    if said is None:
        return None
    if said == "auto":
        found = [t.strip() for t in map(template_of, folders) if t]
        return max(found, key=found.count) if found else None  # the first of equally common ones
    if said in TEMPLATES:
        return TEMPLATES[said]
    if "{" not in said:
        raise BadInput(
            f"chat_template: {said!r} is neither auto, {', '.join(TEMPLATES)}, nor a template; give its text"
        )
    return said
