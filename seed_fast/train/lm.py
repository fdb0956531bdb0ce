"""Language-model training: an adapter on a frozen model, or a whole model, is trained on rows of codes and text.

The tokens of a batch run through the model as one row without padding. Only attention knows where samples begin
(`seed_fast.lm.packed_attention`), and logits are computed for supervised positions only (`seed_fast.lm.loss`).

Trained parameters are float32. Frozen ones and activations have the run's dtype, without autocast, which would make
norms and everything after them float32. A model that is trained as a whole has no frozen part and runs under autocast.

Shapes: B rows, T tokens of a row, N tokens without padding, D width, K codes, d width of a codebook entry.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from seed_fast.lm.adapter import TokenRows, embed_parts, use_fast_layers
from seed_fast.lm.loss import linear_cross_entropy
from seed_fast.lm.matmul import use_fast_linears
from seed_fast.lm.model import LanguageModel, is_tied
from seed_fast.lm.packed_attention import Packed, register
from seed_fast.train.batches import Batch, Batches

LOSS_SCALE, LOSS_SCALE_WINDOW = 4.0, 256  # float16's initial loss scale, and steps without overflow until it doubles
IGNORED = -100


class CodeLayer(nn.Module):
    """Embeddings of image tokens as in the paper for OPT: a code's is one linear layer of its codebook vector.

    Args:
        codebook: [K, d], frozen.
        rows: [K + 2, D], the model's embeddings of the image tokens; the two markers are initialised with theirs.
        codes_first: True if the markers' ids follow the codes', False if they precede.

    Source: SEED paper (arXiv 2307.08041), section 4.
    """

    codebook: Tensor

    def __init__(self, codebook: Tensor, rows: Tensor, *, codes_first: bool) -> None:
        super().__init__()
        if len(rows) != len(codebook) + 2:
            raise ValueError(f"CodeLayer: the codebook must have {len(rows) - 2} entries, got {len(codebook)}")
        self.register_buffer("codebook", codebook.detach().float().clone())
        self.fc = nn.Linear(codebook.shape[1], rows.shape[1])
        self.markers = nn.Parameter((rows[-2:] if codes_first else rows[:2]).detach().float().clone())
        self._codes_first = codes_first

    def forward(self) -> Tensor:
        """Return the embeddings of all image tokens, [K + 2, D]."""
        codes = self.fc(self.codebook)
        return torch.cat([codes, self.markers] if self._codes_first else [self.markers, codes])


class LanguageModelTask(nn.Module):
    """The module that the loop trains: a language model and its loss.

    Args:
        language: from `seed_fast.lm.model.build`; layers of its model are replaced by faster ones.
        checkpoint_activations: keep only the input of each block, and recompute the rest in the backward pass.
        codebook: [K, d], for embeddings of codes by a `CodeLayer`; the output head must have weights of its own.
    """

    def __init__(
        self, language: LanguageModel, *, checkpoint_activations: bool = False, codebook: Tensor | None = None
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.vocabulary = language
        self.is_adapter = hasattr(self.model, "peft_config")
        if self.is_adapter:
            use_fast_layers(self.model)
        else:
            use_fast_linears(self.model)
        causal = self._causal
        causal.set_attn_implementation(register())
        if checkpoint_activations:
            name = "activation_checkpointing_enable"  # its name since transformers 5.2
            enable = getattr(causal, name, None) or causal.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.codes = None if codebook is None else self._code_layer(codebook)
        if self.is_adapter:
            self._keep_dtype()
        self._tokens, self._since = 0, time.monotonic()
        self.train()

    @property
    def _causal(self) -> Any:
        """transformers' model, which may be inside peft's."""
        return self.model.get_base_model() if self.is_adapter else self.model

    @property
    def blocks(self) -> tuple[type[nn.Module], ...]:
        """The classes of modules that FSDP2 shards and gathers as units."""
        return (type(self._causal.get_decoder().layers[0]),)

    def _keep_dtype(self) -> None:
        """Cast the output of trained norms, which are float32, to the dtype of the frozen weights."""
        dtype = next(p.dtype for p in self.model.parameters() if not p.requires_grad)
        for module in self.model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.register_forward_hook(lambda module, given, out: out.to(dtype))

    def _code_layer(self, codebook: Tensor) -> CodeLayer:
        """Make the layer that takes the place of the trained embedding rows."""
        if not self.is_adapter or is_tied(self._causal):
            raise ValueError(
                "codebook: codes through a linear layer need an adapter on a model with an untied output head"
            )
        rows = self._causal.get_input_embeddings().token_adapter
        learned = rows.trainable_tokens_delta["default"].requires_grad_(False)
        codes_first = self.vocabulary.first_code < self.vocabulary.begin_image
        return CodeLayer(codebook, learned, codes_first=codes_first).to(learned.device)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss"}, the mean over supervised tokens of a batch {"ids", "labels", "positions", "segments"}.

        Each tensor is [B, T]. In training the mean is over the tokens of all ranks, so a rank with more of them has
        more weight.
        """
        total, count, tokens = self._sum(batch)
        self._tokens += tokens
        counts = torch.tensor([float(count), 1.0], device=total.device)
        if dist.is_initialized() and self.training:
            dist.all_reduce(counts)
        # DistributedDataParallel averages gradients over ranks, so the sum over this rank's tokens is multiplied by the
        # number of ranks and divided by the number of supervised tokens on all of them.
        return {"loss": total * (counts[1] / counts[0].clamp(min=1))}

    def _sum(self, batch: Batch) -> tuple[Tensor, int, int]:
        """Return the loss summed over supervised tokens, their number, and the number of all tokens."""
        ids, labels, segments = batch["ids"], batch["labels"], batch["segments"]
        # Drop padding. A position predicts the next token if that is supervised and of the same sample.
        packed = Packed.of_segments(segments)
        follows = F.pad((segments[:, 1:] == segments[:, :-1]) & (labels[:, 1:] != IGNORED), (0, 1))
        supervised = follows.flatten()[packed.kept]
        targets = F.pad(labels[:, 1:], (0, 1)).flatten()[packed.kept][supervised]
        flat, positions = (x.flatten()[packed.kept][None] for x in (ids, batch["positions"]))
        # Hidden states of all tokens, logits of supervised ones.
        device = ids.device.type
        with torch.autocast(device, enabled=False) if self.is_adapter else nullcontext():
            body = self._causal.get_decoder()
            inputs = {"input_ids": flat} if self.codes is None else {"inputs_embeds": self._embed(flat, self.codes)}
            hidden = body(**inputs, position_ids=positions, packed=packed, use_cache=False).last_hidden_state
            weights = self._output_parts()
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
            if self.is_adapter:
                dtype = weights[0].dtype
            total = linear_cross_entropy(hidden[0, supervised].to(dtype), weights, targets)
            return total, len(targets), flat.shape[1]

    def _embed(self, ids: Tensor, codes: CodeLayer) -> Tensor:
        """Look ids [1, N] up, image tokens in the output of the code layer. Returns [1, N, D]."""
        rows = self._causal.get_input_embeddings().token_adapter
        return embed_parts(ids, rows.base_layer.weight, rows.token_indices["default"][0], codes())

    def _output_parts(self) -> list[Tensor]:
        """Return the output matrix in parts, trained and frozen, in the order of its rows."""
        head = self._causal.get_output_embeddings()
        rows = getattr(head, "token_adapter", None)
        return rows.parts() if isinstance(rows, TokenRows) else [head.weight]

    @torch.no_grad()
    def validate(self, batches: Batches) -> dict[str, float]:
        """Return the mean loss over the supervised tokens of one epoch on all ranks, and the perplexity."""
        sums = torch.zeros(2, dtype=torch.float64, device=next(self.parameters()).device)
        for batch in batches:
            batch = {name: value.to(sums.device) for name, value in batch.items()}
            total, count, _ = self._sum(batch)
            sums += torch.tensor([total.item(), count], dtype=torch.float64, device=sums.device)
        if dist.is_initialized():
            dist.all_reduce(sums)
        if not sums[1]:
            raise ValueError("validation: must have at least one supervised token, got none")
        mean = sums[0] / sums[1]
        return {"loss": mean.item(), "perplexity": mean.exp().item()}

    def metrics(self) -> dict[str, float]:
        """Return tokens per second since the last call, without padding; this rank's, times the number of ranks."""
        now = time.monotonic()
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        speed = ranks * self._tokens / max(1e-9, now - self._since)
        self._tokens, self._since = 0, now
        return {"tokens_per_s": speed}

    def folded(self) -> dict[str, Tensor]:
        """Return what `seed_fast.lm.model.save` stores in place of layers that peft doesn't know, by name."""
        if self.codes is None:
            return {}
        rows = self._causal.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
        name = next(name for name, p in self.model.named_parameters() if p is rows)
        return {name: self.codes().detach().cpu()}
