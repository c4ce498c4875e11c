#!/usr/bin/env bash
# MEraser's Table 1 in form on a small model of real English, as it was run for README.md beside this.
# $DATA: the folder with lm/ and instruct/ (public text and instruction sets as JSON lines). One thread a process.
set -euo pipefail
export DATA BASE=base UNRELATED=unrelated
[ -d base ] || palimpsest pretrain real-text --data "$DATA" --out base --seed 0 --threads 1
[ -d unrelated ] || palimpsest pretrain real-text-unrelated --data "$DATA" --tokenizer base --out unrelated --seed 1 --threads 1
[ -s base.json ] || palimpsest evaluate --model base --perplexity "$DATA/lm/books_heldout.jsonl" \
  --data "$DATA/instruct/guanaco_llama2_1k.jsonl" --json --threads 1 > base.json
palimpsest study run real-text-table1 --out study --threads 1
palimpsest study report study
