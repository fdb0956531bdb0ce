"""`SeedConfig`: every size of a SEED tokenizer, its presets, and their validation. No torch here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from seed_fast._text import read_json_object, shown

Head = Literal["mlp", "reverse_qformer"]
Resize = Literal["bicubic", "bilinear", "bilinear_crop"]

# Upper limits, far above any known model. With larger sizes torch would overflow, or build layers for hours.
MOST = {"image_size": 8192, "codebook_size": 1 << 24, "num_codes": 4096, "generation_tokens": 4096}
MOST |= dict.fromkeys(("vit_depth", "qformer_depth", "decoder_depth", "reverse_depth"), 512)
MOST_OTHER = 1 << 16  # patches, widths and heads


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of one Q-Former: the causal one that reads the image, or the reverse one that reads the codes."""

    num_queries: int
    dim: int
    depth: int
    heads: int
    ffn_dim: int
    encoder_dim: int  # width of the features that the cross-attention reads
    cross_attention_every: int
    causal: bool  # True: query i sees the queries up to i alone


@dataclass(frozen=True)
class SeedConfig:
    """Sizes of a SEED tokenizer. The defaults are those of the released SEED-2.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a size is out of range, or two sizes don't fit together.

    Examples:
        >>> SeedConfig.preset("seed-2").num_tokens
        257
    """

    image_size: int = 224  # px; images are square
    patch_size: int = 14  # px
    vit_dim: int = 1408
    vit_depth: int = 39
    vit_heads: int = 16
    vit_ffn_dim: int = 6144
    qformer_dim: int = 768
    qformer_depth: int = 12
    qformer_heads: int = 12
    qformer_ffn_dim: int = 3072
    cross_attention_every: int = 2  # layers 0, 2, 4, ... of both Q-Formers have cross-attention
    num_codes: int = 32  # codes per image = causal queries
    codebook_size: int = 8192
    code_dim: int = 32
    decoder_depth: int = 4
    decoder_heads: int = 12
    head: Head = "mlp"
    generation_tokens: int = 1  # 1: an image embedding (SEED-2); more, 77: text features (SEED-1)
    generation_dim: int = 1024
    reverse_depth: int = 4  # layers of the Reverse Q-Former; the mlp head has none and ignores it
    resize: Resize = "bicubic"

    def __post_init__(self) -> None:
        # Every field by itself: its type, its range, its choices.
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = int if field.type == "int" else str
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise TypeError(f"SeedConfig: {field.name} must be {wanted.__name__}, got {shown(value)}")
            least = 0 if field.name == "reverse_depth" and self.head == "mlp" else 1
            most = MOST.get(field.name, MOST_OTHER)
            if isinstance(value, int) and value < least:
                raise ValueError(f"SeedConfig: {field.name} must be at least {least}, got {shown(value)}")
            if isinstance(value, int) and value > most:
                raise ValueError(f"SeedConfig: {field.name} must be at most {most}, got {shown(value)}")
        for name, choices in (("head", get_args(Head)), ("resize", get_args(Resize))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"SeedConfig: {name} must be one of {', '.join(choices)}, got {shown(getattr(self, name))}"
                )
        # Then fields that have to fit each other.
        for whole, part in (
            ("image_size", "patch_size"),
            ("vit_dim", "vit_heads"),
            ("qformer_dim", "qformer_heads"),
            ("qformer_dim", "decoder_heads"),
        ):
            value, divisor = getattr(self, whole), getattr(self, part)
            if value % divisor:
                raise ValueError(f"SeedConfig: {whole} must be a multiple of {part}, got {value} and {divisor}")
        if self.head == "mlp" and self.generation_tokens != 1:
            got = self.generation_tokens
            raise ValueError(f"SeedConfig: generation_tokens must be 1 with head 'mlp' (one vector), got {got}")

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the ViT makes from an image: one per patch, and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def generates_text(self) -> bool:
        """True if the head produces text features (SEED-1), False if it produces one image embedding (SEED-2)."""
        return self.generation_tokens > 1

    @property
    def has_reconstructor(self) -> bool:
        """True if the model has a decoder for the causal embeddings; SEED-1's released model has none."""
        return not self.generates_text

    @property
    def qformer(self) -> QFormerConfig:
        """Sizes of the causal Q-Former, which reads the image features."""
        return QFormerConfig(
            num_queries=self.num_codes,
            dim=self.qformer_dim,
            depth=self.qformer_depth,
            heads=self.qformer_heads,
            ffn_dim=self.qformer_ffn_dim,
            encoder_dim=self.vit_dim,
            cross_attention_every=self.cross_attention_every,
            causal=True,
        )

    @property
    def reverse_qformer(self) -> QFormerConfig:
        """Sizes of the generation head's Reverse Q-Former, which reads the decoded codes in both directions."""
        return replace(
            self.qformer,
            num_queries=self.generation_tokens,
            depth=self.reverse_depth,
            encoder_dim=self.qformer_dim,
            causal=False,
        )

    @classmethod
    def preset(cls, name: str) -> SeedConfig:
        """Return the config of a known model: "seed-1", "seed-2", "seed-2-rqf" or "seed-tiny".

        Raises:
            ValueError: no preset has this name.
        """
        if name not in PRESETS:
            raise ValueError(f"SeedConfig: preset must be one of {', '.join(PRESETS)}, got {name!r}")
        return PRESETS[name]

    def to_dict(self) -> dict[str, Any]:
        """Return {field name: value}, as config.json holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "SeedConfig") -> SeedConfig:
        """Make a config from a mapping that holds exactly its fields; errors begin with `source`.

        Raises:
            ValueError, TypeError: a field is unknown (misspelt), missing or invalid.
        """
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{source}: unknown field {name!r}{hint}")
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"{source}: missing field(s) {', '.join(missing)}")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> SeedConfig:
        """Read a config from a config.json.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file isn't JSON, or a field is unknown, missing, of the wrong type or out of range.
        """
        values = read_json_object(path, fields="SeedConfig fields")
        try:
            return cls.from_dict(values, source=str(path))
        except TypeError as error:  # in a file, a wrong type is a wrong value
            raise ValueError(str(error)) from None


PRESETS = {
    # Branch v1 of the official repository: 77 text features for Stable Diffusion 1.4.
    "seed-1": SeedConfig(head="reverse_qformer", generation_tokens=77, generation_dim=768),
    # The released seed_quantizer.pt: one OpenCLIP ViT-H image embedding for the unCLIP Stable Diffusion 2.1.
    "seed-2": SeedConfig(),
    # What the official training code makes: the same target through a Reverse Q-Former of four layers.
    "seed-2-rqf": SeedConfig(head="reverse_qformer"),
    # Small enough to ship inside the package: for demos and tests, not for quality.
    "seed-tiny": SeedConfig(
        image_size=64,
        patch_size=8,
        vit_dim=128,
        vit_depth=4,
        vit_heads=2,
        vit_ffn_dim=512,
        qformer_dim=128,
        qformer_depth=4,
        qformer_heads=2,
        qformer_ffn_dim=512,
        codebook_size=2048,
        decoder_depth=4,
        decoder_heads=2,
        generation_dim=128,
    ),
}
