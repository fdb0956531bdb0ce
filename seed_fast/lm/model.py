"""Language models with image words: made for training, saved so that peft and transformers alone load them, loaded.

    model, tokenizer, vocabulary = build("opt-2.7b", codebook_size=8192)     # frozen, with a fresh adapter
    save(model, tokenizer, "out")                                             # a plain peft adapter
    model, tokenizer, vocabulary = load("out")                                # the same logits

What `save` writes needs nothing of this package: `AutoPeftModelForCausalLM.from_pretrained("out")` loads it, as its
tokenizer lies beside it and tells peft how many rows the embedding has to have.
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
from seed_fast.lm.folder import (
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
from seed_fast.lm.identity import write_identity
from seed_fast.lm.streaming import stream_model
from seed_fast.lm.vocabulary import Vocabulary, add_image_words


class LanguageModel(NamedTuple):
    """A causal language model of transformers (or peft around it), its tokenizer, and the ids of its image words."""

    model: Any
    tokenizer: Any
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Lora:
    """The adapter; the defaults are official SEED-LLaMA's (LoraConfig of its configs/), which SEED-OPT shares here.

    Args:
        rank: columns of LoRA's two matrices, r.
        alpha: the adapter's product is scaled by alpha / rank.
        dropout: share of the adapter's inputs that training sets to zero.
        targets: names of linear layers; None: all of the family's.
        norms: train the norms too; None: as the family's recipe (LLaMA yes; OPT is frozen but for LoRA, SEED paper).
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None
    norms: bool | None = None

    @classmethod
    def of_folder(cls, folder: str | Path) -> Lora:
        """Of a saved adapter.

        Raises:
            ValueError: it isn't LoRA.
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
    """A language model that learns image words.

    Args:
        folder: of an OPT or LLaMA as transformers saves it, with its tokenizer; or its hub id. With `full` it may lack
            weights: they are drawn as the config says. Or of an adapter, which then goes on learning.
        codebook_size: number of codes; new ids begin at len(tokenizer).
        lora: a new adapter; `Lora()` by default.
        full: no adapter: every weight learns.
        dtype: of frozen weights; what learns is float32.
        device: where to.
        untied: a folder to write the model to with an output matrix of its own, which then is the adapter's base.
        base: of an adapter: its base, where it no longer is where it was.

    Returns:
        A `PeftModel`, or with `full` the model of transformers, in train mode; new rows are drawn from the model's
        initial distribution by torch's default generator.

    Raises:
        FileNotFoundError, ValueError: the folder isn't such a model.
    """
    from transformers import AutoModelForCausalLM

    config, tokenizer = read_config(folder, base), read_tokenizer(folder)
    if is_adapter(folder):
        if full or untied is not None:
            raise ValueError(f"{folder}: an adapter goes on as it is; merge it first to learn as a whole or by codes")
        add_image_words(tokenizer, codebook_size)
        model = _read_adapted(folder, base, tokenizer, dtype, learns=True)
        return LanguageModel(model.to(device).train(), tokenizer, Vocabulary.of_tokenizer(tokenizer))
    known = len(tokenizer)
    vocabulary = add_image_words(tokenizer, codebook_size)
    if full and not has_weights(folder):
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = _read_base(folder, torch.float32 if full else dtype)
        if len(model.get_input_embeddings().weight) < known:
            rows = len(model.get_input_embeddings().weight)
            raise ValueError(f"{folder}: the embedding must have a row for each of {known} words, got {rows}")
        _resize(model, len(tokenizer))
    if full:
        return LanguageModel(model.to(device).train(), tokenizer, vocabulary)
    if untied is not None:
        _untie(model, untied)
        tokenizer.save_pretrained(untied)
    return LanguageModel(add_adapter(model, vocabulary, lora or Lora()).to(device).train(), tokenizer, vocabulary)


def add_adapter(model: nn.Module, vocabulary: Vocabulary, lora: Lora) -> nn.Module:
    """A fresh peft adapter: LoRA, and the rows of the image words (one matrix where the model ties them, else both).

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
    with warnings.catch_warnings():  # of peft about names that transformers will drop
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(model, config)
    _learn_in_float32(model)
    return model


def is_tied(model: Any) -> bool:
    """Whether words come out by the matrix they go in by."""
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
    """Write an adapter (or a whole model, if it has none) and its tokenizer, each file beside and renamed.

    Args:
        model: the model that `build` returned.
        tokenizer: its tokenizer.
        folder: made if it isn't there.
        extra: tensors in place of the model's own, by parameter name.
        write: whether this process does; every rank of a sharded model must call.
        identity: the image tokenizer whose codes the model learned, to be written down beside it.
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
    """`save` for a model that no rank holds whole."""
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
    """What `build` with `full` gives, without storage: on the meta device, for ranks that get their part from another.

    Args:
        folder: as for `build`.
        codebook_size: number of codes.

    Raises:
        FileNotFoundError, ValueError: the folder isn't such a model.
    """
    from transformers import AutoModelForCausalLM

    config, tokenizer = read_config(folder), read_tokenizer(folder)
    vocabulary = add_image_words(tokenizer, codebook_size)
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
    """What `save` wrote, or any other adapter or model with image words, in eval mode.

    Args:
        folder: an adapter's, or a whole model's; or a hub id.
        base: the adapter's base, where it no longer is where it was.
        device: where to.
        dtype: of all weights but the adapter's own, which stay float32.

    Raises:
        FileNotFoundError: the folder or the base isn't there.
        ValueError: the tokenizer has no image words, or the family is unknown.
    """
    tokenizer = read_tokenizer(folder)
    vocabulary = Vocabulary.of_tokenizer(tokenizer)
    if is_adapter(folder):
        model = _read_adapted(folder, base, tokenizer, dtype, learns=False)
    else:
        model = _read_base(folder, dtype)
    return LanguageModel(model.to(device).eval(), tokenizer, vocabulary)


def _name_base(path: Path, base: str, revision: str | None) -> None:
    """Write the base into adapter_config.json as others shall find it."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved |= {"base_model_name_or_path": base, "revision": revision}
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_adapted(
    folder: str | Path, base: str | Path | None, tokenizer: Any, dtype: torch.dtype, *, learns: bool
) -> Any:
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

    base_folder(folder, base)  # says what is missing, and that --base is there
    model = _read_base(base or base_of(folder), dtype)
    local = str(language_model_folder(folder))
    _resize(model, len(tokenizer))
    with warnings.catch_warnings():  # as in `add_adapter`
        warnings.simplefilter("ignore", FutureWarning)
        model = PeftModel.from_pretrained(model, local, is_trainable=learns)
    if learns and dtype != torch.float32:
        _learn_in_float32(model)  # norms were read as the base's dtype
        set_peft_model_state_dict(model, load_peft_weights(local, device="cpu"))
    return model


def _learn_in_float32(model: nn.Module) -> None:
    for _, p in trainable(model):
        p.data = p.data.float()


def _read_base(folder: str | Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    read_config(folder)
    model = AutoModelForCausalLM.from_pretrained(
        str(language_model_folder(folder).resolve()), dtype=dtype, local_files_only=True, attn_implementation="sdpa"
    )
    if (found := hub_id(folder)) is not None:  # what an adapter says of its base is the id, not this machine's cache
        model.config.name_or_path = model.name_or_path = str(found)
    return model


@torch.no_grad()
def _resize(model: Any, words: int) -> None:
    """At least `words` rows, as `AutoPeftModelForCausalLM` would make; new ones as the model's initial values."""
    if len(model.get_input_embeddings().weight) < words:
        model.resize_token_embeddings(words, mean_resizing=False)


def _untie(model: Any, folder: Path) -> None:
    """Give the model an output matrix of its own, and write it, which makes `folder` its base."""
    output = model.get_output_embeddings()
    output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=output.weight.requires_grad)
    model.config.tie_word_embeddings = False
    if not (folder / "config.json").is_file():
        with replace_folder_files(folder) as staging:
            model.save_pretrained(staging)
    model.config.name_or_path = model.name_or_path = str(folder.resolve())
