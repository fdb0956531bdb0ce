"""`seed-fast info`: what is installed, what this machine has, and which backend runs each op."""

from __future__ import annotations

import json
from dataclasses import dataclass

from seed_fast.cli._options import AsJson, command


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `seed-fast info`."""

    as_json: AsJson = False


@command()
def info(options: InfoOptions) -> int:
    """Show versions, devices, the compiled module, and which backend runs each op and why."""
    from seed_fast.info import collect, render

    facts = collect()
    print(json.dumps(facts) if options.as_json else render(facts), flush=True)
    return 0
