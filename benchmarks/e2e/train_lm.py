"""Training steps of a language model, against Hugging Face's Trainer with PEFT.

The peer at its best: the same packed rows with a mask that keeps samples apart, SDPA, fused AdamW, frozen weights in
the run's dtype; and the same under torch.compile. It is the Trainer's own loop that runs, one step at a time, between
the steps of the others. Model (random weights of OPT's shapes), adapter, rows, dtype and recipe are the same for all.

Tokens are counted without padding. FLOPs are 4 per weight of a matrix product and token: the forward pass, and the
gradient of the activations; frozen weights have no gradient. Memory is that of a whole process per provider.
"""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.providers import Bar, Benchmark, Call, Case, Inputs, Provider
from seed_fast.lm.model import LanguageModel, Lora, add_adapter
from seed_fast.lm.packing import attention_mask, best_fit, collate
from seed_fast.lm.sequences import TokenSequence
from seed_fast.lm.vocabulary import Vocabulary

OURS, TRAINER, COMPILED = "seed_fast", "Trainer + PEFT", "Trainer + PEFT, torch.compile"
TEXT_TOKENS, CODEBOOK, CODES = 50_265, 8_192, 32  # tokens of OPT's tokenizer, SEED's codebook, codes of an image
CAPTION, SPREAD, PROMPT = 13, 5, 3  # tokens of a caption of CC3M, mean and standard deviation; tokens of a prompt
VOCABULARY = Vocabulary(TEXT_TOKENS, CODEBOOK, TEXT_TOKENS + CODEBOOK, TEXT_TOKENS + CODEBOOK + 1, bos=2, eos=2, pad=1)
COMPILE_SECONDS = 900.0
# Name -> (OPT's shape, rows of a step, tokens of a row).
SIZES: dict[str, tuple[dict[str, Any], int, int]] = {
    "tiny": ({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 256}, 2, 256),
    "125m": ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072}, 1, 512),
    "2.7b": ({"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 10240}, 8, 1024),
}
SETTINGS: dict[str, Any] = {"lr": 1.5e-4, "weight_decay": 0.05, "betas": (0.9, 0.95), "eps": 1e-5}


def config_of(size: str) -> Any:
    """OPT's config with room for image tokens, and with its published dropout."""
    from transformers import OPTConfig

    shape, _, length = SIZES[size]
    return OPTConfig(
        vocab_size=TEXT_TOKENS + CODEBOOK + 2, max_position_embeddings=max(2048, length), pad_token_id=1,
        bos_token_id=2, eos_token_id=2, word_embed_proj_dim=shape["hidden_size"], **shape,
    )  # fmt: skip


def rows_of(count: int, length: int, seed: int) -> dict[str, Tensor]:
    """A batch of packed samples: half are captions to write, half are images to draw.

    Args:
        count: rows of the batch.
        length: tokens of a row.
        seed: of the samples.

    Returns:
        {"ids", "labels", "positions", "segments"}, each [count, length].
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(first: int, end: int, number: int) -> list[int]:
        return torch.randint(first, end, (number,), generator=generator).tolist()

    samples: list[TokenSequence] = []
    while sum(len(sample) for sample in samples) < 4 * count * length:
        words = int((CAPTION + SPREAD * torch.randn((), generator=generator)).round().clamp(3, 60))
        image = VOCABULARY.image(ids(0, CODEBOOK, CODES))
        prompt, text = ids(4, TEXT_TOKENS, PROMPT), ids(4, TEXT_TOKENS, words)
        asked, answer = ([*image, *prompt], text) if len(samples) % 2 else ([*prompt, *text], image)
        labels = [-100] * (1 + len(asked)) + [*answer, VOCABULARY.eos]
        samples.append(TokenSequence([VOCABULARY.bos, *asked, *answer, VOCABULARY.eos], labels))
    packed = best_fit([len(sample) for sample in samples], length)
    return collate([[samples[i] for i in row] for row in packed[:count]], pad=VOCABULARY.pad, length=length)


@functools.lru_cache(maxsize=1)
def adapted(size: str, dtype: torch.dtype, device: str, dropout: float | None) -> nn.Module:
    """The model with its adapter, as peft makes it; `dropout` None is the published one."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = config_of(size)
    if dropout is not None:
        config.dropout = dropout
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    with_adapter: nn.Module = add_adapter(model, VOCABULARY, Lora(dropout=0.05 if dropout is None else dropout))
    return with_adapter.to(device)


def twin(model: nn.Module) -> nn.Module:
    """A copy with trained weights of its own that shares the frozen ones."""
    return copy.deepcopy(model, memo={id(p): p for p in model.parameters() if not p.requires_grad})


def ours(
    size: str, batches: list[dict[str, Tensor]], dtype: str, device: str, steps: int, dropout: float | None
) -> Call:
    """The call that takes a step of our loop.

    Args:
        size: a key of `SIZES`.
        batches: what `rows_of` gave; steps cycle through them.
        dtype, device: what the model computes in, and where.
        steps: most steps that may be taken.
        dropout: of the whole model; None: as published.
    """
    from seed_fast.distributed import Ranks
    from seed_fast.train.lm import LOSS_SCALE, LOSS_SCALE_WINDOW, LanguageModelTask
    from seed_fast.train.loop import Loop
    from seed_fast.train.recipe import Recipe, Run

    task = LanguageModelTask(
        LanguageModel(twin(adapted(size, getattr(torch, dtype), device, dropout)), None, VOCABULARY)
    )
    no_data: Any = ()  # the stream below is given to each step
    recipe = Recipe(
        len(batches[0]["ids"]), 1, steps, min_lr=SETTINGS["lr"], warmup_lr=0.0, warmup_steps=0, cosine="step", clip=1.0,
        dtype=cast(Any, dtype), **SETTINGS,
    )  # fmt: skip
    folder = tempfile.TemporaryDirectory(prefix="seed_fast_bench_")
    loop = Loop(
        task, no_data, recipe, Run(Path(folder.name) / "run"), Ranks(0, 1, torch.device(device)), units=task.blocks,
        loss_scale=(LOSS_SCALE, LOSS_SCALE_WINDOW), gives_up=False,
    )  # fmt: skip
    stream = itertools.cycle(batches)

    def judge() -> float:
        task.eval()
        with torch.no_grad():
            loss = task({name: value.to(device) for name, value in batches[0].items()})["loss"].item()
        task.train()
        return loss

    def step() -> float:
        loss = loop.train_step(stream)["loss"].item()
        loop.step += 1
        return loss

    return _Stepped(judge, step, folder.cleanup)


def trainer(
    size: str, batches: list[dict[str, Tensor]], dtype: str, device: str, steps: int, dropout: float | None, *,
    compiled: bool,
) -> Call:  # fmt: skip
    """The call that takes a step of Hugging Face's Trainer; arguments as for `ours`."""
    model = twin(adapted(size, getattr(torch, dtype), device, dropout))
    rows = [{name: value[i] for name, value in batch.items()} for batch in batches for i in range(len(batch["ids"]))]
    loop = _TrainerThread(model, rows, len(batches[0]["ids"]), dtype, device, steps, compiled)
    with torch.no_grad():  # before the Trainer wraps or compiles anything
        model.eval()
        inputs = {name: value.to(device) for name, value in _as_trainer(rows[: len(batches[0]["ids"])]).items()}
        loss = model(**inputs).loss.item()
        model.train()
    return _Stepped(lambda: loss, loop.step, loop.close)


class _Stepped:
    """A call whose first run returns the loss before any step, without dropout; every other run takes a step.

    Args:
        judge: computes that first loss.
        step: takes a step and returns its loss.
        close: ends what runs.
    """

    def __init__(self, judge: Callable[[], float], step: Callable[[], float], close: Callable[[], None]) -> None:
        self._judge, self._step, self.close = judge, step, close
        self._is_first = True

    def __call__(self) -> float:
        if self._is_first:
            self._is_first = False
            loss = self._judge()
            self._step()  # compilation, optimizer state
            return loss
        return self._step()

    def seconds(self, repeats: int) -> float:
        """Seconds of a step; the mean of `repeats`. A step reads its loss at the end, so the device is done by then."""
        start = time.perf_counter()
        for _ in range(repeats):
            self._step()
        return (time.perf_counter() - start) / repeats


def _as_trainer(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {
        "input_ids": batch["ids"], "labels": batch["labels"], "position_ids": batch["positions"],
        "attention_mask": attention_mask(batch["segments"]),
    }  # fmt: skip


class _TrainerThread:
    """`Trainer.train()` in a thread of its own, which takes a step when it is asked to.

    Args:
        model: with its adapter.
        rows: one dictionary of tensors per packed row.
        batch_size: rows of a step.
        dtype, device: what it computes in, and where.
        steps: most steps that may be taken.
        compiled: whether the Trainer compiles the model.
    """

    def __init__(
        self, model: nn.Module, rows: list[dict[str, Tensor]], batch_size: int, dtype: str, device: str, steps: int,
        compiled: bool,
    ) -> None:  # fmt: skip
        import transformers

        transformers.utils.logging.set_verbosity_error()
        self._folder = tempfile.TemporaryDirectory(prefix="seed_fast_bench_")
        self._wanted, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._loss = float("nan")
        self._error: BaseException | None = None
        self._stop = False
        outer = self  # for the callbacks of the Trainer, which have a self of their own

        class Steps(transformers.TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                outer._wanted.acquire()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop |= outer._stop
                outer._done.release()

        class Counting(transformers.Trainer):
            def training_step(self, *given: Any, **named: Any) -> Tensor:
                loss = super().training_step(*given, **named)
                outer._loss = float(loss)
                return loss

        class Rows(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return batch_size * steps

            def __getitem__(self, number: int) -> dict[str, Tensor]:
                return rows[number % len(rows)]

        arguments = transformers.TrainingArguments(
            self._folder.name, per_device_train_batch_size=batch_size, max_steps=steps, learning_rate=SETTINGS["lr"],
            weight_decay=SETTINGS["weight_decay"], adam_beta1=SETTINGS["betas"][0], adam_beta2=SETTINGS["betas"][1],
            adam_epsilon=SETTINGS["eps"], max_grad_norm=1.0, lr_scheduler_type="constant", optim="adamw_torch_fused",
            fp16=dtype == "float16", bf16=dtype == "bfloat16", use_cpu=device == "cpu", torch_compile=compiled,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            dataloader_pin_memory=False, label_names=["labels"], train_sampling_strategy="sequential",
        )  # fmt: skip
        self._trainer = Counting(
            model=model, args=arguments, train_dataset=Rows(), data_collator=_as_trainer, callbacks=[Steps()]
        )
        self._thread = threading.Thread(target=self._run, args=(torch.get_num_threads(),), daemon=True)
        self._thread.start()

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            self._trainer.train()
        except BaseException as error:  # noqa: BLE001 - `step` raises it in the thread that waits
            self._error = error
        self._done.release()

    def step(self) -> float:
        """Take one optimizer step and return its loss; raises what the Trainer raised."""
        self._wanted.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._loss

    def close(self) -> None:
        """End the Trainer's loop."""
        self._stop = True
        self._wanted.release()
        self._thread.join(60)
        self._folder.cleanup()


def provider_call(name: str, size: str, dtype: str, device: str, steps: int, dropout: float | None = None) -> Call:
    """The call of the provider of that name; further arguments as for `ours`."""
    _, count, length = SIZES[size]
    batches = [rows_of(count, length, seed) for seed in range(4)]
    if name == OURS:
        return ours(size, batches, dtype, device, steps, dropout)
    return trainer(size, batches, dtype, device, steps, dropout, compiled=name == COMPILED)


def tokens_per_step(size: str) -> float:
    """Tokens of a step without padding, in the mean over the batches."""
    _, count, length = SIZES[size]
    return statistics.mean(int((rows_of(count, length, seed)["segments"] > 0).sum()) for seed in range(4))


def _prepare(name: str) -> Callable[[Inputs, Case], Call]:
    return lambda inputs, case: provider_call(
        name, case.options["size"], case.dtype, case.options["device"], timing.MAXIMUM_ROUNDS + 10
    )


def _check(case: Case, provider: Provider, loss: float, inputs: Inputs, truth: float) -> tuple[str, str]:
    """Check the loss before any step, without dropout, against that of plain peft and transformers in float32."""
    allowed = 1e-5 if case.dtype == "float32" else 1e-2
    wrong = abs(loss - truth) / truth
    return ("" if wrong <= allowed else f"the loss is off by {wrong:.2g} of itself, more than {allowed:.2g}"), ""


def _truth(inputs: Inputs, case: Case) -> float:
    size, device = case.options["size"], case.options["device"]
    _, count, length = SIZES[size]
    model = adapted(size, case.torch_dtype(), device, None).eval()
    batch = rows_of(count, length, 0)
    inputs = _as_trainer([{name: value[i] for name, value in batch.items()} for i in range(count)])
    with torch.no_grad():
        logits = model(**{name: value.to(device) for name, value in inputs.items() if name != "labels"}).logits
        supervised = batch["labels"][:, 1:] != -100
        chosen, wanted = logits[:, :-1][supervised.to(device)].float(), batch["labels"][:, 1:][supervised].to(device)
        return nn.functional.cross_entropy(chosen, wanted).item()


@functools.lru_cache
def _matrices(size: str) -> int:
    """Number of weights in matrix products, the adapter's included."""
    from seed_fast.lm.estimate import count

    return count(config_of(size), text_tokens=TEXT_TOKENS, codebook_size=CODEBOOK, lora=Lora())[2]


def _case(size: str, device: str, **settings: Any) -> Case:
    _, count, length = SIZES[size]
    shape = {"rows": count, "length": length, "tokens": round(tokens_per_step(size))}
    return Case(
        f"OPT-{size}, {count} x {length}", shape, dtype="float32" if device == "cpu" else "float16", devices=(device,),
        options={"size": size, "device": device}, rounds=7 if device == "cpu" else 20, **settings,
    )  # fmt: skip


TINY, SMALL, LARGE = _case("tiny", "cpu", quick=True), _case("125m", "cpu"), _case("2.7b", "cuda")
TRAIN_LM = Benchmark(
    op="train_lm",
    cases=(TINY, SMALL, LARGE),
    providers=(
        Provider(OURS, _prepare(OURS), ours=True, package="peft"),
        Provider(TRAINER, _prepare(TRAINER), package="accelerate"),
        Provider(COMPILED, _prepare(COMPILED), package="accelerate", compile_limit=COMPILE_SECONDS),
    ),
    baseline=TRAINER,
    bars=(
        Bar("1.2x the tokens/s of Trainer + PEFT", SMALL.name, OURS, (TRAINER,), 1.2),
        Bar("1.5x the tokens/s of Trainer + PEFT", LARGE.name, OURS, (TRAINER,), 1.5, device="cuda"),
        Bar("0.6x its peak memory", LARGE.name, OURS, (TRAINER,), 1 / 0.6, metric="memory", device="cuda"),
        Bar("half of the GEMM ceiling", LARGE.name, OURS, (), 0.5, metric="gemm", device="cuda"),
    ),
    inputs=lambda case, device, seed: {},
    truth=_truth,
    check=_check,
    flops=lambda case: 4.0 * _matrices(case.options["size"]) * case.shape["tokens"],
    bytes=lambda case: _matrices(case.options["size"]) * case.torch_dtype().itemsize,
    memory_cases=(SMALL.name, LARGE.name),
    memory="process",
    release_shared=adapted.cache_clear,
)
