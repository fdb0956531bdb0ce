"""Count what each stage of encoding has to do, from the sizes alone: floating-point operations, and bytes moved.

Operations are those of matrix products, attention and the comparison with the codebook; a multiplication and an
addition are two. Causal attention counts in full, because the plain modules compute it so. Norms, GELU, softmax and
residuals count as zero.

Bytes are those that must move if everything between two products is fused into them: each weight once per batch, and
the inputs and outputs of every product once. Attention is one step, which reads queries, keys and values and writes its
result. Data in a cache doesn't move through memory, so a small model can show more than the copy bandwidth.

Shapes: B images, L ViT tokens, E ViT width, N queries, C Q-Former width, K codebook entries, D code width.
"""

from __future__ import annotations

from dataclasses import dataclass

from seed_fast.model.config import SeedConfig

PLANS = ("plain", "absorbed", "projected")  # the plain modules, or the fast plan by its form of cross-attention
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
QFORMER_PARTS = ("self-attention", "cross-attention", "FFN")


@dataclass(frozen=True)
class Work:
    """Operations, and numbers that move: weights once per batch, activations for the whole batch."""

    flops: int = 0
    weights: int = 0
    activations: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.weights + other.weights, self.activations + other.activations)

    def __mul__(self, times: int) -> Work:
        return Work(self.flops * times, self.weights * times, self.activations * times)


@dataclass(frozen=True)
class Cost:
    """Operations and bytes of a stage; `dtype` is the dtype of its products."""

    flops: int
    weight_bytes: int
    activation_bytes: int
    dtype: str

    @property
    def bytes(self) -> int:
        """All bytes that move."""
        return self.weight_bytes + self.activation_bytes


def costs(config: SeedConfig, batch: int, dtype: str = "float32", plan: str = "plain") -> dict[str, Cost]:
    """Return the cost of encoding one batch, by stage, and by part of the Q-Former ("Q-Former/FFN" and so on).

    Args:
        config: sizes of the model.
        batch: images per batch.
        dtype: dtype of the products, "float32", "bfloat16" or "float16".
        plan: "plain" (the modules), or the fast plan's "absorbed" or "projected" cross-attention.

    Raises:
        ValueError: an unknown dtype or plan, or a batch without images.

    Examples:
        >>> from seed_fast import SeedConfig
        >>> round(costs(SeedConfig.preset("seed-2"), 1)["ViT"].flops / 1e9)
        521
    """
    if plan not in PLANS:
        raise ValueError(f"costs: plan must be one of {', '.join(PLANS)}, got {plan!r}")
    if dtype not in ITEMSIZE:
        raise ValueError(f"costs: dtype must be one of {', '.join(ITEMSIZE)}, got {dtype!r}")
    if batch < 1:
        raise ValueError(f"costs: batch must be at least 1, got {batch}")
    parts = _qformer(config, batch, plan)
    values = batch * 3 * config.image_size**2
    start = Work(weights=config.num_codes * config.qformer_dim + (2 * config.qformer_dim if plan == "plain" else 0))
    whole = sum(parts.values(), start)
    # The plan keeps the two small products that decide the codes in float32.
    last = dtype if plan == "plain" else "float32"
    found = {
        "normalise": Cost(0, 0, values * (1 + ITEMSIZE["float32"]), "float32"),  # uint8 in, float32 out
        "ViT": _cost(_vit(config, batch), dtype),
        "Q-Former": _cost(whole, dtype),
        "nearest code": _cost(_lookup(config, batch), last),
    }
    return found | {f"Q-Former/{name}": _cost(work, dtype) for name, work in parts.items()}


def _cost(work: Work, dtype: str) -> Cost:
    """Return the work with its numbers as bytes of this dtype."""
    size = ITEMSIZE[dtype]
    return Cost(work.flops, size * work.weights, size * work.activations, dtype)


def _linear(rows: int, into: int, out: int, bias: int | None = None) -> Work:
    """Return the work of [rows, into] times weights [into, out], plus a bias of `bias` (default: `out`) numbers."""
    return Work(2 * rows * into * out, into * out + (out if bias is None else bias), rows * (into + out))


def _product(count: int, rows: int, inner: int, columns: int, *, weights: bool = False) -> Work:
    """Return the work of `count` products [rows, inner] times [inner, columns]; the second factor may be weights."""
    right = count * inner * columns
    moved = count * rows * (inner + columns)
    return Work(2 * count * rows * inner * columns, right if weights else 0, moved if weights else moved + right)


def _attention(batch: int, queries: int, keys: int, width: int) -> Work:
    """Return the work of softmax(q k^T) v; `width` is that of all heads together."""
    return Work(4 * batch * queries * keys * width, 0, 2 * batch * (queries + keys) * width)


def _norm(width: int) -> Work:
    """Return the work of a layer norm: reading its weights."""
    return Work(weights=2 * width)


def _vit(config: SeedConfig, batch: int) -> Work:
    """Return the work of the ViT and the norm that follows it."""
    tokens, width, ffn = config.num_tokens, config.vit_dim, config.vit_ffn_dim
    rows = batch * tokens
    block = (
        _norm(width) * 2
        + _linear(rows, width, 3 * width, bias=2 * width)  # keys have no bias
        + _attention(batch, tokens, tokens, width)
        + _linear(rows, width, width)
        + _linear(rows, width, ffn)
        + _linear(rows, ffn, width)
    )
    patches = _linear(batch * (tokens - 1), 3 * config.patch_size**2, width)
    positions = Work(weights=(tokens + 1) * width)  # and the class token
    return patches + positions + block * config.vit_depth + _norm(width)


def _qformer(config: SeedConfig, batch: int, plan: str) -> dict[str, Work]:
    """Return {part of the Q-Former: work of all its layers together}."""
    queries, width = config.num_codes, config.qformer_dim
    rows, depth = batch * queries, config.qformer_depth
    with_cross = -(-depth // config.cross_attention_every)
    self_attention = (
        _linear(rows, width, 3 * width) + _attention(batch, queries, queries, width) + _linear(rows, width, width)
    ) + _norm(width)
    ffn = _linear(rows, width, config.qformer_ffn_dim) + _linear(rows, config.qformer_ffn_dim, width) + _norm(width)
    # The plan's first self-attention is a constant.
    times = (depth, with_cross, depth) if plan == "plain" else (depth - 1, with_cross, depth)
    cross = {"plain": _plain_cross, "absorbed": _absorbed_cross, "projected": _projected_cross}[plan]
    works = (self_attention * times[0], cross(config, batch, times[1]), ffn * times[2])
    return dict(zip(QFORMER_PARTS, works, strict=True))


def _plain_cross(config: SeedConfig, batch: int, layers: int) -> Work:
    """Return the work of cross-attention in the plain modules: every layer computes its own keys and values."""
    tokens, width, queries = config.num_tokens, config.qformer_dim, config.num_codes
    rows = batch * queries
    layer = _linear(rows, width, width) * 2 + _linear(batch * tokens, config.vit_dim, width) * 2
    return (layer + _attention(batch, queries, tokens, width) + _norm(width)) * layers


def _projected_cross(config: SeedConfig, batch: int, layers: int) -> Work:
    """Return the work of "projected": one product computes the keys and values of all layers."""
    tokens, width, queries = config.num_tokens, config.qformer_dim, config.num_codes
    rows = batch * queries
    each = _attention(batch, queries, tokens, width) + _linear(rows, width, width) + _norm(width)
    # The queries of the first layer are the same for every image.
    asking = _linear(queries, width, width) + _linear(rows, width, width) * (layers - 1)
    return _linear(batch * tokens, config.vit_dim, 2 * width * layers) + asking + each * layers


def _absorbed_cross(config: SeedConfig, batch: int, layers: int) -> Work:
    """Return the work of "absorbed": queries pass through the key and value maps, and meet the features directly."""
    tokens, width, queries, heads = config.num_tokens, config.qformer_dim, config.num_codes, config.qformer_heads
    features, rows = config.vit_dim, batch * queries
    absorb = _product(heads, rows, width // heads, features, weights=True)
    each = (
        _product(batch, queries * heads, features, tokens)
        + _product(batch, queries * heads, tokens, features)
        + _product(heads, rows, features, width // heads, weights=True)
        + _linear(rows, width, width)
        + _norm(width)
    )
    # The absorbed queries of the first layer are the same for every image.
    return (_linear(rows, width, width) + absorb) * (layers - 1) + each * layers


def _lookup(config: SeedConfig, batch: int) -> Work:
    """Return the work of the two products before the lookup, and of the comparison with the codebook."""
    rows, width, code = batch * config.num_codes, config.qformer_dim, config.code_dim
    nearest = Work(2 * rows * config.codebook_size * code, config.codebook_size * code, rows * code)
    return _linear(rows, width, width) + _linear(rows, width, code) + nearest
