"""Pictures as PNG files that carry the codes and the settings they were drawn from, and sheets of many pictures."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo
from torch import Tensor, stack

from seed_fast._files import OtherRun, write_beside
from seed_fast._text import parse_json, shown
from seed_fast.generate.batches import batched
from seed_fast.generate.pictures import Rendering, render_embeddings

RECORD = "seed_fast"  # keyword of the PNG text chunk
SHEET = "sheet.png"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NUMBER = re.compile(r"\d{6,}")  # name of a picture, without its ending
_GAP = 4  # px between the cells of a sheet
_CODES_PER_LINE = 4
_LEAST_CELL, _MOST_CELL = 128, 256  # px


def encode_png(picture: Image.Image, record: Mapping[str, Any]) -> bytes:
    """Return a PNG file that holds the picture and a record, a JSON object such as {"codes": [...], "text": "..."}."""
    text = PngInfo()
    text.add_itxt(RECORD, json.dumps(dict(record)))
    content = io.BytesIO()
    picture.save(content, format="PNG", pnginfo=text)
    return content.getvalue()


def read_picture(path: str | Path) -> tuple[Image.Image, dict[str, Any]]:
    """Return the picture of a PNG file that this package has drawn, and its record.

    Args:
        path: a file that `encode_png` has made.

    Raises:
        OSError: it can't be read.
        ValueError: it is no such file; the message names it.

    Examples:
        picture, record = read_picture("out/000000.png")
        record["codes"]
    """
    try:
        with Image.open(path) as file:
            if not isinstance(file, PngImageFile):
                raise ValueError(f"got an image of the kind {file.format}")
            picture = file.convert("RGB")
            text = file.text.get(RECORD)
        if text is None:
            raise ValueError("got a PNG file without codes")
        record = parse_json(text)
        if not isinstance(record, dict):
            raise ValueError(f"got a PNG file with {shown(record)}")
    except UnidentifiedImageError:
        raise ValueError(f"{path}: must be a picture that seed-fast has drawn, got a file that is no image") from None
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG chunk
        raise ValueError(f"{path}: must be a picture that seed-fast has drawn: {error}") from None
    return picture, record


class PictureToDraw(NamedTuple):
    """What a picture is drawn from.

    Attributes:
        number: its place among all pictures, which names its file.
        embedding: a row of `SeedTokenizer.decode`, or an edited one.
        record: what its file is to tell, such as its codes.
        noise: what its seed is counted up by; default: its number. Pictures with equal noise can be compared.
    """

    number: int
    embedding: Tensor
    record: dict[str, Any]
    noise: int | None = None


class DrawnPicture(NamedTuple):
    """A picture, what it was drawn from, and its file."""

    picture: Image.Image
    source: PictureToDraw
    path: Path


class PictureFolder:
    """Draws pictures into a folder as 000000.png, 000001.png and so on; each file is whole or absent.

    Args:
        folder: where to write; made with the first picture.
        pipeline: the result of `open_pipeline`.
        rendering: steps, guidance and size.
        reads_text: True if the pipeline reads text features (SEED-1), False for image embeddings (SEED-2).
        seed: seed of the initial noise of picture 0; the others count up from it.
        batch_size: pictures that are denoised together.
        negative: the embedding that guidance points away from.
        resume: keep pictures that an earlier run has drawn from the same.
        about: what every file is to tell beside its own record, such as the name of the diffusion model.
    """

    def __init__(
        self,
        folder: Path,
        pipeline: Any,
        rendering: Rendering,
        *,
        reads_text: bool,
        seed: int = 0,
        batch_size: int = 8,
        negative: Tensor | None = None,
        resume: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder, self._pipeline = folder, pipeline
        self._rendering = rendering.resolved(reads_text, negative=negative is not None)
        self._seed, self._batch_size, self._negative, self._resume = seed, batch_size, negative, resume
        self._about = dict(about or {})

    def draw(self, sources: Iterable[PictureToDraw]) -> Iterator[DrawnPicture]:
        """Draw pictures batch by batch and yield them in order.

        A batch of which a killed run has left a part is rendered whole and as before, so that its files come out the
        same; those that are there are kept.

        Raises:
            OtherRun: an earlier run has drawn a picture of this number from something else.
        """
        for batch in batched(sources, self._batch_size):
            records = [self._record(source) for source in batch]
            paths = [self._folder / f"{source.number:06d}.png" for source in batch]
            pictures = [self._kept(path, record) for path, record in zip(paths, records, strict=True)]
            if any(picture is None for picture in pictures):
                rendered = render_embeddings(
                    self._pipeline, stack([source.embedding for source in batch]),
                    [self._seed_of(source) for source in batch], self._rendering, negative=self._negative,
                )  # fmt: skip
                self._folder.mkdir(parents=True, exist_ok=True)
                for row, picture in enumerate(rendered):
                    if pictures[row] is None:
                        write_beside(paths[row], encode_png(picture, records[row]))
                        pictures[row] = picture
            for row, source in enumerate(batch):
                done = pictures[row]
                assert done is not None  # for mypy: those that were missing are drawn
                yield DrawnPicture(done, source, paths[row])

    def _seed_of(self, source: PictureToDraw) -> int:
        return self._seed + (source.number if source.noise is None else source.noise)

    def _record(self, source: PictureToDraw) -> dict[str, Any]:
        rendering = self._rendering
        settings = {"seed": self._seed_of(source), "steps": rendering.steps, "guidance": rendering.guidance}
        if rendering.size is not None:
            settings["size"] = rendering.size
        return source.record | settings | self._about

    def _kept(self, path: Path, record: dict[str, Any]) -> Image.Image | None:
        """Return the picture that an earlier run has drawn from the same; None if there is none."""
        if not self._resume or not path.exists():
            return None
        try:
            picture, found = read_picture(path)
        except ValueError as error:
            raise OtherRun(str(error)) from None
        if found != json.loads(json.dumps(record)):
            names = sorted(name for name in {*found, *record} if found.get(name) != record.get(name))
            raise OtherRun(f"{path}: drawn by another run, which differs in {', '.join(names)}")
        return picture


def leftovers(folder: Path) -> list[Path]:
    """Return the files that an earlier run of a `PictureFolder` has written into a folder.

    Raises:
        OtherRun: a file has a name that a run would write to, and this package has not drawn it.
    """
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.glob("*.png") if path.name == SHEET or _NUMBER.fullmatch(path.stem))
    for path in found:
        if not _is_ours(path):
            raise OtherRun(f"{path}: is in the way, and no picture that seed-fast has drawn")
    return found


def _is_ours(path: Path) -> bool:
    """Return True if a file is a PNG that holds a record; its pixels aren't read."""
    try:
        with Image.open(path) as file:
            return isinstance(file, PngImageFile) and RECORD in file.info
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def contact_sheet(rows: Sequence[tuple[Image.Image, Sequence[int], Image.Image]]) -> Image.Image:
    """Return one picture of many: each image, its codes as numbers, and the picture drawn from them, side by side.

    Args:
        rows: image, codes and picture; at least one.

    Returns:
        A sheet that is about as wide as high. Cells are as large as the first picture, but 128 to 256 px.
    """
    side = min(max(rows[0][2].width, _LEAST_CELL), _MOST_CELL)
    groups = next(n for n in range(1, len(rows) + 1) if 3 * n * n >= len(rows))  # of three cells, beside each other
    lines = -(-len(rows) // groups)
    sheet = Image.new("RGB", (3 * groups * (side + _GAP) + _GAP, lines * (side + _GAP) + _GAP), "white")
    for number, (image, codes, picture) in enumerate(rows):
        left = _GAP + 3 * (number % groups) * (side + _GAP)
        top = _GAP + number // groups * (side + _GAP)
        for place, cell in enumerate((_scaled(image, side), _codes_cell(codes, side), _scaled(picture, side))):
            sheet.paste(cell, (left + place * (side + _GAP), top))
    return sheet


def _scaled(picture: Image.Image, side: int) -> Image.Image:
    return picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def _codes_cell(codes: Sequence[int], side: int) -> Image.Image:
    """Return a white square with the codes in lines of four, in a size at which all of them fit."""
    cell = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(cell)
    lines = -(-len(codes) // _CODES_PER_LINE)
    step = (side / _CODES_PER_LINE, side / max(lines, 1))
    try:
        font: Any = ImageFont.load_default(size=max(6, int(min(step[1] * 0.8, step[0] * 0.36))))
    except (ImportError, TypeError):  # Pillow without FreeType, or before 10.1, has one size
        font = ImageFont.load_default()
    for place, code in enumerate(codes):
        column, line = place % _CODES_PER_LINE, place // _CODES_PER_LINE
        draw.text((column * step[0] + 2, line * step[1]), str(code), fill="black", font=font)
    return cell
