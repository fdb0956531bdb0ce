"""The model card of a language model with image tokens: README.md in its folder, read by people and by the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seed_fast import __version__
from seed_fast._hub import hub_id, language_model_folder
from seed_fast.convert.save import CARD
from seed_fast.data.tokens import TokenizerIdentity
from seed_fast.lm.pretrained import base_reference

_LICENCE = re.compile(r"^license:[ \t]*([\w.-]+)[ \t]*$", re.MULTILINE)


def model_card(
    folder: Path,
    config: Any,
    tokens: int,
    *,
    base: str | None,
    identity: TokenizerIdentity | None = None,
    about: Mapping[str, str] | None = None,
) -> str:
    """Write the card in Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        folder: where the model will be; its name is the title.
        config: transformers' config of the model.
        tokens: number of tokens of its tokenizer, image tokens included.
        base: path or hub id of an adapter's base; None for a whole model.
        identity: the image tokenizer whose codes the model has learned.
        about: what else is known, as titles and texts: data, command, metrics.
    """
    title = folder.resolve().name
    kind = {"opt": "OPT", "llama": "LLaMA"}.get(config.model_type, config.model_type)
    size = f"{kind}, {config.num_hidden_layers} layers of width {config.hidden_size}"
    codes = "unknown" if identity is None else str(identity)
    licence = None if base is None else _licence(base)
    # The front matter and the first paragraph differ between a whole model and an adapter.
    front = [f"library_name: {'transformers' if base is None else 'peft'}", "pipeline_tag: text-generation"]
    front.append("tags: [seed, image-captioning, text-to-image]")
    lines = []
    if base is None:
        lines.append(
            f"A language model that sees and draws ({size}): the codes of an image tokenizer are tokens of it."
        )
    else:
        reference, revision = base_reference(base, folder)
        if hub_id(base) is not None:
            front.append(f"base_model: {reference}")
        if licence is not None:
            front.append(f"license: {licence}")
        lines.append(
            f"An adapter that lets a language model ({size}) see and draw: LoRA, and the embeddings of the tokens that "
            "images are made of. It works with its base alone."
        )
        where = f"`{reference}`" + (f" at revision `{revision}`" if revision else "")
        lines += ["", f"- **Base**: {where}" + ("" if hub_id(base) else ", as a path from this folder")]
    # Then the list of facts, how to load it, and who wrote this.
    facts = {"Image tokenizer": codes, "Tokens": f"{tokens}, those of images included", **(about or {})}
    facts["Licence"] = licence or ("that of its data" if base is None else "that of its base and of its data")
    lines += ["", *(f"- **{name}**: {text}" for name, text in facts.items() if base is None or name != "Base")]
    lines += ["", "## Load", "", *_loading(title, base, folder), "", f"Written by seed_fast {__version__}.", ""]
    return "\n".join(["---", *front, "---", f"# {title}", "", *lines])


def training_facts(data: str, kinds: Mapping[str, int], tasks: str, command: str, metrics: Path) -> dict[str, str]:
    """Say for the card how a model was trained.

    Args:
        data: name of the store of samples.
        kinds: number of its samples by kind.
        tasks: what captions were used for, as ratios.
        command: what was called.
        metrics: the run's metrics.jsonl.

    Returns:
        The data, the command and the last values of loss and perplexity, as titles and texts.
    """
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    last: dict[str, float] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        last |= {name: value for name, value in json.loads(line).items() if isinstance(value, (int, float))}
    names = [name for name in ("loss", "validation_loss", "validation_perplexity") if name in last]
    values = ", ".join(f"{name.replace('_', ' ')} {last[name]:.4g}" for name in names)
    return {
        "Data": f"`{data}`: {counts}; trained on {tasks}",
        "Made by": f"`{command}`",
        "Metrics": f"{values} at step {last['step']:.0f}" if values else "not measured",
    }


def _loading(title: str, base: str | None, folder: Path) -> list[str]:
    """Lines that show how to load the model: with this package, and without it."""
    captions = f"seed-fast caption picture.png --lm path/to/{title} --model TOKENIZER"
    ours = ["```sh", captions, f'seed-fast draw "a red star" --lm path/to/{title}', "```", ""]
    if base is None:
        plain = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("path/to/{title}")',
            f'model = AutoModelForCausalLM.from_pretrained("path/to/{title}")',
        ]
        return [*ours, "```python", *plain, "```"]
    reference, revision = base_reference(base, folder)
    given = f'"{reference}"' + (f', revision="{revision}"' if revision else "")
    where = "" if hub_id(base) else "  # from this folder, or where yours is"
    return [
        *ours,
        "With peft and transformers alone; the base has no rows for the new tokens, so it gets them first:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("path/to/{title}")',
        f"base = AutoModelForCausalLM.from_pretrained({given}){where}",
        "if base.get_input_embeddings().num_embeddings < len(tokenizer):",
        "    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)",
        f'model = PeftModel.from_pretrained(base, "path/to/{title}")',
        'model.merge_and_unload().save_pretrained("merged")  # a whole model, for `pipeline` and all else',
        'tokenizer.save_pretrained("merged")',
        "```",
    ]


def _licence(base: str) -> str | None:
    """Return the licence that the card of the base names; None if there is no card or no licence in it."""
    try:
        text = (language_model_folder(base) / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    match = _LICENCE.search(head)
    return None if match is None else match[1]
