"""Glue between an op's contract and its kernels, one file per op: allocate, pass addresses, launch."""
