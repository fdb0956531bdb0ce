"""Measurements of what a trained tokenizer or language model can do, on held-out data."""
