"""Names of the official checkpoints: one table per format, from our names to theirs.

Conversion only renames: every tensor of ours has the shape and the values of an official one. A row pairs a pattern of
our name with the official name; `{i}` stands for a layer number, `*` for the rest of the name. The first matching row
counts.

Sources: official models/seed_qformer/*.py for SEED-2; branch v1, models/visual_tokenizer.py for SEED-1.
"""

from __future__ import annotations

import re

import torch

from seed_fast.model.config import SeedConfig
from seed_fast.model.tokenizer import SeedTokenizer

VIT_PREFIX = "visual_encoder."  # eva_vit_g.pth holds the same names without it
POSITION_IDS = torch.Size([1, 512])  # BERT's buffer 0..511: in every official file, though queries don't use it


def _qformer_rows(ours: str, queries: str, bert: str) -> tuple[tuple[str, str], ...]:
    """Return the rows of one Q-Former, from our prefix, the official name of its queries and that of its BERT."""
    layer, official = f"{ours}.layers.{{i}}", f"{bert}.encoder.layer.{{i}}"
    return (
        (f"{ours}.query_tokens", queries),
        (f"{ours}.norm.*", f"{bert}.embeddings.LayerNorm.*"),
        (f"{layer}.self_attention.out.*", f"{official}.attention.output.dense.*"),
        (f"{layer}.self_attention.norm.*", f"{official}.attention.output.LayerNorm.*"),
        (f"{layer}.self_attention.*", f"{official}.attention.self.*"),
        (f"{layer}.cross_attention.out.*", f"{official}.crossattention.output.dense.*"),
        (f"{layer}.cross_attention.norm.*", f"{official}.crossattention.output.LayerNorm.*"),
        (f"{layer}.cross_attention.*", f"{official}.crossattention.self.*"),
        (f"{layer}.ffn.up.*", f"{official}.intermediate_query.dense.*"),
        (f"{layer}.ffn.down.*", f"{official}.output_query.dense.*"),
        (f"{layer}.ffn.norm.*", f"{official}.output_query.LayerNorm.*"),
    )


_ENCODER = (
    ("vit.position_embedding", VIT_PREFIX + "pos_embed"),
    ("vit.patch_embed.*", VIT_PREFIX + "patch_embed.proj.*"),
    ("vit.*", VIT_PREFIX + "*"),
    ("vision_norm.*", "ln_vision.*"),
    *_qformer_rows("qformer", "query_tokens", "Qformer.bert"),
    ("quantizer.codebook", "quantize.embedding.weight"),
    ("quantizer.encode_task.*", "encode_task_layer.*"),
    ("quantizer.decode_task.*", "decode_task_layer.*"),
)
_REVERSE = _qformer_rows("head.qformer", "reverse_tokens", "Reverse_Qformer.bert")

SEED_1 = (
    *_ENCODER,
    ("generator.position_embedding", "pos_embed_text"),
    ("generator.blocks.*", "blocks_text.*"),
    *_REVERSE,
    ("head.proj.*", "distill_text_proj.*"),
)
SEED_2 = (
    *_ENCODER,
    ("reconstructor.position_embedding", "pos_embed"),
    ("reconstructor.blocks.*", "blocks.*"),
    ("generator.position_embedding", "pos_embed_image"),
    ("generator.blocks.*", "blocks_image.*"),
    ("head.down.*", "image_down.*"),
    *_REVERSE,
    ("head.proj.*", "distill_image_proj.*"),
)


def rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """Return the official name of our `name`, by the first matching row of `table`."""
    for ours, official in table:
        pattern = re.escape(ours).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<rest>.+)")
        match = re.fullmatch(pattern, name)
        if match:
            groups = match.groupdict()
            return official.replace("{i}", groups.get("i", "")).replace("*", groups.get("rest", ""))
    raise KeyError(f"{name} is in no row of the table of official names")


def official_names(config: SeedConfig) -> dict[str, str]:
    """Return {our name: official name} for every parameter of a model of this config."""
    table = SEED_1 if config.generates_text else SEED_2
    return {name: rename(name, table) for name in parameter_shapes(config)}


def parameter_shapes(config: SeedConfig) -> dict[str, torch.Size]:
    """Return {our name: shape} for every parameter of a model of this config, without allocating weights."""
    return {name: tensor.shape for name, tensor in SeedTokenizer(config, device="meta").state_dict().items()}


def constant_names(config: SeedConfig) -> list[str]:
    """Return the official names of the `position_ids` buffers, which official files hold and our models don't."""
    branches = ["Qformer", "Reverse_Qformer"] if config.head == "reverse_qformer" else ["Qformer"]
    return [f"{branch}.bert.embeddings.position_ids" for branch in branches]


def recognise(names: set[str]) -> SeedConfig:
    """Recognise the preset of a checkpoint by its official tensor names.

    The order matters: the released seed_quantizer.pt has surplus tensors of branches that its model doesn't use.

    Raises:
        ValueError: the names belong to none of the generation heads.
    """
    roots = {name.split(".")[0] for name in names}
    if "image_down" in roots:
        return SeedConfig.preset("seed-2")
    if "Reverse_Qformer" in roots and "blocks_image" in roots:
        layers = {name.split(".")[4] for name in names if name.startswith("Reverse_Qformer.bert.encoder.layer.")}
        preset = SeedConfig.preset("seed-2-rqf").to_dict()
        return SeedConfig.from_dict({**preset, "reverse_depth": max(1, len(layers))})
    if "Reverse_Qformer" in roots and "blocks_text" in roots:
        return SeedConfig.preset("seed-1")
    raise ValueError(
        "must hold a SEED head (image_down.*, or Reverse_Qformer.* with blocks_image.* or blocks_text.*), got "
        + (", ".join(sorted(roots)[:8]) or "no tensors")
    )
