"""Find the files that a name stands for, and map their tensors to the parameters of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast._hub import local_folder
from seed_fast.convert.files import CheckpointError, Entry, TensorFile
from seed_fast.convert.names import VIT_PREFIX, official_names, parameter_shapes, recognise
from seed_fast.convert.official import check_tensors
from seed_fast.convert.save import CONFIG, WEIGHTS
from seed_fast.model.config import PRESETS, SeedConfig

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED = "seed-tiny"
EVA = "eva_vit_g.pth"
EVA_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
CAPTIONS = ("contrast.safetensors", "vocabulary.txt", "vocab.txt", "tokenizer*.json")  # files that training adds
OFFICIAL = ("seed_quantizer.pt", "causal_qformer.pth", "seed_tokenizer.pth")  # in the order in which they are loaded


@dataclass(frozen=True)
class Part:
    """One parameter of the model: the file that holds it, its name there, and the shape and type to read."""

    file: TensorFile
    key: str
    entry: Entry


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been checked against its config; its tensors are not read yet."""

    config: SeedConfig
    trained: bool
    parts: dict[str, Part]  # by our names, file after file

    @property
    def entries(self) -> dict[str, Entry]:
        """{our name: shape and stored type}, in the order in which `tensors` yields them."""
        return {name: part.entry for name, part in self.parts.items()}

    def tensors(
        self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (our name, tensor), one at a time; `dtype` None keeps the stored types."""
        for file in dict.fromkeys(part.file for part in self.parts.values()):
            parts = {part.key: (name, part) for name, part in self.parts.items() if part.file is file}
            for key, tensor in file.read(parts, device=device, dtype=dtype):
                name, part = parts[key]
                yield name, tensor if tensor.shape == part.entry.shape else _resize_positions(tensor, part.entry.shape)


def open_checkpoint(source: str | Path | Sequence[str | Path], config: SeedConfig | None = None) -> Checkpoint:
    """Find a checkpoint and check it against its config, or against `config`.

    `SeedTokenizer.from_pretrained` describes what `source` may be, and what is raised.
    """
    if isinstance(source, (list, tuple)):
        return _open_official([Path(path) for path in source], config)
    path = Path(str(source))
    if str(source) == EMBEDDED:
        return _open_own(ASSETS / EMBEDDED, config)
    if str(source) in PRESETS:
        raise ValueError(
            f"{source}: no weights of this preset are shipped; give a folder, files or a hub id "
            f'(random weights: SeedTokenizer(SeedConfig.preset("{source}")))'
        )
    if path.is_file():
        return _open_official([path], config)
    path = checkpoint_folder(str(source))
    if (path / WEIGHTS).is_file():
        return _open_own(path, config)
    files = [path / name for name in OFFICIAL if (path / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{path}: must hold {WEIGHTS}, or one of {', '.join(OFFICIAL)}; got none of them")
    return _open_official(files, config)


def checkpoint_folder(name: str | Path) -> Path:
    """Return the folder of a tokenizer: the embedded one, a local one, or the download of a hub id.

    Raises:
        FileNotFoundError, OSError: no such folder, or the hub can't be reached; see `seed_fast._hub.local_folder`.
    """
    if str(name) == EMBEDDED and not Path(name).exists():
        return ASSETS / EMBEDDED
    return local_folder(name, [CONFIG, WEIGHTS, *OFFICIAL, EVA, *CAPTIONS], or_else=f" or file, nor {EMBEDDED!r}")


def _open_own(folder: Path, wanted: SeedConfig | None) -> Checkpoint:
    """Open a folder of this package's format."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder / CONFIG}: no such file; a folder with {WEIGHTS} needs it")
    config = SeedConfig.from_file(folder / CONFIG)
    if wanted is not None and wanted != config:
        raise ValueError(f"{folder / CONFIG}: must be the config asked for, {wanted}, got {config}")
    file = TensorFile(folder / WEIGHTS)
    shapes = parameter_shapes(config)
    for name, shape in shapes.items():
        if name not in file.entries:
            raise CheckpointError(
                f"{file.path}: must hold {name} {list(shape)} for its config.json, got no such tensor"
            )
        if file.entries[name].shape != shape:
            got = list(file.entries[name].shape)
            raise CheckpointError(f"{file.path}: {name} must be {list(shape)} for its config.json, got {got}")
    for name in file.entries:
        if name not in shapes:
            raise CheckpointError(f"{file.path}: holds {name}, which no model of its config.json has")
    parts = {name: Part(file, name, file.entries[name]) for name in shapes}
    return Checkpoint(config, file.metadata.get("trained") == "true", parts)


def _open_official(paths: list[Path], config: SeedConfig | None) -> Checkpoint:
    """Open official files; the image encoder may be one of them, inside them, or beside them."""
    files = [TensorFile(path) for path in paths]
    eva = [file for file in files if "patch_embed.proj.weight" in file.entries]
    files = [file for file in files if file not in eva]
    label = ", ".join(str(file.path) for file in files) or str(paths[0])
    # The config: given, beside the files, or recognised by the names of their tensors.
    available = {key: Part(file, key, entry) for file in files for key, entry in file.entries.items()}
    if config is None:
        config = _config_beside(paths[0])
    if config is None:
        try:
            config = recognise(set(available))
        except ValueError as error:
            raise CheckpointError(f"{label}: {error}") from None
    # The image encoder, unless the files hold it.
    if not any(key.startswith(VIT_PREFIX) for key in available):
        for file in eva or [_find_eva(paths[0].parent)]:
            label += f", {file.path}"
            for key, entry in file.entries.items():
                available[VIT_PREFIX + key] = Part(file, key, entry)
    _allow_other_image_size(available, config)
    check_tensors({key: part.entry.shape for key, part in available.items()}, config, source=label)
    # File after file, so that each is mapped once.
    parts = {ours: available[official] for ours, official in official_names(config).items()}
    order = {file: number for number, file in enumerate(dict.fromkeys(part.file for part in parts.values()))}
    return Checkpoint(config, True, dict(sorted(parts.items(), key=lambda item: order[item[1].file])))


def _config_beside(path: Path) -> SeedConfig | None:
    """Return the config.json beside an official file; None where it is absent or of another library, as on the hub."""
    beside = path.parent / CONFIG
    if not beside.is_file():
        return None
    text = beside.read_text(encoding="utf-8", errors="replace")
    return SeedConfig.from_file(beside) if '"codebook_size"' in text and '"qformer_dim"' in text else None


def _find_eva(folder: Path) -> TensorFile:
    """Return the file of the image encoder; the error says where to download it."""
    if not (folder / EVA).is_file():
        raise FileNotFoundError(
            f"{folder / EVA}: no such file. SEED's own files don't hold the image encoder. Download {EVA} of LAVIS's "
            f"BLIP-2 release, {EVA_URL}, and put it into {folder} (or give its path together with the others)"
        )
    return TensorFile(folder / EVA)


def _allow_other_image_size(available: dict[str, Part], config: SeedConfig) -> None:
    """Accept a position embedding for another number of patches, which `_resize_positions` will interpolate."""
    key = VIT_PREFIX + "pos_embed"
    if key not in available:
        return
    part = available[key]
    shape = part.entry.shape
    patches = shape[1] - 1 if len(shape) == 3 else 0
    if patches > 0 and round(patches**0.5) ** 2 == patches and (shape[0], shape[2]) == (1, config.vit_dim):
        wanted = torch.Size([1, config.num_tokens, config.vit_dim])
        available[key] = Part(part.file, part.key, Entry(wanted, part.entry.dtype))


def _resize_positions(positions_1LE: Tensor, shape: torch.Size) -> Tensor:
    """Interpolate the patches' position embeddings bicubically, in float32; the class token keeps its own.

    Source: official models/seed_qformer/eva_vit.py, interpolate_pos_embed.
    """
    cls, patches = positions_1LE[:, :1], positions_1LE[:, 1:]
    old, new = round(patches.shape[1] ** 0.5), round((shape[1] - 1) ** 0.5)
    grid = patches.float().transpose(1, 2).unflatten(2, (old, old))
    resized = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([cls, resized.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1)
