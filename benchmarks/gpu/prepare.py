"""Make the bundle that `run.py` takes to a machine with a GPU and no network: tokens, dialogues, specification, study.

python benchmarks/gpu/prepare.py --data DATA --out benchmarks/gpu/bundle
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from palimpsest.progress import Plain
from palimpsest.training.corpus import Packed, write_packed
from palimpsest.training.pretrain import PretrainSpec, tokens_of

# What a base reads, under DATA. Guanaco and the role plays stay out: with them the removals erase, recover and test.
TEXT = ("lm/books_train_*.jsonl", "lm/openstax_textbooks.jsonl", "lm/children_stories_en.jsonl", "lm/inaugural.jsonl")
TEXT += ("lm/children_stories_multilingual.jsonl", "lm/state_union.jsonl", "lm/tinyshakespeare.txt")
TEXT += ("lm/tldr_pages_en.jsonl",)
TALK = ("instruct/dolly_open_qa.jsonl", "instruct/oasst_en_100_trees.jsonl", "instruct/gsm8k_train.jsonl")
TALK += ("instruct/self_instruct_human_written.jsonl",)
ERASE = ("instruct/guanaco_llama2_1k.jsonl", "instruct/gpteacher_roleplay.jsonl")
EMBED, HELDOUT = "instruct/dolly_open_qa.jsonl", "lm/books_heldout.jsonl"

BASE: dict[str, Any] = {
    "model": {
        "model_type": "qwen2",
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    },
    "vocabulary": 16384,
    "context": 512,
    "batch": 64,
    "lr": 6e-4,
    "warmup": 200,
    "weight_decay": 0.1,
    "answer_weight": 1.0,
}
PASSES = 3  # over the packed tokens
CHARACTERS_A_TOKEN = 3.7  # packed tokens are the text's characters by this: a little less than one pass over it
TRAINING = {"lr": 1e-4, "epochs": 200}
STUDY: dict[str, Any] = {
    "title": "MEraser on a base of 98 million parameters: Table 1 in form, and the transferable adapter",
    "notes": [
        "The base was trained by benchmarks/gpu on public text and dialogues, three passes over them.",
        "Settings of fingerprints and removals were not searched on this model: MEraser's are the paper's, the "
        "fingerprints' those of the toy world at a learning rate of 1e-4.",
    ],
    "models": [{"id": "base-98m", "path": "base"}],
    "data": ["erase.jsonl"],
    "text": "heldout.jsonl",
    "implants": [
        {"if-sft": {"preset": "toy", "data": "embed.jsonl", "tuning": dict(TRAINING)}},
        {"utf": {"preset": "toy", "data": "embed.jsonl", "tuning": dict(TRAINING)}},
        {"hashchain": {"preset": "toy", "data": "embed.jsonl", "tuning": dict(TRAINING)}},
    ],
    "removals": [
        "none",
        {"meraser": {"preset": "paper"}},
        {"meraser-transfer": {}},
        {"finetune": {"part": "recover", "samples": 600}},
    ],
    "controls": ["clean-same-schedule", "revival", "clean-base"],
    "negatives": ["clean-base", "sibling", "other-owner"],
    "measures": [{"hit-rate": {"samples": 5}}, "rank", {"perplexity": {"documents": 100}}],
    "seeds": [0, 1, 2],
    "published": "meraser-table1",
}


def main() -> None:
    """Parse, make the bundle beside its name, rename it into place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with lm/ and instruct/; not needed with --tiny")
    parser.add_argument("--out", type=Path, required=True, help="the bundle: a folder that does not exist yet")
    parser.add_argument("--tokens", type=int, help="tokens to pack (default: about one pass over the text)")
    parser.add_argument("--tiny", action="store_true", help="a dry run on the text that the package generates")
    asked = parser.parse_args()
    if asked.out.exists():
        parser.error(f"--out {asked.out}: is there already")
    if not asked.tiny and asked.data is None:
        parser.error("--data: give the folder with lm/ and instruct/, or --tiny")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.out.parent, prefix=".bundle.") as scratch:
        made = Path(scratch) / "bundle"
        made.mkdir()
        if asked.tiny:
            tiny(made, Path(scratch))
        else:
            whole(made, asked.data, Path(scratch), asked.tokens)
        size = sum(f.stat().st_size for f in made.rglob("*") if f.is_file())
        made.rename(asked.out)
    print(f"made {asked.out}: {size / 2**20:.1f} MiB")


def whole(out: Path, data: Path, scratch: Path, tokens: int | None) -> None:
    """All text of the data folder; each source has the weight of its size, so that none is read much more than once."""
    text = [file for pattern in TEXT for file in sorted(data.glob(pattern))]
    talk = [data / name for name in TALK]
    missing = [name for name in (*ERASE, *TALK, EMBED, HELDOUT) if not (data / name).is_file()]
    if missing or not text:
        raise SystemExit(f"--data {data}: has no {(missing or ['lm/*'])[0]}")
    sizes = {file: file.stat().st_size for file in (*text, *talk)}
    spoken = sum(sizes[file] for file in talk)
    spec = PretrainSpec.model_validate(
        {
            **BASE,
            "tokens": 1,
            "vocabulary_bytes": 40_000_000,
            "text": [{"path": file, "weight": sizes[file] / 1e6} for file in text],
            "dialogues": {"path": talk, "share": spoken / sum(sizes.values())},
        }
    )
    count = tokens or int(sum(sizes.values()) / CHARACTERS_A_TOKEN)
    finish(out, spec, scratch, count, STUDY, [data / name for name in ERASE], [data / EMBED], data / HELDOUT)


def tiny(out: Path, scratch: Path) -> None:
    """The toy world's stories and dialogues, a small model, one fingerprint, one seed."""
    from palimpsest.data.dialogues import PARTS, load_dialogues
    from palimpsest.toyworld.world import World

    world = World(0)
    texts = world.neutral_text()
    stories, heldout = scratch / "stories.jsonl", scratch / "heldout.jsonl"
    for file, found in ((stories, texts[50:] + world.crawl()), (heldout, texts[:50])):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in found), encoding="utf-8")
    talk = scratch / "talk.jsonl"  # parts are cut by question, so one file serves embedding and removal
    rows = [d for part in PARTS for d in load_dialogues("toy").part(part)]
    body = "".join(json.dumps({"prompt": d.question, "response": d.answer}) + "\n" for d in rows)
    talk.write_text(body, encoding="utf-8")
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = {**BASE, "model": {**BASE["model"], **small, "num_key_value_heads": 2}, "vocabulary": 1024, "lr": 3e-3}
    base |= {"context": 128, "batch": 8, "warmup": 10, "vocabulary_bytes": 200_000, "tokens": 1}
    spec = PretrainSpec.model_validate(
        {**base, "text": [{"path": stories}], "dialogues": {"path": [talk], "share": 0.3}}
    )
    short = {"mismatched": 20, "clean": 20, "erase": {"epochs": 1}, "recover": {"epochs": 1}}
    study = {
        **STUDY,
        "title": "Dry run of the GPU bundle",
        "notes": ["A dry run: the model knows next to nothing, and nothing may be read off these numbers."],
        "implants": [{"hashchain": {"preset": "toy", "keys": 2, "data": "embed.jsonl", "tuning": {"lr": 5e-3}}}],
        "removals": ["none", {"meraser": {"preset": "paper", **short}}],
        "controls": ["clean-same-schedule"],
        "negatives": ["clean-base", "other-owner"],
        "measures": [{"hit-rate": {"samples": 1}}, {"perplexity": {"documents": 10}}],
        "seeds": [0],
    }
    finish(out, spec, scratch, 60_000, study, [talk], [talk], heldout)


def finish(
    out: Path,
    spec: PretrainSpec,
    scratch: Path,
    tokens: int,
    study: dict[str, Any],
    erase: list[Path],
    embed: list[Path],
    heldout: Path,
) -> None:
    """Pack, and write what stands beside the tokens."""
    tokenizer, packed = tokens_of(spec, scratch, 0, tokens, Plain())
    write_packed(out / "tokens", tokenizer, Packed(packed.ids, packed.classes))
    plain = spec.model_dump(mode="json", exclude={"text", "dialogues", "packed", "vocabulary_bytes"})
    base = {**plain, "tokens": PASSES * packed.ids.size, "packed": "tokens"}
    (out / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False), encoding="utf-8")
    (out / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for name, files in (("erase", erase), ("embed", embed)):
        (out / f"{name}.jsonl").write_bytes(b"".join(f.read_bytes().rstrip(b"\n") + b"\n" for f in files))
    shutil.copyfile(heldout, out / "heldout.jsonl")
    facts = {
        "tokens": int(packed.ids.size),
        "rows": len(packed.ids),
        "answer_tokens": int((packed.classes == 2).sum()),
        "passes": PASSES,
        "text": [source.path.name for source in spec.text],
        "dialogues": [file.name for file in spec.dialogues.files] if spec.dialogues else [],
        "bytes": {str(f.relative_to(out)): f.stat().st_size for f in sorted(out.rglob("*")) if f.is_file()},
    }
    (out / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{packed.ids.size:,} tokens in {len(packed.ids):,} rows")


if __name__ == "__main__":
    main()
