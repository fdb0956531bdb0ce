"""Options and checks that the commands with a language model share: caption, draw and eval lm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from seed_fast._extras import require
from seed_fast._terminal import complain
from seed_fast.cli._checks import tokenizers_match, usage
from seed_fast.cli._options import Device, DtypeName

if TYPE_CHECKING:
    import torch

    from seed_fast.generate.decoding import DecodingStrategy
    from seed_fast.lm.model import LanguageModel
    from seed_fast.model.tokenizer import SeedTokenizer


Base = Annotated[
    Path | None,
    typer.Option(help="Base model of the adapter (folder or hub id), if it isn't where the adapter says."),
]
AnyTokenizer = Annotated[
    bool,
    typer.Option(
        "--any-tokenizer",
        help="Go on although the language model has learned the codes of another tokenizer than --model.",
    ),
]


class LoadingOptions(Protocol):
    """What is needed to load a language model and to compare it with a tokenizer."""

    @property
    def lm(self) -> Any: ...
    @property
    def base(self) -> Path | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def any_tokenizer(self) -> bool: ...
    @property
    def dtype(self) -> DtypeName: ...


@dataclass(frozen=True, kw_only=True)
class LanguageModelOptions:
    """Options of a command that uses a language model, and a tokenizer whose codes the model has learned."""

    lm: Annotated[
        Path,
        typer.Option("--lm", help="Language model with image tokens, or its adapter: a folder or a hub id."),
    ]
    base: Base = None
    model: Annotated[
        str,
        typer.Option(help="Image tokenizer: seed-tiny (inside the package, for trying out), a folder, or a hub id."),
    ] = "seed-tiny"
    beams: Annotated[int, typer.Option(min=1, help="Beams of the beam search. 1: greedy search.")] = 1
    any_tokenizer: AnyTokenizer = False
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 64
    device: Device = "auto"
    dtype: Annotated[DtypeName, typer.Option(help="Type of the language model's weights and computation.")] = "float32"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(LanguageModelOptions):
    """Options of a language model that may sample."""

    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample among the most likely tokens that together have this probability, such as 0.5. "
            "Default: no sampling."
        ),
    ] = None
    temperature: Annotated[float, typer.Option(help="Softmax temperature for sampling; needs --top-p.")] = 1.0
    seed: Annotated[int, typer.Option(help="Seed of the random numbers for sampling.")] = 0


def strategy_option(options: LanguageModelOptions) -> DecodingStrategy:
    """Return how tokens are chosen, after a check that what language models need is installed.

    Raises:
        UsageError: the options exclude each other.
        ImportError: transformers or peft is missing.
    """
    require("transformers", "peft")
    from seed_fast.generate.decoding import DecodingStrategy

    with usage():
        if isinstance(options, SamplingOptions):
            return DecodingStrategy(options.beams, options.top_p, options.temperature, options.seed)
        return DecodingStrategy(options.beams)


def load_language_model(options: LoadingOptions, device: torch.device, folder: Path | None = None) -> LanguageModel:
    """Return the language model of a folder, by default that of --lm, on the device and in the type of --dtype."""
    import torch
    from transformers.utils import logging

    from seed_fast.lm.model import load

    logging.disable_progress_bar()  # bars of loading would stand between our lines
    return load(folder or options.lm, options.base, device, getattr(torch, options.dtype))


def check_same_tokenizer(
    options: LoadingOptions, lm: LanguageModel, tok: SeedTokenizer, folder: Path | None = None
) -> None:
    """Check that a language model, by default that of --lm, has learned the codes of the tokenizer of --model.

    Raises:
        ValueError: its codebook has another size, or it has learned the codes of another tokenizer.
    """
    from seed_fast.data.tokens import TokenizerIdentity
    from seed_fast.lm.image_tokenizer import check_identity

    lm.vocabulary.check_codebook(tok.config.codebook_size)
    with tokenizers_match():
        check_identity(
            folder or options.lm,
            TokenizerIdentity.of_tokenizer(tok, str(options.model)),
            f"--model {options.model}",
            anyway=options.any_tokenizer,
            note=complain,
        )
