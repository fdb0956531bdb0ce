"""`SeedTokenizer`: images to 32 causally ordered codes, and codes to what an image generator reads.

Source: official models/seed_qformer/qformer_quantizer.py (SEED-2) and branch v1, models/visual_tokenizer.py (SEED-1).

"Exact" means float32 with `torch.backends.cuda.matmul.allow_tf32` False, PyTorch's default. bfloat16 and float16,
chosen by `dtype=`, may change codes whose best and second-best entries are close.

Shapes: B images, S image side in px, L ViT tokens, E ViT width, N codes, C Q-Former width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model.codes import as_codes
from seed_fast.model.config import SeedConfig
from seed_fast.model.cpu_products import warn_of_slow_half
from seed_fast.model.decoder import Decoder, build_head
from seed_fast.model.encoder import ImageEncoder
from seed_fast.model.qformer import QFormer
from seed_fast.model.quantizer import Quantizer
from seed_fast.model.vit import ViT

if TYPE_CHECKING:
    from seed_fast.model.fast import FastTokenizer

VISION_NORM_EPS = 1e-5  # PyTorch's default, which ln_vision keeps, unlike the ViT's own norms


class SeedTokenizer(ImageEncoder, nn.Module):
    """The SEED tokenizer of `config`, with random weights from the official initialisation.

    Args:
        config: sizes; see `SeedConfig.preset`.
        device: device of the weights. Default: PyTorch's, so under `torch.device("meta")` they have shapes alone.
        dtype: float32 (default), bfloat16 or float16.

    Attributes:
        config: the sizes it was built with.
        trained: False until weights were trained or loaded from a trained checkpoint.

    Examples:
        >>> tok = SeedTokenizer.from_pretrained("seed-tiny")
        >>> tok.encode(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self, config: SeedConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.trained = False
        device = torch.empty(0, device=device).device
        # First shapes alone, then memory, then values: PyTorch's own initial values would be drawn only to be replaced.
        with torch.device("meta"):
            self.vit = ViT(config)
            self.vision_norm = nn.LayerNorm(config.vit_dim, eps=VISION_NORM_EPS)
            self.qformer = QFormer(config.qformer)
            self.quantizer = Quantizer(config)
            self.reconstructor = Decoder(config) if config.has_reconstructor else None
            self.generator = Decoder(config)
            self.head = build_head(config)
        self.to(dtype=dtype or torch.get_default_dtype())
        if device.type != "meta":
            self.to_empty(device=device)
            self.init_weights()

    def init_weights(self) -> None:
        """Draw new weights in place, each part by the official rule; `torch.manual_seed` makes it repeatable."""
        self.vit.init_weights()
        self.vision_norm.reset_parameters()
        self.qformer.init_weights()
        self.quantizer.init_weights()
        if self.reconstructor is not None:
            self.reconstructor.init_weights()
        self.generator.init_weights()
        self.head.init_weights()
        self.trained = False

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | Sequence[str | Path],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: SeedConfig | None = None,
    ) -> SeedTokenizer:
        """Load a tokenizer; official checkpoints are converted on the way.

        Args:
            name: "seed-tiny" (inside the package); a folder written by `save_pretrained` or `seed-fast convert`; an
                official folder (`seed_quantizer.pt`, or `causal_qformer.pth` and `seed_tokenizer.pth`, with
                `eva_vit_g.pth`); a list of these files; or the Hugging Face hub id of such a folder.
            device: where to put the weights (default: CPU).
            dtype: float32 (default), bfloat16 or float16, whatever the file holds.
            config: sizes of an official checkpoint, if not the published ones. Default: the preset its tensors show.

        Raises:
            FileNotFoundError: a file is missing; the message names it and says where it comes from.
            OSError: the hub can't be reached, or has no such model.
            ValueError: a file isn't a checkpoint, is damaged, wants to run code, or lacks tensors.
        """
        from seed_fast.convert.load import load_tokenizer

        return load_tokenizer(name, device=device, dtype=dtype, config=config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` (in this dtype) and a model card.

        The files are written beside and renamed: what `folder` held stays until the new save is whole.
        """
        from seed_fast.convert.save import write_folder

        write_folder(folder, self.config, self.state_dict(), trained=self.trained)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.quantizer.codebook.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, in which the model computes."""
        return self.quantizer.codebook.dtype

    def fast(
        self, *, dtype: torch.dtype | None = None, cross_attention: str = "auto", graphs: bool = True
    ) -> FastTokenizer:
        """Make an inference plan over the same weights: the same codes in less time. See `seed_fast.model.fast`.

        Args:
            dtype: type of the matrix products (default: this model's); the residual stream stays float32.
            cross_attention: "absorbed" or "projected", two orders of the same sums. "auto": in float32 on a CPU the
                faster order, otherwise the one with fewer operations. "measured": the faster order on this machine.
            graphs: on a GPU, replay CUDA graphs; False launches every kernel.
        """
        from seed_fast.model.fast import FastTokenizer

        return FastTokenizer(self, dtype=dtype, cross_attention=cross_attention, graphs=graphs)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Turn normalised pixels [B, 3, S, S] into normed ViT features [B, L, E]."""
        return self.norm_features(self.vit_features(pixels))

    def vit_features(self, pixels: Tensor) -> Tensor:
        """Turn normalised pixels [B, 3, S, S] into the ViT's own output [B, L, E], before `vision_norm`."""
        if not torch.compiler.is_compiling():
            warn_of_slow_half(self.device, self.dtype)
        return self.vit(self._check_pixels(pixels).to(self.device, self.dtype))

    def norm_features(self, features: Tensor) -> Tensor:
        """Apply `vision_norm` to the ViT's own output [B, L, E]; return normed features [B, L, E]."""
        if features.dtype in (torch.bfloat16, torch.float16):
            # The official ln_vision computes statistics and affine map in float32.
            weight, bias = self.vision_norm.weight.float(), self.vision_norm.bias.float()
            return F.layer_norm(features.float(), weight.shape, weight, bias, VISION_NORM_EPS).to(features.dtype)
        return self.vision_norm(features)

    def query_embeddings(self, features: Tensor) -> Tensor:
        """Turn ViT features [B, L, E] into causal embeddings [B, N, C]; embedding i depends on queries 0 .. i alone."""
        return self.qformer(features)

    def lookup(self, causal: Tensor) -> Tensor:
        """Turn causal embeddings [B, N, C] into codes [B, N] int64; -1 where an embedding isn't finite."""
        return self.quantizer.lookup(causal)

    @torch.inference_mode()
    def decode(self, codes: Any) -> Tensor:
        """Turn codes into what conditions an image generator.

        Args:
            codes: [B, N] of any integer type: a tensor, an array or lists.

        Returns:
            Text features [B, 77, 768] (SEED-1) or image embeddings [B, 1024] (SEED-2), in the model's dtype.

        Raises:
            TypeError: `codes` isn't of an integer type.
            ValueError: the shape isn't [B, N], or a code isn't an entry of the codebook.
        """
        return self.head(self.generator(self.quantizer(self.check_codes("decode", codes))))

    @torch.inference_mode()
    def reconstruct(self, codes: Any) -> Tensor:
        """Turn codes into reconstructed causal embeddings [B, N, C], the "causal code" of the paper's retrieval table.

        Args:
            codes: as for `decode`.

        Raises:
            TypeError, ValueError: as `decode`; also for SEED-1's released model, which has no such decoder.
        """
        if self.reconstructor is None:
            raise ValueError(
                "reconstruct: the model must have a decoder for causal embeddings, got SEED-1, which has none"
            )
        return self.reconstructor(self.quantizer(self.check_codes("reconstruct", codes)))

    def check_codes(self, caller: str, codes: Any) -> Tensor:
        """Return codes as int64 [B, N] on the model's device.

        Args:
            caller: what an error message begins with.
            codes: as for `decode`.

        Raises:
            TypeError, ValueError: as `decode`.
        """
        codes = as_codes(codes, caller)
        count, size = self.config.num_codes, self.config.codebook_size
        if codes.ndim != 2 or codes.shape[1] != count:
            raise ValueError(f"{caller}: codes must be [B, {count}], got {list(codes.shape)}")
        if codes.numel():
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= size:
                raise ValueError(f"{caller}: codes must be in 0..{size - 1}, got {low}..{high}")
        return codes.to(self.device, torch.int64)
