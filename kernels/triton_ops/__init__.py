"""Triton kernels, one file per op. Installed as `seed_fast.kernels`."""
