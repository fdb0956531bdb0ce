"""The page of `seed-fast ui`: pictures, their codes, and what becomes of them when a code changes."""
