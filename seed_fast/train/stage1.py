"""Stage 1: the causal Q-Former is trained by image-text contrast. Model and loss are in `seed_fast.model.stage1`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seed_fast.distributed import concatenate, gather_with_gradient
from seed_fast.model.captions import CaptionTokenizer
from seed_fast.model.qformer import set_dropout
from seed_fast.model.stage1 import Gather, Stage1Model, contrastive_loss
from seed_fast.train.batches import Batch, Batches


class Stage1(nn.Module):
    """The module that the loop trains in stage 1.

    Args:
        model: tokenizer, text tower and projections.
        captions: tokenizer of the captions.
        label_smoothing: share of the contrastive target that is spread over all pairs.
        dropout: dropout of the Q-Former and the text tower, at the places where BERT has it.
        gather: `gather_with_gradient`, or the official `gather_without_gradient`.
        train_vision: train the ViT too.
        features: batch -> output of the ViT [B, L, E], such as a cache; None: the ViT runs.
    """

    def __init__(
        self,
        model: Stage1Model,
        captions: CaptionTokenizer,
        *,
        label_smoothing: float = 0.1,
        dropout: float = 0.1,
        gather: Gather = gather_with_gradient,
        train_vision: bool = False,
        features: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if features is not None and train_vision:
            raise ValueError("Stage1: train_vision needs fresh ViT features at every step, got cached ones")
        if captions.size > len(model.text.word_embedding):
            rows = len(model.text.word_embedding)
            raise ValueError(f"Stage1: captions must have at most {rows} tokens, the text tower's, got {captions.size}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"Stage1: label_smoothing must be in [0, 1), got {label_smoothing}")
        self.model = model
        self._captions = captions
        self._features = features or (lambda batch: model.tokenizer.vit_features(batch["pixels"]))
        self._label_smoothing, self._gather = label_smoothing, gather
        model.freeze(train_vision=train_vision)
        set_dropout(model.tokenizer.qformer, dropout)
        set_dropout(model.text, dropout)
        self.train()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch {"pixels", "captions"}; in eval mode its unit vectors {"image", "text"} [B, P]."""
        model, device = self.model, self.model.tokenizer.device
        ids, mask = (rows.to(device) for rows in self._captions(batch["captions"]))
        features = self._features(batch)
        if self.training:
            loss = model.loss_of_features(features, ids, mask, self._label_smoothing, gather=self._gather)
            return {"loss": loss, "temperature": model.temperature.detach().mean()}
        causal = model.tokenizer.query_embeddings(model.tokenizer.norm_features(features))
        return {"image": model.image_embedding(causal), "text": model.text_embedding(ids, mask)}

    @torch.no_grad()
    def validate(self, batches: Batches) -> dict[str, float]:
        """Return the contrastive loss without smoothing and R@1 in both directions, over one epoch on all ranks.

        Two equal captions can't be told apart, so the captions of a validation set should be distinct.
        """
        nothing = self.model.temperature.new_empty(0, len(self.model.text_proj.weight))  # for a rank without a pair
        parts = [{"image": nothing, "text": nothing}, *(self(batch) for batch in batches)]
        image, text = (concatenate(torch.cat([part[name].float() for part in parts])) for name in ("image", "text"))
        if not len(image):
            raise ValueError("validation: must have at least one pair, got none")
        target = torch.arange(len(image), device=image.device)
        scores = image @ text.T
        return {
            "loss": contrastive_loss(image, text, self.model.temperature.float(), 0.0).item(),
            "text_r1": (scores.argmax(dim=1) == target).float().mean().item(),
            "image_r1": (scores.argmax(dim=0) == target).float().mean().item(),
        }
