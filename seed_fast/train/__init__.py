"""Training: one loop, its checkpoints, and the two stages of the tokenizer."""
