"""`Stage1Model`: a tokenizer, a text tower, and the projections that compare a picture with a caption.

Stage 1 trains the causal Q-Former by image-text contrast between the last query, which sees all others, and the
caption's [CLS]. Source: official SEED_Tokenizer/lavis/models/blip2_models/blip2_casual.py (image-text contrast alone),
and section 3.1 of arXiv 2307.08041.

Shapes: B pairs on this rank, A pairs on all ranks, N queries, C Q-Former width, P projection width, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model.text import TextTower
from seed_fast.model.tokenizer import SeedTokenizer

INITIAL_TEMPERATURE = 0.07

# Takes the rows [B, P] of this rank, returns the rows [A, P] of all ranks, and the index at which ours begin.
Gather = Callable[[Tensor], tuple[Tensor, int]]


def alone(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows as they are: the `Gather` of a single process."""
    return rows, 0


class Stage1Model(nn.Module):
    """The model of stage 1: the tokenizer, and what its training needs in addition.

    Trainable: Q-Former, `vision_norm`, text tower, projections and temperature. The ViT is frozen (`train_vision`
    unfreezes it), and the quantizer and the decoders wait for stage 2.

    Args:
        tokenizer: the tokenizer to train; the text tower shares its Q-Former.
        vocab_size: entries of the caption vocabulary.
        projection_dim: width of the space in which pictures and captions are compared.
        max_tokens: largest number of tokens in a caption.
    """

    def __init__(
        self, tokenizer: SeedTokenizer, vocab_size: int, *, projection_dim: int = 256, max_tokens: int = 512
    ) -> None:
        super().__init__()
        width = tokenizer.config.qformer_dim
        self.tokenizer = tokenizer
        self.text = TextTower(tokenizer.config.qformer, vocab_size, max_tokens)
        self.vision_proj = nn.Linear(width, projection_dim)
        self.text_proj = nn.Linear(width, projection_dim)
        self.temperature = nn.Parameter(torch.empty(1))  # [1], not []: FSDP2 can't shard a scalar
        self.to(tokenizer.device, tokenizer.dtype)
        if tokenizer.device.type != "meta":
            self.init_weights()
        self.freeze()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw initial weights for every part but the tokenizer."""
        self.text.init_weights()
        self.vision_proj.reset_parameters()
        self.text_proj.reset_parameters()
        self.temperature.fill_(INITIAL_TEMPERATURE)

    def freeze(self, *, train_vision: bool = False) -> None:
        """Set `requires_grad` on the parameters that stage 1 trains, and clear it on the others."""
        self.requires_grad_(True)
        self.tokenizer.requires_grad_(False)
        self.tokenizer.vit.requires_grad_(train_vision)
        self.tokenizer.vision_norm.requires_grad_(True)
        self.tokenizer.qformer.requires_grad_(True)

    def image_embedding(self, causal_BNC: Tensor) -> Tensor:
        """Project the last query of causal or reconstructed embeddings [B, N, C] to unit vectors [B, P]."""
        return F.normalize(self.vision_proj(causal_BNC[:, -1]), dim=-1)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the text tower's output at [CLS], [B, C], for captions [B, T]."""
        return self.text(self.tokenizer.qformer, input_ids, attention_mask)[:, 0]

    def text_embedding(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Turn captions [B, T] into unit vectors [B, P]."""
        return F.normalize(self.text_proj(self.text_features(input_ids, attention_mask)), dim=-1)

    def loss(
        self,
        pixels: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        label_smoothing: float = 0.1,
        *,
        gather: Gather = alone,
    ) -> Tensor:
        """Return the contrastive loss [] of B pictures and their captions.

        Args:
            pixels: normalised, [B, 3, S, S].
            input_ids: [B, T] int64.
            attention_mask: [B, T], 1 for tokens and 0 for padding.
            label_smoothing: share of the target that is spread evenly over all pairs.
            gather: collects the rows of all ranks, so that every other pair of the global batch is a negative.

        Raises:
            ValueError: the numbers of pictures and captions differ.
        """
        features = self.tokenizer.vit_features(pixels)
        return self.loss_of_features(features, input_ids, attention_mask, label_smoothing, gather=gather)

    def loss_of_features(
        self,
        features: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        label_smoothing: float = 0.1,
        *,
        gather: Gather = alone,
    ) -> Tensor:
        """Return `loss` from the ViT's own output [B, L, E], which can be cached while the ViT is frozen."""
        if len(features) != len(input_ids):
            raise ValueError(
                f"Stage1Model: captions must be as many as pictures, {len(features)}, got {len(input_ids)}"
            )
        norm = self.tokenizer.vision_norm  # its affine map goes into the projections: see `QFormer.forward`
        normed = F.layer_norm(features, norm.normalized_shape, eps=norm.eps)
        causal = self.tokenizer.qformer(normed, (norm.weight, norm.bias))
        return self.loss_of_causal(causal, input_ids, attention_mask, label_smoothing, gather=gather)

    def loss_of_causal(
        self,
        causal_BNC: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        label_smoothing: float = 0.1,
        *,
        gather: Gather = alone,
    ) -> Tensor:
        """Return `loss` from causal embeddings [B, N, C]."""
        image, text = self.image_embedding(causal_BNC), self.text_embedding(input_ids, attention_mask)
        return contrastive_loss(image, text, self.temperature, label_smoothing, gather)


def contrastive_loss(
    image_BP: Tensor, text_BP: Tensor, temperature: Tensor, label_smoothing: float = 0.0, gather: Gather = alone
) -> Tensor:
    """Return the mean of two cross-entropies, picture to caption and caption to picture.

    Args:
        image_BP: unit vectors of this rank's pictures.
        text_BP: unit vectors of their captions.
        temperature: [1]; logits are cosines divided by it.
        label_smoothing: share of the target that is spread evenly over all pairs.
        gather: collects the rows of all ranks, whose other pairs are negatives.
    """
    with torch.autocast(image_BP.device.type, enabled=False):  # logits of half precision lose two digits
        if image_BP.dtype in (torch.bfloat16, torch.float16):
            image_BP, text_BP, temperature = image_BP.float(), text_BP.float(), temperature.float()
        (images_AP, begin), (texts_AP, _) = gather(image_BP), gather(text_BP)
        targets = torch.arange(begin, begin + len(image_BP), device=image_BP.device)
        to_text = F.cross_entropy(image_BP @ texts_AP.T / temperature, targets, label_smoothing=label_smoothing)
        to_image = F.cross_entropy(text_BP @ images_AP.T / temperature, targets, label_smoothing=label_smoothing)
        return (to_text + to_image) / 2
