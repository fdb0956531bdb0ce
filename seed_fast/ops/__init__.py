"""The package's ops. One file per op is its contract; `explain` says which backend would run it, and why."""

from seed_fast.ops.nearest_code import nearest_code

__all__ = ["nearest_code"]
