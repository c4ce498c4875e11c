"""An untrained BERT whose tokenizer is fitted to a set's training texts."""

import sys
from pathlib import Path

from palimpsest.data import load_labelled
from palimpsest.training.encoder import write_encoder

train, out = sys.argv[1:]
texts = [row.text for row in load_labelled(train).rows]
write_encoder(Path(out), texts, family="bert", vocabulary=8000, hidden=128, layers=2, positions=128, seed=0)
