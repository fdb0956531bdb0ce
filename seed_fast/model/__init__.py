"""The SEED tokenizer, one file per box of the paper's figure: config, vit, qformer, quantizer, decoder, tokenizer.

`fast*.py`, `passes`, `products`, `calibration` and `graphs` are the inference plan that `SeedTokenizer.fast` returns.
"""

from seed_fast.model.config import SeedConfig
from seed_fast.model.tokenizer import SeedTokenizer

__all__ = ["SeedConfig", "SeedTokenizer"]
