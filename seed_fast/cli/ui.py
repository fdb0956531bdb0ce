"""`seed-fast ui`: a page in the browser to play with pictures, codes and captions."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from seed_fast._extras import require
from seed_fast._terminal import complain
from seed_fast.cli._checks import device_option, tokenizer_option
from seed_fast.cli._language_model import AnyTokenizer, Base, check_same_tokenizer, load_language_model
from seed_fast.cli._options import Device, DtypeName, command
from seed_fast.cli._pictures import PictureModel, model_beside
from seed_fast.cli.bench import source_tree

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXAMPLE_LM, EXAMPLE_DECODER = Path("examples/seed-opt-tiny"), Path("examples/shapes-sd")


@dataclass(frozen=True, kw_only=True)
class UiOptions:
    """Options of `seed-fast ui`."""

    model: PictureModel = None
    lm: Annotated[
        Path | None,
        typer.Option(
            "--lm",
            help="Language model that draws captions: a folder or a hub id. Default with seed-tiny in a source tree: "
            f"{EXAMPLE_LM}.",
        ),
    ] = None
    base: Base = None
    decoder: Annotated[
        Path | None,
        typer.Option(
            help="Diffusion model that draws codes: a folder or a hub id. "
            f"Default with seed-tiny in a source tree: {EXAMPLE_DECODER}."
        ),
    ] = None
    any_tokenizer: AnyTokenizer = False
    host: Annotated[str, typer.Option(help="Address to listen on. The default is reached from this machine only.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port. 0: any free one, which is printed.")] = 7860
    seed: Annotated[int, typer.Option(help="Seed of the noise that every picture begins with.")] = 0
    device: Device = "auto"
    dtype: Annotated[DtypeName, typer.Option(help="Type of the weights and computation of all models.")] = "float32"


@command(memory="use --dtype float16, or a smaller model")
def ui(options: UiOptions) -> int:
    """Serve a page: drop a picture, see its codes and what they draw, change a code, draw a caption.

    The page needs no GPU with the small models. Uploads are read with the limits of `seed-fast tokenize`.

    \b
    Examples:
      seed-fast ui
      seed-fast ui --port 8080 --lm ./seed-opt --model ./seed-2 --decoder ./stable-diffusion-2-1-unclip
      ssh -L 7860:127.0.0.1:7860 server    # then, on the server: seed-fast ui

    \b
    Exit codes:
      1    it failed, such as for a port that is taken
      2    the command was wrong
      130  the page was stopped by Ctrl-C (143: by SIGTERM)
    """
    require("gradio")
    device = device_option(options.device)
    lm_folder, decoder = options.lm, options.decoder
    root = source_tree()
    if options.model in (None, "seed-tiny") and root is not None:
        lm_folder = lm_folder or _if_there(root / EXAMPLE_LM)
        decoder = decoder or _if_there(root / EXAMPLE_DECODER)
    if options.host not in LOOPBACK:
        complain(f"--host {options.host}: everybody who reaches this address can use the page; it asks for no password")

    from seed_fast.ui.page import build, served
    from seed_fast.ui.workbench import Workbench

    options = replace(options, model=model_beside(options.model, decoder))
    # The tokenizer, then what can draw its codes, then what can write codes.
    tok = tokenizer_option(str(options.model), device, options.dtype, random_weights=None)
    pipeline = lm = None
    if decoder is not None:
        require("diffusers")
        from seed_fast.generate.pictures import open_pipeline

        pipeline = open_pipeline(decoder, tok)
    if lm_folder is not None:
        require("transformers", "peft")
        lm = load_language_model(options, device, lm_folder)
        check_same_tokenizer(options, lm, tok, lm_folder)
    if pipeline is None:
        complain("the page shows no pictures of codes without --decoder FOLDER, a diffusion model")
    if lm is None:
        complain("the page draws no captions without --lm FOLDER, a language model that has learned the codes")

    with served(build(Workbench(tok, pipeline, lm, seed=options.seed)), options.host, options.port) as address:
        complain(f"the page is at {address}; Ctrl-C stops it")
        threading.Event().wait()
    return 0


def _if_there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None
