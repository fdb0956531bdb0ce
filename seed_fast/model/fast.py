"""`FastTokenizer`: the tokenizer's inference plan. The same weights, less work, fewer launches.

Work of the plain modules that the plan saves:

- Layer 0's self-attention reads the query tokens alone, so its output, and the queries of layer 0's cross-attention,
  are the same for every image: they are computed once, when the plan is made.
- The keys and values of the cross-attention are never formed, or come from one product for all layers (see
  `fast_qformer`, and `fast_form` for the choice).
- Queries, keys and values of each self-attention come from one product, and attention reads its parts in place.

Matrix products run in `dtype`, the residual stream, norms and softmax in float32. On a GPU the three stages are CUDA
graphs (see `graphs`), on a CPU products run in the library that is faster there (see `products`).

Shapes: B images, L ViT tokens, E ViT width, N codes, C Q-Former width, H heads, d head width.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seed_fast.model.cpu_products import PLAN_ADVICE, Linear, computed_in_float32, describe, warn_of_slow_half
from seed_fast.model.dtypes import DTYPE_BY_NAME
from seed_fast.model.encoder import ImageEncoder
from seed_fast.model.fast_form import make_qformer
from seed_fast.model.fast_state import from_bytes, to_bytes
from seed_fast.model.fast_vit import FastViT
from seed_fast.model.graphs import Graphs, Stage, in_parts
from seed_fast.model.quantizer import Quantizer
from seed_fast.ops import nearest_code, pack_codebook

if TYPE_CHECKING:
    from seed_fast.model.tokenizer import SeedTokenizer


STAGES = ("_image_features", "_query_embeddings", "_lookup")


class FastLookup:
    """Causal embeddings [B, N, C] to codes [B, N] int64.

    Both products before the lookup are small and decide the codes, so they stay in float32 in every plan.
    """

    def __init__(self, module: Quantizer) -> None:
        maps: list[Any] = [m for m in module.encode_task if isinstance(m, nn.Linear)]
        self.into, self.out = (Linear(m.weight, m.bias, torch.float32) for m in maps)
        self.codebook = pack_codebook(module.codebook.detach().float())

    def __call__(self, causal_BNC: Tensor) -> Tensor:
        return nearest_code(self.out(self.into(causal_BNC).tanh_()), self.codebook)


class FastTokenizer(ImageEncoder):
    """What `SeedTokenizer.fast` returns: `encode` and its stages, without gradients, losses or decoders.

    Its float32 codes are the tokenizer's own. It shares the weights that need no new layout or dtype, so after a change
    of the tokenizer's weights, make a new plan.

    Args:
        tokenizer: the source of the weights.
        dtype: type of the matrix products, float32, bfloat16 or float16. Default: the tokenizer's.
        cross_attention: "absorbed" or "projected", two orders of the same sums. "auto": in float32 on a CPU the
            order that is faster on this machine, otherwise the one with fewer operations for this model. "measured":
            the order that is faster on this machine in any dtype. The measurement is made once per machine and takes
            about a second.
        graphs: on a GPU, replay CUDA graphs; False launches every kernel, for profilers and debuggers.

    Attributes:
        products: which library computes matrix products: "torch", "measured" (per size of the product), or the value of
            SEED_FAST_PRODUCTS that repeats the choice elsewhere. In half precision rounding, and with it some codes,
            depend on it.

    A plan can be pickled and copied, for processes on machines of one kind.

    Raises:
        TypeError: `dtype` is another one.
        ValueError: `cross_attention` has an unknown value, or SEED_FAST_PRODUCTS has an unknown value.

    Examples:
        >>> from seed_fast import SeedTokenizer
        >>> tok = SeedTokenizer.from_pretrained("seed-tiny")
        >>> pixels = torch.zeros(2, 3, 64, 64)
        >>> torch.equal(tok.fast().encode(pixels), tok.encode(pixels))
        True
    """

    @torch.no_grad()
    def __init__(
        self,
        tokenizer: SeedTokenizer,
        *,
        dtype: torch.dtype | None = None,
        cross_attention: str = "auto",
        graphs: bool = True,
    ) -> None:
        self.config = tokenizer.config
        self.trained = tokenizer.trained
        self._device, self._dtype = tokenizer.device, dtype or tokenizer.dtype
        if self._dtype not in DTYPE_BY_NAME.values():
            raise TypeError(f"fast: dtype must be float32, bfloat16 or float16, got {self._dtype}")
        self.products = describe(self._device, self._dtype)
        if computed_in_float32(self._device, self._dtype):
            warn_of_slow_half(self._device, self._dtype, PLAN_ADVICE)
        self.vit = FastViT(tokenizer.vit, tokenizer.vision_norm, self._dtype)
        self.qformer = make_qformer(tokenizer.qformer, self._dtype, self.config.num_tokens, cross_attention)
        self.nearest = FastLookup(tokenizer.quantizer)
        self._graphs = graphs and self._device.type == "cuda"
        self._make_stages()

    def _make_stages(self) -> None:
        """Build the three stages: functions that replay CUDA graphs on a GPU, and split large batches elsewhere."""
        made = Graphs(self._device) if self._graphs else None

        def stage(function: Stage, row_shape: tuple[int, ...], dtype: torch.dtype) -> Stage:
            return made.stage(function, row_shape, dtype) if made else partial(in_parts, function)

        config, side = self.config, self.config.image_size
        self._image_features = stage(self.vit, (3, side, side), torch.float32)
        self._query_embeddings = stage(self.qformer, (config.num_tokens, config.vit_dim), self._dtype)
        self._lookup = stage(self.nearest, (config.num_codes, config.qformer_dim), torch.float32)

    def __getstate__(self) -> bytes:
        return to_bytes({name: value for name, value in vars(self).items() if name not in STAGES})

    def __setstate__(self, state: bytes) -> None:
        """Restore a plan; CUDA graphs can't be copied, so they are captured anew."""
        vars(self).update(from_bytes(state))
        self._make_stages()

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Turn normalised pixels [B, 3, S, S] into normed ViT features [B, L, E] in the plan's dtype."""
        return self._image_features(self._check_pixels(pixels).to(self._device))

    @torch.no_grad()
    def query_embeddings(self, features: Tensor) -> Tensor:
        """Turn ViT features [B, L, E] into causal embeddings [B, N, C] float32."""
        return self._query_embeddings(features)

    @torch.no_grad()
    def lookup(self, causal: Tensor) -> Tensor:
        """Turn causal embeddings [B, N, C] into codes [B, N] int64; -1 where an embedding isn't finite."""
        return self._lookup(causal)
