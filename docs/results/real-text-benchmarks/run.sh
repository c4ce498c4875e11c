#!/usr/bin/env bash
# The benchmarks of README.md beside this. base: the folder that `palimpsest pretrain real-text` made (../real-text/run.sh);
# $DATA: a folder with lm/ and the benchmarks' files, see docs/measures/tasks.md for their names. One thread.
set -euo pipefail
measure() { palimpsest evaluate --model base --json --threads 1 "$@"; }
tasks() { measure --task-data "$DATA" --tasks "$@"; }
tasks copa,wsc,cb,sglue_rte,wic,winogrande,piqa > completions.json
tasks arc_easy,arc_challenge,openbookqa > questions.json
tasks sst2,cola > glue.json
tasks boolq,multirc,qnli --limit 500 > long.json
tasks anli --limit 150 > anli.json
measure --perplexity "$DATA/lm/wikitext2_valid.txt" > wikitext.json
measure --perplexity "$DATA/lm/books_heldout.jsonl" > books.json
