"""Stage 2: quantizer, decoders and generation head are trained, behind a frozen image encoder and Q-Former.

    loss = 5 vq + 2 recon + 0.5 image
    vq    = mean (sg[e] - z)^2 + 0.25 mean (e - sg[z])^2          z: encoded queries, e: their codebook entries
    recon = mean over queries of 1 - cos(reconstructed causal embedding, causal embedding)
    image = mean squared error between the generation embedding and the target

Source: official SEED_Tokenizer/lavis/models/blip2_models/blip2_qformer_codebook_all_image.py. (Its factor
0.25 is on the codebook loss, not on the commitment loss: `legacy=True` of `VectorQuantizer2`.)

Shapes: B images, N codes, C Q-Former width, G generation width, T generation tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model.qformer import set_dropout
from seed_fast.model.tokenizer import SeedTokenizer
from seed_fast.ops import vector_quantize
from seed_fast.train.batches import Batch, Batches
from seed_fast.train.health import CodebookHealth

VQ_WEIGHT, RECON_WEIGHT, IMAGE_WEIGHT = 5.0, 2.0, 0.5
CODEBOOK_WEIGHT = 0.25
TERMS = ("loss", "vq", "recon", "image")
FROZEN = ("vit", "vision_norm", "qformer")


def losses(tokenizer: SeedTokenizer, pixels: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Compute the weighted loss and its three unweighted terms.

    Args:
        tokenizer: the model. ViT, `vision_norm` and Q-Former get no gradient, whatever their `requires_grad`.
        pixels: normalised pixels [B, 3, S, S].
        target: image embeddings [B, G], or text features [B, T, G] (SEED-1).

    Returns:
        {"loss", "vq", "recon", "image"}, scalars. SEED-1's released model has no decoder for causal embeddings: its
        "recon" is 0.

    Raises:
        ValueError: `target` has another shape than the head's output.
    """
    with torch.no_grad():
        causal = tokenizer.causal_embeddings(pixels)
    return losses_of_causal(tokenizer, causal, target)[0]


def losses_of_causal(tokenizer: SeedTokenizer, causal_BNC: Tensor, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Compute `losses` from causal embeddings [B, N, C], which can be cached; and return the codes [B, N] too."""
    quantizer = tokenizer.quantizer
    # Quantise, then decode.
    z_BND = quantizer.encode_task(causal_BNC)
    with torch.autocast(z_BND.device.type, enabled=False):  # the nearest entry is searched in full precision
        z_BND = z_BND.to(torch.promote_types(z_BND.dtype, quantizer.codebook.dtype))
        z_q_BND, codes_BN, commit, codebook = vector_quantize(z_BND, quantizer.codebook)
    decoded_BNC = quantizer.decode_task(z_q_BND)
    generated = tokenizer.head(tokenizer.generator(decoded_BNC))
    if target.shape != generated.shape:
        raise ValueError(
            f"stage 2: target must be {list(generated.shape)}, as the head makes, got {list(target.shape)}"
        )
    # The three terms. A model without a reconstructor has no reconstruction loss.
    vq = commit + CODEBOOK_WEIGHT * codebook
    recon = vq.new_zeros(())
    if tokenizer.reconstructor is not None:
        rebuilt_BNC = tokenizer.reconstructor(decoded_BNC)
        recon = (1 - F.cosine_similarity(rebuilt_BNC, causal_BNC.to(rebuilt_BNC.dtype), dim=-1)).mean()
    image = F.mse_loss(generated, target.to(generated.dtype))
    loss = VQ_WEIGHT * vq + RECON_WEIGHT * recon + IMAGE_WEIGHT * image
    return {"loss": loss, "vq": vq, "recon": recon, "image": image}, codes_BN


class Stage2(nn.Module):
    """The module that the loop trains in stage 2.

    Args:
        tokenizer: a tokenizer with a trained Q-Former.
        targets: batch -> target, from `seed_fast.train.targets.open_target`.
        dropout: dropout of the Reverse Q-Former, the only BERT among the trained parts; the official value is 0.1.
        official_dropout: use dropout in the frozen Q-Former too, as the official code does by leaving it in train mode;
            this makes the targets of the reconstruction noisy.
        causal: batch -> causal embeddings [B, N, C], such as a cache; None: the tokenizer computes them.
    """

    def __init__(
        self,
        tokenizer: SeedTokenizer,
        targets: Callable[[Batch], Tensor],
        *,
        dropout: float = 0.1,
        official_dropout: bool = False,
        causal: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if causal is not None and official_dropout:
            raise ValueError("Stage2: official_dropout needs fresh causal embeddings at every step, got cached ones")
        self.tokenizer = tokenizer
        self.health = CodebookHealth(tokenizer.config.codebook_size)
        self._targets = targets
        self._causal = causal or (lambda batch: tokenizer.causal_embeddings(batch["pixels"]))
        self._official_dropout = official_dropout
        tokenizer.requires_grad_(True)
        for name in FROZEN:
            tokenizer.get_submodule(name).requires_grad_(False)
        set_dropout(tokenizer.head, dropout)
        set_dropout(tokenizer.qformer, dropout if official_dropout else 0.0)
        self.train()

    def train(self, mode: bool = True) -> Stage2:
        """Set the mode of all parts; frozen ones stay in eval mode unless `official_dropout`."""
        super().train(mode)
        for name in FROZEN:
            self.tokenizer.get_submodule(name).train(mode and self._official_dropout)
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a batch {"pixels", "captions", "keys"}; in eval mode also its codes [B, N]."""
        with torch.no_grad():
            causal = self._causal(batch)
            target = self._targets(batch)
        terms, codes = losses_of_causal(self.tokenizer, causal, target)
        if not self.training:
            return {**terms, "codes": codes}
        self.health.update(codes)
        return terms

    @torch.no_grad()
    def validate(self, batches: Batches) -> dict[str, float]:
        """Return the mean losses over one epoch on all ranks, and the share of the codebook that its codes use."""
        sums = torch.zeros(len(TERMS) + 1, dtype=torch.float64, device=self.tokenizer.device)
        used = torch.zeros(self.tokenizer.config.codebook_size, dtype=torch.float64, device=sums.device)
        for batch in batches:
            terms = self(batch)
            codes = terms["codes"]
            sums += len(codes) * torch.stack([*(terms[name].double() for name in TERMS), sums.new_ones(())])
            used[codes.flatten()] = 1
        if dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(used)
        if not sums[-1]:
            raise ValueError("validation: must have at least one pair, got none")
        means = (sums[:-1] / sums[-1]).tolist()
        return {**dict(zip(TERMS, means, strict=True)), "usage": (used > 0).double().mean().item()}

    def metrics(self) -> dict[str, float]:
        """Return the use of the codebook, for the log."""
        return self.health.metrics()
