"""Names that commands which have not moved to `seed_fast.cli` yet share."""

from __future__ import annotations

from seed_fast.cli._checks import device_option as _device
from seed_fast.cli._run import UsageError

__all__ = ["UsageError", "_device"]
