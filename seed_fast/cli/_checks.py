"""Checks that commands share: they turn options into devices, tokenizers, paths and parts, or raise `UsageError`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from seed_fast._files import OtherRun
from seed_fast._outputs import output_file, output_folder
from seed_fast._stops import waiting_for_others
from seed_fast._terminal import complain
from seed_fast.cli._run import UsageError

if TYPE_CHECKING:
    import torch

    from seed_fast.data.shards import Split
    from seed_fast.model.tokenizer import SeedTokenizer

MOST_WORKERS = 8


@contextmanager
def usage(prefix: str = "") -> Iterator[None]:
    """Turn a `ValueError` of the block into a `UsageError`: the command is wrong, the run has not failed.

    Args:
        prefix: is put before the message, such as the option it is about.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{prefix}{error}") from None


def file_option(option: str, path: Path) -> Path:
    """Return the file that an option's path stands for: links are followed, `-` is standard output."""
    with usage():
        return output_file(path, f"{option} must be a file name")


def input_file_option(path: Path) -> None:
    """Refuse an input file that isn't there."""
    if not path.exists():
        raise UsageError(f"{path}: no such file")


def folder_option(option: str, path: Path) -> Path:
    """Return the folder that an option's path stands for: links are followed, and it may be missing."""
    with usage():
        return output_folder(path, f"{option} must be a folder")


def device_option(name: str) -> torch.device:
    """Return the device of --device and make it torch's current one; under torchrun `cuda` is the rank's own GPU."""
    import torch

    local_rank = os.environ.get("LOCAL_RANK", "0")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UsageError(f"--device {name}: PyTorch {torch.__version__} sees no such device here")
    index = int(local_rank) if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UsageError(f"--device cuda:{index}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def workers_option(workers: int | None) -> int:
    """Return the number of decoding processes. Default: all cores but one, shared by torchrun's ranks, at most 8."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def shard_option(shard: str | None) -> Split:
    """Return the part of the work that --shard or torchrun gives this process."""
    from seed_fast.data.shards import WHOLE, Split

    with usage():
        of_torchrun = Split.of_environment()
        asked = None if shard is None else Split.parse(shard)
    if of_torchrun and asked:
        raise UsageError(f"--shard {asked} can't be used under torchrun, which has made this rank {of_torchrun}")
    return of_torchrun or asked or WHOLE


def check_resumable(resume: bool, overwrite: bool, leftovers: list[Path]) -> None:
    """Refuse, before anything is loaded, to touch what an earlier run has left unless an option says what to do.

    Raises:
        UsageError: there are leftovers and neither option is given, or both options are.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with what is there, --overwrite drops it: give one of them")
    if leftovers and not (resume or overwrite):
        raise UsageError(f"{leftovers[0]}: left by an earlier run; --resume goes on with it, --overwrite drops it")


def preset_option(name: str, random_weights: bool | None) -> None:
    """Refuse a preset whose weights don't come with the package, and --random-weights without a preset.

    Args:
        name: what --model names.
        random_weights: the value of --random-weights; None: the command has no such option.
    """
    from seed_fast.model.config import PRESETS

    if random_weights and name not in PRESETS:
        raise UsageError(f"--random-weights needs a preset as --model ({', '.join(PRESETS)}), got {name!r}")
    if not random_weights and name in PRESETS and name != "seed-tiny" and not Path(name).exists():
        raise UsageError(
            f"--model {name}: the weights of this preset don't come with the package: give a folder or a hub id "
            "(`seed-fast convert --help` makes a folder)"
            + ("" if random_weights is None else ", or --random-weights to measure speed")
        )


def tokenizer_option(
    name: str, device: torch.device, dtype: str = "float32", *, random_weights: bool | None = False
) -> SeedTokenizer:
    """Load the tokenizer of --model onto the device; a warning on stderr says if its codes mean nothing.

    Raises:
        OSError: it can't be loaded.
    """
    import torch

    from seed_fast import SeedConfig, SeedTokenizer

    preset_option(name, random_weights)
    if random_weights:
        torch.manual_seed(0)
        complain(f"{name}: random weights; the codes mean nothing")
        return SeedTokenizer(SeedConfig.preset(name), device=device, dtype=getattr(torch, dtype)).eval()
    try:
        tok = SeedTokenizer.from_pretrained(name, device=device, dtype=getattr(torch, dtype))
    except ValueError as error:
        raise OSError(str(error)) from error
    if not tok.trained:
        complain(f"{name}: these weights are untrained (the seeded initial ones); the codes mean nothing yet")
    return tok


@contextmanager
def same_run() -> Iterator[None]:
    """Name --overwrite where the block finds what another run has written."""
    try:
        yield
    except OtherRun as error:
        raise OtherRun(f"{error}; --overwrite drops it") from None


@contextmanager
def tokenizers_match() -> Iterator[None]:
    """Name --any-tokenizer where the block finds that codes of another tokenizer were learned."""
    from seed_fast.lm.image_tokenizer import OtherTokenizer

    try:
        yield
    except OtherTokenizer as error:
        raise OtherTokenizer(f"{error}; --any-tokenizer goes on nevertheless") from None


@contextmanager
def together_with_other_ranks() -> Iterator[None]:
    """Under torchrun, leave the block when all ranks are done, and join them before it.

    torchrun ends every rank as soon as one exits with another code than 0, and bad images on one must not stop the
    others. Joining comes first, so that a wrong set-up fails at once.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    import torch.distributed as ranks

    try:
        with waiting_for_others():
            ranks.init_process_group("gloo", timeout=timedelta(minutes=5))
    except RuntimeError as error:
        raise OSError(f"torchrun: the ranks did not find each other: {error}") from error
    yield
    with waiting_for_others():
        ranks.monitored_barrier(timeout=timedelta(days=30))
        ranks.destroy_process_group()
