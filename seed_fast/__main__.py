"""`python -m seed_fast` is the `seed-fast` command; so is `torchrun -m seed_fast`."""

from seed_fast.cli import main

if __name__ == "__main__":
    main()
