"""docs/figures/overview.svg shows the codes that seed-tiny gives, and the committed times."""

from __future__ import annotations

import re

from benchmarks import overview
from seed_fast import SeedTokenizer


def test_the_figure_shows_the_codes_and_times_of_today():
    texts = re.findall(r">([^<>\n]+)</text>", overview.FIGURE.read_text())
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    codes = [str(code) for scene in overview.scenes() for code in overview.codes_of(tok, scene)]
    assert [text for text in texts if text.isdigit()] == codes
    times = overview.milliseconds()
    assert any(f"{sum(times.values()):,.0f} ms" in text for text in texts)
    assert any(text.endswith(f"= {times['Q-Former']:,.3g} ms") for text in texts)


def test_the_two_pictures_differ_in_one_object_and_in_few_codes():
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    one, other = overview.scenes()
    assert sum(a != b for a, b in zip(one.objects, other.objects, strict=True)) == 1
    first, second = (overview.codes_of(tok, scene) for scene in (one, other))
    assert 0 < sum(a != b for a, b in zip(first, second, strict=True)) < len(first) / 2
