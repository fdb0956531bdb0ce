"""Stable unCLIP whose guidance points away from an image: a negative image embedding in place of zeros.

Source: official pipeline_stable_unclip_img2img.py, which adds `negative_image_embeds` to the pipeline of diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableUnCLIPImg2ImgPipeline
from torch import Tensor


class NegativeUnCLIPPipeline(StableUnCLIPImg2ImgPipeline):
    """A `StableUnCLIPImg2ImgPipeline` whose `image_embeds` may be pairs, [B, 2, G]: an embedding and its negative.

    Classifier-free guidance compares the embedding with its negative; with `image_embeds` [B, G], as in diffusers, with
    zeros. Such embeddings need no `image_encoder` and no `feature_extractor`: both parts may be None.

    Each generator of the call's list draws for one picture: noise for the embedding, noise for the negative if there is
    one, and the initial latents. So a picture is reproducible at every noise level, and doesn't depend on its batch.
    """

    def _encode_image(
        self,
        image: Any,
        device: Any,
        batch_size: int,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        noise_level: Any,
        generator: Any,
        image_embeds: Tensor | None,
    ) -> Tensor:
        """Return the class labels of the UNet: [B, 2G], or with guidance [2B, 2G], the negative ones first."""
        this: Any = self  # diffusers has no types
        if image_embeds is None:
            of_diffusers: Any = super()
            return of_diffusers._encode_image(
                image, device, batch_size, num_images_per_prompt, do_classifier_free_guidance, noise_level, generator,
                None,
            )  # fmt: skip
        pair = image_embeds.to(device, this.unet.dtype)
        positive, negative = pair.unbind(1) if pair.ndim == 3 else (pair, None)

        def labels(embeddings: Tensor) -> Tensor:
            noisy = this.noise_image_embeddings(embeddings, noise_level=int(noise_level), generator=generator)
            return noisy.repeat_interleave(num_images_per_prompt, 0)

        wanted = labels(positive)
        if not do_classifier_free_guidance:
            return wanted
        unwanted = torch.zeros_like(wanted) if negative is None else labels(negative)
        return torch.cat([unwanted, wanted])
