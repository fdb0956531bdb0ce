"""Tiny language models with random weights, whose tokenizers know image tokens."""

from __future__ import annotations

import pytest
import torch

from seed_fast.lm.model import LanguageModel
from seed_fast.lm.vocabulary import add_image_tokens
from tests.lm import tiny

NUM_CODES = 5  # of an image


@pytest.fixture(scope="session", params=["opt", "llama"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    """A model of each family, whose layers have wide weights, so that what it says depends on all that it reads."""
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    tokenizer = tiny.tokenizer(request.param)
    vocabulary = add_image_tokens(tokenizer, tiny.CODEBOOK)
    model = AutoModelForCausalLM.from_config(tiny.config(request.param, vocab_size=len(tokenizer) + 3)).eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.ndim > 1:  # narrow embeddings, or OPT, which uses them for its output too, would echo its input
                scale = 0.05 if "embed" in name or "lm_head" in name else 0.4
                values.copy_(scale * torch.randn(values.shape, generator=draws))
    return LanguageModel(model, tokenizer, vocabulary)
