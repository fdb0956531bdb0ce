"""Checkpoints of others in and out, and our own folder format."""

from seed_fast.convert.files import CheckpointError
from seed_fast.convert.load import convert
from seed_fast.convert.official import from_official, official_shapes, to_official

__all__ = ["CheckpointError", "convert", "from_official", "official_shapes", "to_official"]
