"""A page whose pictures are painted codes: `python -m tests.ui.painted_codes` serves it and prints its address.

A process of its own, since gradio's server leaves sockets and event loops behind in the process that it ran in.
"""

from __future__ import annotations

import time

from PIL import Image

from seed_fast import SeedTokenizer
from seed_fast.ui.page import build, served
from seed_fast.ui.workbench import Workbench


class PaintedCodes(Workbench):
    """A workbench whose pictures are as wide as the codes that are drawn, and show the first as their gray."""

    can_draw = True

    def picture(self, codes: list[int], prefix: int | None = None) -> Image.Image:
        if codes[0] == 13:
            raise RuntimeError("the decoder broke")
        return Image.new("L", (10 * (prefix or len(codes)), 8), codes[0] % 256)

    def draw(self, caption: str) -> list[int]:
        return [len(caption)] * self.num_codes


if __name__ == "__main__":
    with served(build(PaintedCodes(SeedTokenizer.from_pretrained("seed-tiny"))), "127.0.0.1", 0) as address:
        print(address, flush=True)
        time.sleep(600)
