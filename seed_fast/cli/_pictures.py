"""Options and checks that the commands with a diffusion model share: draw and reconstruct."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seed_fast._files import locked_folder
from seed_fast._hub import hub_id
from seed_fast.cli._checks import usage
from seed_fast.cli._options import DtypeName
from seed_fast.cli._run import UsageError

if TYPE_CHECKING:
    from seed_fast.generate.picture_files import PictureFolder
    from seed_fast.generate.pictures import Rendering
    from seed_fast.model.tokenizer import SeedTokenizer

DECODER_HELP = (
    "Diffusion model that turns codes into pictures, as a folder or a hub id: "
    "Stable unCLIP 2.1 for SEED-2, Stable Diffusion for SEED-1."
)
PictureModel = Annotated[
    str | None,
    typer.Option(
        help="Image tokenizer: seed-tiny, a folder, or a hub id. Default: the folder image_tokenizer inside "
        "--decoder if it has one, otherwise seed-tiny."
    ),
]


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Options of a command that draws pictures with a diffusion model."""

    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps. Default: 50 for SEED-1, 20 for SEED-2.")
    ] = None
    guidance: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="How closely pictures keep to the codes; 1: no guidance. Default: 7.5 for SEED-1, 10 for SEED-2, "
            "5 for SEED-2 with --negative.",
        ),
    ] = None
    negative: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Guide away from the first codes of this file (JSON lines, or a picture of ours), such as a sample "
            "that the language model has drawn without a caption.",
        ),
    ] = None
    size: Annotated[
        int | None, typer.Option(help="Side of the pictures in px, a multiple of 8. Default: that of the pipeline.")
    ] = None
    decoder_dtype: Annotated[
        DtypeName, typer.Option(help="Type of the diffusion model; the half ones need half the memory.")
    ] = "float32"
    vae_slicing: Annotated[
        bool, typer.Option("--vae-slicing", help="Less memory: turn latents into pixels one picture at a time.")
    ] = False
    cpu_offload: Annotated[
        bool,
        typer.Option(
            "--cpu-offload",
            help="Less memory on the GPU: each part of the diffusion model is there while it is needed.",
        ),
    ] = False
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the pictures that a killed run has drawn, and draw the others.")
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the pictures of an earlier run.")] = False


def rendering_option(options: PictureOptions) -> Rendering:
    """Return steps, guidance and size of the pictures."""
    from seed_fast.generate.pictures import Rendering

    with usage():
        return Rendering(options.steps, options.guidance, options.size)


def check_pictures(options: PictureOptions, folder: Path) -> None:
    """Refuse, before anything is loaded, to touch the pictures of an earlier run unless an option says what to do."""
    from seed_fast.cli._checks import check_resumable
    from seed_fast.generate.picture_files import leftovers

    check_resumable(options.resume, options.overwrite, leftovers(folder))


@contextmanager
def locked_pictures(options: PictureOptions, folder: Path) -> Iterator[None]:
    """Let this process alone draw into a folder; with --overwrite, remove the pictures of an earlier run first."""
    from seed_fast.generate.picture_files import leftovers

    with locked_folder(folder):
        if options.overwrite:
            for path in leftovers(folder):
                path.unlink()
        yield


def model_beside(model: str | None, decoder: str | Path | None) -> str:
    """Return the name of the tokenizer: that of --model, or the one inside the diffusion model's folder."""
    if model is not None:
        return model
    from seed_fast.generate.pictures import TOKENIZER_FOLDER

    if decoder is not None and hub_id(decoder) is None and (Path(decoder) / TOKENIZER_FOLDER).is_dir():
        return str(Path(decoder) / TOKENIZER_FOLDER)
    return "seed-tiny"


def open_picture_folder(
    options: PictureOptions, folder: Path, decoder: str | Path, tok: SeedTokenizer, *, seed: int, batch_size: int
) -> PictureFolder:
    """Load the diffusion model, and return what draws with it into a folder.

    Raises:
        UsageError: --negative holds no codes of this tokenizer.
        OSError, ValueError: the diffusion model can't be used, see `open_pipeline`.
    """
    import torch

    from seed_fast.generate import pictures
    from seed_fast.generate.picture_files import PictureFolder

    rendering = rendering_option(options)
    negative = None
    about: dict[str, Any] = {"decoder": str(decoder)}
    if options.negative is not None:
        codes = first_codes(options.negative, tok)
        negative, about = tok.decode([codes])[0], about | {"negative": codes}
    if options.cpu_offload and tok.device.type == "cpu":
        raise UsageError("--cpu-offload needs a GPU, and --device is the CPU")
    pipeline: Any = pictures.open_pipeline(
        decoder, tok, dtype=getattr(torch, options.decoder_dtype), vae_slicing=options.vae_slicing,
        cpu_offload=options.cpu_offload,
    )  # fmt: skip
    return PictureFolder(
        folder, pipeline, rendering, reads_text=tok.config.generates_text, seed=seed, batch_size=batch_size,
        negative=negative, resume=options.resume, about=about,
    )  # fmt: skip


def first_codes(path: Path, tok: SeedTokenizer) -> list[int]:
    """Return the codes of the first image in a file of codes.

    Raises:
        UsageError: it has none, or the first isn't one of this tokenizer.
    """
    from seed_fast.cli._checks import input_file_option
    from seed_fast.generate.images import read_codes

    def refuse(line: str) -> None:
        raise UsageError(line)

    input_file_option(path)
    image = next(read_codes(path, tok.config.codebook_size, num_codes=tok.config.num_codes, on_problem=refuse), None)
    if image is None:
        raise UsageError(f"{path}: must hold the codes of an image, got none")
    return image.codes
