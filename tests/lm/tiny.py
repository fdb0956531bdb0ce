"""The smallest language models of both families, from configs: random weights, a word tokenizer, nothing downloaded."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ["A", "photo", "of", "Generate", "an", "image", "a", "red", "green", "blue", "big", "small", "circle", "square"]
CODEBOOK = 24


def tokenizer(family: str = "opt"):
    """Words by whitespace. OPT: </s> = 2 at both ends, <pad> = 1. LLaMA: <s> = 1, </s> = 2, <unk> = 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"] if family == "opt" else ["<unk>", "<s>", "</s>"]
    vocab = {word: number for number, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "</s>", "pad_token": "<pad>"} if family == "opt" else {"bos_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>", **names)


def config(family: str = "opt", **changes):
    """Two layers of width 32; OPT's embedding has 7 rows more than its tokenizer has words, as the real one."""
    from transformers import LlamaConfig, OPTConfig

    size = len(tokenizer(family))
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    if family == "opt":
        own = {"vocab_size": size + 7, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0, "pad_token_id": 1}
        return OPTConfig(**{**common, **own, "bos_token_id": 2, "eos_token_id": 2, **changes})
    own = {"vocab_size": size, "intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": False}
    return LlamaConfig(**{**common, **own, "bos_token_id": 1, "eos_token_id": 2, **changes})


def base(folder: Path, family: str = "opt", **changes) -> Path:
    """A folder with a model and its tokenizer, as transformers saves them."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(family, **changes))
    with torch.no_grad():  # far from the initial values, so that no two parts cancel or vanish
        generator = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return folder


def store(folder: Path, count: int = 96, codes: int = 4, codebook: int = CODEBOOK) -> Path:
    """A store of captions whose codes follow from their words, so that there is something to learn."""
    from seed_fast.data.shards import WHOLE
    from seed_fast.data.tokens import TokenizerIdentity, TokensWriter

    colours, sizes, forms = ("red", "green", "blue"), ("big", "small"), ("circle", "square")
    samples = []
    for number in range(count):
        colour, size, form = number % 3, number // 3 % 2, number // 6 % 2
        named = [colour, 3 + size, 5 + form, 7 + colour]
        text = f"a {sizes[size]} {colours[colour]} {forms[form]}"
        samples.append({"kind": "caption", "key": str(number), "codes": named[:codes], "text": text})
    writer = TokensWriter(folder, TokenizerIdentity("tiny", "abc", codebook, codes), WHOLE)
    writer.open({"inputs": "tiny"}, resume=False)
    writer.append(samples, next_place=1)
    writer.finish()
    return folder
