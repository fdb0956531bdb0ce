"""Language models with image tokens: built for training, saved as peft and transformers load them, and loaded again.

    model, tokenizer, vocabulary = build("opt-2.7b", codebook_size=8192)     # frozen, with a fresh adapter
    save(model, tokenizer, "out")                                             # a plain peft adapter
    model, tokenizer, vocabulary = load("out")                                # the same logits

What `save` writes can be used without this package: `AutoPeftModelForCausalLM.from_pretrained("out")` loads it, and the
tokenizer beside it tells peft how many rows the embedding must have.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seed_fast._files import replace_folder_files
from seed_fast._hub import hub_id, language_model_folder
from seed_fast.data.tokens import TokenizerIdentity
from seed_fast.distributed import is_sharded, trainable, whole
from seed_fast.lm.card import CARD, model_card
from seed_fast.lm.image_tokenizer import write_identity
from seed_fast.lm.pretrained import (
    ADAPTER_CONFIG,
    adapter_config,
    base_folder,
    base_of,
    base_reference,
    family_of,
    has_weights,
    is_adapter,
    read_config,
    read_tokenizer,
)
from seed_fast.lm.streaming import stream_model
from seed_fast.lm.vocabulary import Vocabulary, add_image_tokens


class LanguageModel(NamedTuple):
    """A causal language model of transformers (or peft around it), its tokenizer, and the ids of its image tokens."""

    model: Any
    tokenizer: Any
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Lora:
    """Settings of the adapter; the defaults are official SEED-LLaMA's (LoraConfig of its configs/), for OPT too.

    Args:
        rank: the rank r of LoRA's two matrices.
        alpha: the adapter's output is scaled by alpha / rank.
        dropout: probability with which training sets an input of the adapter to zero.
        targets: names of the linear layers that are adapted; None: all of a block.
        norms: train the norms too; None: as the official recipe of the family does (LLaMA: yes; OPT: no).
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None
    norms: bool | None = None

    @classmethod
    def of_folder(cls, folder: str | Path) -> Lora:
        """Read the settings of a saved adapter.

        Raises:
            ValueError: the adapter isn't LoRA.
        """
        saved = adapter_config(folder)
        if saved.get("peft_type") != "LORA":
            raise ValueError(f"{folder}: the adapter must be LORA, got {saved.get('peft_type')}")
        try:
            targets = tuple(sorted(saved["target_modules"]))
            return cls(saved["r"], saved["lora_alpha"], saved["lora_dropout"], targets, bool(saved["modules_to_save"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}: the adapter must have r, lora_alpha, ... as peft writes them: {error!r}"
            ) from None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"Lora: rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Lora: dropout must be in [0, 1), got {self.dropout}")


def build(
    folder: str | Path,
    *,
    codebook_size: int = 8192,
    lora: Lora | None = None,
    full: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    untied: Path | None = None,
    base: str | Path | None = None,
) -> LanguageModel:
    """Build a language model for training on image tokens.

    Args:
        folder: folder of an OPT or LLaMA as transformers saves it, with its tokenizer, or its hub id; with `full` it
            may lack weights, which are then initialised as the config says. Or folder or hub id of an adapter, which is
            trained further.
        codebook_size: number of codes; new ids begin at len(tokenizer).
        lora: settings of a new adapter; None: `Lora()`.
        full: train every weight, without an adapter.
        dtype: type of frozen weights; trained ones are float32.
        device: device of all weights.
        untied: folder in which to write a copy of the model whose output head has weights of its own; it becomes the
            adapter's base.
        base: base of the adapter that `folder` is, where that is no longer where the adapter says.

    Returns:
        A `PeftModel`, or with `full` the model of transformers, in train mode. Embeddings of new tokens are drawn from
        the model's initial distribution by torch's default generator.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is neither OPT nor LLaMA, or its files are damaged.
    """
    from transformers import AutoModelForCausalLM

    config, tokenizer = read_config(folder, base), read_tokenizer(folder)

    # An adapter that is trained further has its image tokens already.
    if is_adapter(folder):
        if full or untied is not None:
            raise ValueError(f"{folder}: an adapter goes on as it is; merge it first to learn as a whole or by codes")
        add_image_tokens(tokenizer, codebook_size)
        model = _read_adapted(folder, base, tokenizer, dtype, learns=True)
        return LanguageModel(model.to(device).train(), tokenizer, Vocabulary.of_tokenizer(tokenizer))

    # A model, with initial weights or its own, gets a row for every token.
    known = len(tokenizer)
    vocabulary = add_image_tokens(tokenizer, codebook_size)
    if full and not has_weights(folder):
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = _read_base(folder, torch.float32 if full else dtype)
        if len(model.get_input_embeddings().weight) < known:
            rows = len(model.get_input_embeddings().weight)
            raise ValueError(f"{folder}: the embedding must have a row for each of {known} tokens, got {rows}")
        _resize(model, len(tokenizer))
    if full:
        return LanguageModel(model.to(device).train(), tokenizer, vocabulary)

    # The adapter, after the base has got an output head of its own if it shall have one.
    if untied is not None:
        _untie(model, untied)
        tokenizer.save_pretrained(untied)
    return LanguageModel(add_adapter(model, vocabulary, lora or Lora()).to(device).train(), tokenizer, vocabulary)


def add_adapter(model: nn.Module, vocabulary: Vocabulary, lora: Lora) -> nn.Module:
    """Add a new peft adapter: LoRA, and the embeddings of the image tokens (input and output, if not tied).

    Raises:
        ValueError: a target isn't in the model.
    """
    from peft import LoraConfig, get_peft_model

    base: Any = model.config
    family = family_of(base, base.name_or_path or "model")
    norms = bool(family.norms) if lora.norms is None else lora.norms
    rows = vocabulary.new_ids
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft multiplies by it, whole or not
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets or family.linears),
        modules_to_save=list(family.norms) if norms and family.norms else None,
        trainable_token_indices=rows if is_tied(model) else {"embed_tokens": rows, "lm_head": rows},
    )
    with warnings.catch_warnings():  # peft uses names that transformers will drop
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(model, config)
    _learn_in_float32(model)
    return model


def is_tied(model: Any) -> bool:
    """True if the input embedding and the output head share one weight matrix."""
    return bool(model.config.tie_word_embeddings)


def save(
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    *,
    extra: Mapping[str, Tensor] | None = None,
    write: bool = True,
    identity: TokenizerIdentity | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter (or a whole model, if it has none) and its tokenizer; a kill leaves no half-written file.

    Args:
        model: the model that `build` returned.
        tokenizer: its tokenizer.
        folder: is created if it doesn't exist.
        extra: tensors that replace the model's own, by parameter name.
        write: False on ranks that only take part in gathering; every rank of a sharded model must call.
        identity: the image tokenizer whose codes the model has learned, recorded in image_tokenizer.json.
        about: what the model card says of the training, as titles and texts.
    """
    adapted = hasattr(model, "peft_config")
    if not adapted and is_sharded(model):
        _save_sharded(model, tokenizer, Path(folder), write=write, identity=identity, about=about)
        return
    named = trainable(model) if adapted else model.state_dict().items()
    tensors = {name: whole(value) for name, value in named} | dict(extra or {})
    if not write:
        return
    name = model.get_base_model().config.name_or_path if adapted else None
    with replace_folder_files(Path(folder)) as staging:
        options: dict[str, Any] = {"save_embedding_layers": False} if adapted else {}
        model.save_pretrained(staging, state_dict=tensors, **options)
        tokenizer.save_pretrained(staging)
        if identity is not None:
            write_identity(staging, identity)
        if name:
            _name_base(staging / ADAPTER_CONFIG, *base_reference(name, Path(folder)))
        card = model_card(Path(folder), model.config, len(tokenizer), base=name or None, identity=identity, about=about)
        (staging / CARD).write_text(card, encoding="utf-8")


def _save_sharded(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    write: bool,
    identity: TokenizerIdentity | None,
    about: Mapping[str, str] | None,
) -> None:
    """Write a whole model that is sharded over the ranks, one parameter at a time."""
    if not write:
        stream_model(None, model)
        return
    with replace_folder_files(folder) as staging:
        stream_model(staging, model)
        model.config.architectures, model.config.dtype = [type(model).__name__], next(model.parameters()).dtype
        model.config.save_pretrained(staging)
        if model.can_generate():
            model.generation_config.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        if identity is not None:
            write_identity(staging, identity)
        card = model_card(folder, model.config, len(tokenizer), base=None, identity=identity, about=about)
        (staging / CARD).write_text(card, encoding="utf-8")


def build_empty(folder: str | Path, *, codebook_size: int = 8192) -> LanguageModel:
    """Build what `build` with `full` does without storage, on the meta device: a rank gets its part from another one.

    Args:
        folder: as for `build`.
        codebook_size: number of codes.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is neither OPT nor LLaMA, or its files are damaged.
    """
    from transformers import AutoModelForCausalLM

    config, tokenizer = read_config(folder), read_tokenizer(folder)
    vocabulary = add_image_tokens(tokenizer, codebook_size)
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.tie_weights()
    return LanguageModel(model.train(), tokenizer, vocabulary)


def load(
    folder: str | Path,
    base: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """Load what `save` wrote, or any other adapter or model with image tokens, in eval mode.

    Args:
        folder: folder or hub id of an adapter or of a whole model.
        base: base of the adapter, where that is no longer where the adapter says.
        device: device of all weights.
        dtype: type of all weights except the adapter's own, which stay float32.

    Raises:
        FileNotFoundError: the folder or the base isn't there.
        ValueError: the tokenizer has no image tokens, or the family is unknown.
    """
    tokenizer = read_tokenizer(folder)
    vocabulary = Vocabulary.of_tokenizer(tokenizer)
    if is_adapter(folder):
        model = _read_adapted(folder, base, tokenizer, dtype, learns=False)
    else:
        model = _read_base(folder, dtype)
    return LanguageModel(model.to(device).eval(), tokenizer, vocabulary)


def _name_base(path: Path, base: str, revision: str | None) -> None:
    """Write into adapter_config.json where the base is, as others can find it."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved |= {"base_model_name_or_path": base, "revision": revision}
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_adapted(
    folder: str | Path, base: str | Path | None, tokenizer: Any, dtype: torch.dtype, *, learns: bool
) -> Any:
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

    base_folder(folder, base)  # raises an error that names what is missing
    model = _read_base(base or base_of(folder), dtype)
    local = str(language_model_folder(folder))
    _resize(model, len(tokenizer))
    with warnings.catch_warnings():  # as in `add_adapter`
        warnings.simplefilter("ignore", FutureWarning)
        model = PeftModel.from_pretrained(model, local, is_trainable=learns)
    if learns and dtype != torch.float32:
        _learn_in_float32(model)  # trained norms were read in the type of the base
        set_peft_model_state_dict(model, load_peft_weights(local, device="cpu"))
    return model


def _learn_in_float32(model: nn.Module) -> None:
    """Convert the trainable parameters to float32."""
    for _, p in trainable(model):
        p.data = p.data.float()


def _read_base(folder: str | Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    read_config(folder)
    model = AutoModelForCausalLM.from_pretrained(
        str(language_model_folder(folder).resolve()), dtype=dtype, local_files_only=True, attn_implementation="sdpa"
    )
    if (name := hub_id(folder)) is not None:  # an adapter shall name its base by the id, not by this machine's cache
        model.config.name_or_path = model.name_or_path = str(name)
    return model


@torch.no_grad()
def _resize(model: Any, tokens: int) -> None:
    """Give the embedding at least `tokens` rows, as `AutoPeftModelForCausalLM` does; new ones get initial values."""
    if len(model.get_input_embeddings().weight) < tokens:
        model.resize_token_embeddings(tokens, mean_resizing=False)


def _untie(model: Any, folder: Path) -> None:
    """Give the output head weights of its own, and write the model to `folder`, which becomes its name."""
    output = model.get_output_embeddings()
    output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=output.weight.requires_grad)
    model.config.tie_word_embeddings = False
    if not (folder / "config.json").is_file():
        with replace_folder_files(folder) as staging:
            model.save_pretrained(staging)
    model.config.name_or_path = model.name_or_path = str(folder.resolve())
