"""What lies between an op's contract and its kernels, one file per op: allocate results, pass addresses, launch."""
