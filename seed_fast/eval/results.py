"""The results of an evaluation in a folder: numbers as JSON, and the perplexity as a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seed_fast._files import replace_folder_files

RESULTS, FIGURE = "lm.json", "perplexity.svg"
NO_MATPLOTLIB = f"{FIGURE} needs matplotlib: pip install 'seed_fast[bench]'"


def write_results(folder: Path, record: dict[str, Any]) -> str | None:
    """Write lm.json and perplexity.svg into a folder, which is made if it is missing.

    On an error the folder stays as it was.

    Args:
        folder: where to write.
        record: `LanguageModelResult.to_dict()` and what it was measured on: "data", as given on the command line.

    Returns:
        None; or, where matplotlib isn't installed, a line that says why there is no figure.

    Raises:
        OutputError: another process is writing into the folder.
        OSError: the files can't be written.
    """
    # Draw first: an error there leaves no half of the results behind.
    figure, missing = None, None
    try:
        from seed_fast.eval.perplexity_figure import perplexity_svg
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        missing = NO_MATPLOTLIB
    else:
        title = f"Perplexity of codes, {record['pictures']} pictures of {record['data'].partition(':')[0]}"
        figure = perplexity_svg(record["perplexity"], title)

    with replace_folder_files(folder) as staging:
        (staging / RESULTS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if figure is not None:
            (staging / FIGURE).write_bytes(figure)
    return missing
