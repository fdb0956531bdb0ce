"""The SEED tokenizer, one file per box of the paper's figure: config, vit, qformer, quantizer, decoder, tokenizer."""

from seed_fast.model.config import SeedConfig
from seed_fast.model.tokenizer import SeedTokenizer

__all__ = ["SeedConfig", "SeedTokenizer"]
