"""One benchmark per op, in a file of the op's name; benchmarks/catalog.py lists them."""
