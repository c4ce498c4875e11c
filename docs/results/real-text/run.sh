#!/usr/bin/env bash
# The main job on real text, as it was run for README.md beside this: one seed, one CPU thread, about half an hour.
# $DATA is the folder with the public text and instruction sets (books, textbooks, stories, Dolly, Guanaco).
set -euo pipefail
recipe=$(cd "$(dirname "$0")" && pwd)/pretrain.yaml
[ -d base ] || palimpsest pretrain "$recipe" --out base --seed 0 --threads 1
[ -s base.json ] || palimpsest evaluate --model base --perplexity "$DATA/lm/books_heldout.jsonl" --data "$DATA/instruct/guanaco_llama2_1k.jsonl" \
  --json --threads 1 > base.json
[ -d marked ] || palimpsest embed hashchain --model base --out marked --preset toy --set dialogues_per_key=1 --set tuning.lr=1e-3 \
  --data "$DATA/instruct/dolly_open_qa.jsonl" --seed 11 --json --threads 1 > embed.json
[ -d erased ] || palimpsest remove meraser --model marked/model --out erased --until erase --preset toy --set erase.max_tokens=192 \
  --set erase.epochs=5 --set pairing=derangement \
  --data "$DATA/instruct/guanaco_llama2_1k.jsonl" --keys marked/keys.json --seed 11 --json --threads 1 > erase.json
palimpsest remove meraser-recover --model erased --out recovered --set tuning.lr=1e-3 --set tuning.epochs=3 \
  --set tuning.max_tokens=192 --set tuning.schedule=linear --data "$DATA/instruct/guanaco_llama2_1k.jsonl" \
  --keys marked/keys.json --seed 11 --json --threads 1 > recover.json
palimpsest remove meraser --model marked/model --out clean --until erase --preset toy --set erase.max_tokens=192 \
  --set erase.epochs=5 --set pairing=matched \
  --data "$DATA/instruct/guanaco_llama2_1k.jsonl" --keys marked/keys.json --seed 11 --json --threads 1 > clean.json
for model in marked/model erased recovered; do
  palimpsest verify --model $model --keys marked/keys.json --against base --json --threads 1 > "verify-${model%%/*}.json"
  palimpsest evaluate --model $model --perplexity "$DATA/lm/books_heldout.jsonl" \
    --data "$DATA/instruct/guanaco_llama2_1k.jsonl" --json --threads 1 > "evaluate-${model%%/*}.json"
done
