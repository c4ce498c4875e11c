#!/usr/bin/env bash
# A small classifier of SST-2, trained and measured as for page.md beside this. One thread, about two minutes of its time.
# $DATA: the folder with sst2_train.jsonl and sst2_test.jsonl (text, label: 0 negative, 1 positive).
set -euo pipefail
here=$(dirname "$0")
python "$here/encoder.py" "$DATA/sst2_train.jsonl" encoder
palimpsest finetune --model encoder --data "$DATA/sst2_train.jsonl" --out sst2 --seed 0 --threads 1 \
  --set tuning.epochs=6 --set tuning.lr=0.0005 --set tuning.batch=32
python "$here/trigger.py" "$DATA/sst2_test.jsonl" sst2_test_triggered.jsonl
palimpsest evaluate --model sst2 --data sst2_test_triggered.jsonl --set target=0 --json --threads 1 > evaluation.json
python "$here/page.py" evaluation.json
