"""Training: one optimisation loop, fine-tuning on dialogues, pretraining on text."""
