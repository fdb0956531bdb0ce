"""Benchmarks of seed_fast against named peers in the same run. They live in the source tree, not in the wheel."""
