"""Language-model training: a frozen model with an adapter, or a whole model, learns rows of codes and text.

The tokens of a batch run as one row without padding; only attention knows samples (`seed_fast.lm.attention`), and only
supervised positions reach the vocabulary (`seed_fast.lm.loss`). What learns is float32. What is frozen, and what flows,
has the run's dtype, without autocast, which would make norms and what follows them float32. A model that learns as a
whole has nothing frozen and runs under autocast.

Shapes: B rows, T tokens of a row, N tokens that are no padding, D width.
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
from seed_fast.lm.attention import Packed, register
from seed_fast.lm.loss import linear_cross_entropy
from seed_fast.lm.model import LanguageModel, is_tied
from seed_fast.lm.products import use_fast_linears
from seed_fast.train.batches import Batch, Batches

LOSS_SCALE, LOSS_SCALE_WINDOW = 4.0, 256  # float16's loss scale: where it starts, and steps until it doubles
IGNORED = -100


class CodeLayer(nn.Module):
    """The paper's input side for OPT: a code goes in as one linear layer of its codebook vector.

    Args:
        codebook: [K, d], frozen.
        rows: [K + 2, D], the model's rows of the image words; those of the two markers learn.
        codes_first: whether the markers' rows follow the codes' (else they precede).

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
        """The rows of all image words, [K + 2, D]."""
        codes = self.fc(self.codebook)
        return torch.cat([codes, self.markers] if self._codes_first else [self.markers, codes])


class LanguageModelTask(nn.Module):
    """What the loop trains.

    Args:
        language: of `seed_fast.lm.model.build`; its model is changed to the fast layers.
        checkpoint_activations: keep the input of each block alone, and compute the rest again in the backward pass.
        codebook: for the paper's variant, [K, d]; the model must be untied.
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
            name = "activation_checkpointing_enable"  # as transformers 5.2 calls it
            enable = getattr(causal, name, None) or causal.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.codes = None if codebook is None else self._code_layer(codebook)
        if self.is_adapter:
            self._keep_dtype()
        self._tokens, self._since = 0, time.monotonic()
        self.train()

    @property
    def _causal(self) -> Any:
        """transformers' model, inside peft's or not."""
        return self.model.get_base_model() if self.is_adapter else self.model

    @property
    def blocks(self) -> tuple[type[nn.Module], ...]:
        """The classes that are sharded and gathered as units."""
        return (type(self._causal.get_decoder().layers[0]),)

    def _keep_dtype(self) -> None:
        """Norms that learn are float32; what leaves them has the dtype of what is frozen, once for all who read it."""
        dtype = next(p.dtype for p in self.model.parameters() if not p.requires_grad)
        for module in self.model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.register_forward_hook(lambda module, given, out: out.to(dtype))

    def _code_layer(self, codebook: Tensor) -> CodeLayer:
        if not self.is_adapter or is_tied(self._causal):
            raise ValueError("codebook: codes through a linear layer need an adapter on a model with untied words")
        rows = self._causal.get_input_embeddings().token_adapter
        learned = rows.trainable_tokens_delta["default"].requires_grad_(False)
        codes_first = self.vocabulary.first_code < self.vocabulary.begin_image
        return CodeLayer(codebook, learned, codes_first=codes_first).to(learned.device)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The mean loss over supervised tokens of a batch {"ids", "labels", "positions", "segments"}, each [B, T].

        Over those of all ranks, that is: ranks weigh by how many they have.
        """
        total, count, tokens = self._sum(batch)
        self._tokens += tokens
        counts = torch.tensor([float(count), 1.0], device=total.device)
        if dist.is_initialized() and self.training:
            dist.all_reduce(counts)
        # DistributedDataParallel averages over ranks: times their number, over the tokens of all.
        return {"loss": total * (counts[1] / counts[0].clamp(min=1))}

    def _sum(self, batch: Batch) -> tuple[Tensor, int, int]:
        """The loss summed over supervised tokens, how many of these there are, and how many tokens in all."""
        ids, labels, segments = batch["ids"], batch["labels"], batch["segments"]
        packed = Packed.of_segments(segments)
        follows = F.pad((segments[:, 1:] == segments[:, :-1]) & (labels[:, 1:] != IGNORED), (0, 1))
        supervised = follows.flatten()[packed.kept]
        targets = F.pad(labels[:, 1:], (0, 1)).flatten()[packed.kept][supervised]
        flat, positions = (x.flatten()[packed.kept][None] for x in (ids, batch["positions"]))
        device = ids.device.type
        with torch.autocast(device, enabled=False) if self.is_adapter else nullcontext():
            body = self._causal.get_decoder()
            words = {"input_ids": flat} if self.codes is None else {"inputs_embeds": self._embed(flat, self.codes)}
            hidden = body(**words, position_ids=positions, packed=packed, use_cache=False).last_hidden_state
            weights = self._output_parts()
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
            if self.is_adapter:
                dtype = weights[0].dtype
            total = linear_cross_entropy(hidden[0, supervised].to(dtype), weights, targets)
            return total, len(targets), flat.shape[1]

    def _embed(self, ids: Tensor, codes: CodeLayer) -> Tensor:
        rows = self._causal.get_input_embeddings().token_adapter
        return embed_parts(ids, rows.base_layer.weight, rows.token_indices["default"][0], codes())

    def _output_parts(self) -> list[Tensor]:
        """The output matrix, in parts that learn and parts that don't."""
        head = self._causal.get_output_embeddings()
        rows = getattr(head, "token_adapter", None)
        return rows.parts() if isinstance(rows, TokenRows) else [head.weight]

    @torch.no_grad()
    def validate(self, batches: Batches) -> dict[str, float]:
        """The mean loss over all supervised tokens of one epoch, on all ranks, and its perplexity."""
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
        """Tokens per second since the last call, padding not counted; over all ranks, if all go like this one."""
        now = time.monotonic()
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        speed = ranks * self._tokens / max(1e-9, now - self._since)
        self._tokens, self._since = 0, now
        return {"tokens_per_s": speed}

    def folded(self) -> dict[str, Tensor]:
        """What `seed_fast.lm.model.save` stores for layers that peft doesn't know, by the names of parameters."""
        if self.codes is None:
            return {}
        rows = self._causal.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
        name = next(name for name, p in self.model.named_parameters() if p is rows)
        return {name: self.codes().detach().cpu()}
