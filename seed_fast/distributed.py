"""The processes (ranks) of a run: their numbers under torchrun, and what they exchange; without torchrun there is one.

Parameters may be whole on every rank, or sharded by FSDP2; `whole` and `sharded_like` convert between the two.
"""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seed_fast._stops import waiting_for_others


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Args:
        rank: its number, from 0.
        world: number of processes.
        device: where it computes.
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Join the other processes of torchrun; without torchrun this is the only process.

        Raises:
            OSError: the processes can't reach each other.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls(0, 1, device)
        try:
            with waiting_for_others():
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
        except RuntimeError as error:
            raise OSError(f"torchrun: the ranks did not find each other: {error}") from error
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def leave(self) -> None:
        """End the exchange after all ranks have called this."""
        leave(together=True)

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Average scalars over ranks; every rank must call with the same names."""
        stacked = torch.stack([value.detach().double().to(self.device) for value in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return True on every rank if the flag is set on any. Every rank must call."""
        if self.world == 1:
            return flag
        total = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(total)
        return bool(total.item())

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value on every rank. Every rank must call."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def of_all(self, value: Any) -> list[Any]:
        """Return the values of all ranks in their order. Every rank must call."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value)
        return box


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes of torchrun for the block; without torchrun this is the only process.

    The end of the block waits for all ranks. After an error this rank leaves at once, so that torchrun ends the others.

    Raises:
        OSError: the processes can't reach each other.
    """
    finished = False
    try:
        yield Ranks.join(device)
        finished = True
    finally:
        leave(together=finished)


def leave(*, together: bool) -> None:
    """End the exchange; `together` waits for all ranks, so that none closes a connection that another one still reads.

    DistributedDataParallel is part of reference cycles and holds the process group. It is collected here, before the
    group is destroyed: otherwise gloo's threads live until the interpreter ends, and one that then waits for its lock
    aborts the process.
    """
    if not dist.is_initialized():
        return
    with waiting_for_others():
        if together:
            dist.barrier()
        gc.collect()
        dist.destroy_process_group()


class _GatherRows(torch.autograd.Function):
    """Gathers the rows of all ranks; a row's gradient is the sum of its gradients on all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.begin, ctx.count = dist.get_rank() * len(rows), len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.begin : ctx.begin + ctx.count]


def gather_with_gradient(rows: Tensor) -> tuple[Tensor, int]:
    """Gather rows [B, P] of every rank. Returns [world * B, P], and the index where this rank's rows begin.

    DistributedDataParallel averages over ranks, so the gradient is that of one process with the global batch.
    """
    if not dist.is_initialized():
        return rows, 0
    return _GatherRows.apply(rows), dist.get_rank() * len(rows)


def gather_without_gradient(rows: Tensor) -> tuple[Tensor, int]:
    """Gather rows as the official `concat_all_gather` does: those of all ranks, also this one's, get no gradient."""
    return gather_with_gradient(rows.detach())


def concatenate(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, whose numbers may differ, without a gradient."""
    if not dist.is_initialized():
        return rows
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows.cpu())
    return torch.cat(parts).to(rows.device)


def wrap(task: nn.Module, ranks: Ranks, *, fsdp: bool, units: tuple[type[nn.Module], ...]) -> nn.Module:
    """Prepare a module for several ranks: as DistributedDataParallel, or with its parameters sharded (FSDP2).

    Args:
        task: the module; with a single rank and without `fsdp` it is returned as it is.
        ranks: this process among all.
        fsdp: shard the parameters.
        units: classes of modules that FSDP2 shards and gathers as units.

    Raises:
        ImportError: `fsdp` with torch < 2.6.
        ValueError: `fsdp` without torchrun.
    """
    if fsdp:
        if not dist.is_initialized():
            raise ValueError("fsdp shards over the processes of torchrun, and there is no torchrun")
        try:
            from torch.distributed.fsdp import fully_shard
        except ImportError as error:
            raise ImportError(f"fsdp needs torch >= 2.6, got {torch.__version__}") from error
        for module in task.modules():
            if isinstance(module, units):
                fully_shard(module)
        fully_shard(task)
        return task
    if ranks.world == 1:
        return task
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    # Buffers are equal on all ranks without being broadcast. Newer versions of torch renamed the argument, and warn
    # of the old name.
    parameters = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    no_broadcast: dict[str, Any] = {name: False}
    return DistributedDataParallel(task, device_ids=devices, **no_broadcast)


def synchronise(module: nn.Module, wanted: bool) -> Callable[[], Any]:
    """Return a context in which backward passes exchange gradients, or (`wanted` False) only add them up locally."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext if wanted else module.no_sync
    set_wanted = getattr(module, "set_requires_gradient_sync", None)  # FSDP2's
    if set_wanted is not None:
        set_wanted(wanted)
    return nullcontext


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor on the CPU; a sharded one is gathered, so every rank must call."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Split a whole tensor over the ranks as `like` is split."""
    if not hasattr(like, "full_tensor") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name and the parameter of everything that an optimizer changes."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def is_sharded(module: nn.Module) -> bool:
    """Return True if any parameter is split over several ranks (FSDP2)."""
    return any(hasattr(p, "full_tensor") for p in module.parameters())
