"""Benchmarks of whole parts of the package as users run them; benchmarks/catalog.py lists them."""
