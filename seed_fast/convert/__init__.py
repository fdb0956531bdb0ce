"""Read and write checkpoints: official formats in both directions, and this package's own folders."""

from seed_fast.convert.files import CheckpointError
from seed_fast.convert.load import convert
from seed_fast.convert.official import from_official, official_shapes, to_official
from seed_fast.convert.stage1 import from_official_stage1, to_official_stage1

__all__ = [
    "CheckpointError",
    "convert",
    "from_official",
    "from_official_stage1",
    "official_shapes",
    "to_official",
    "to_official_stage1",
]
