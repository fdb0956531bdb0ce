"""`image_tokenizer.json` in the folder of a language model: the image tokenizer whose codes it has learned.

The codes of two tokenizers of one size look alike, and a model would read and draw the other's fluently and wrongly. So
training records the tokenizer, and everything that uses a model together with a tokenizer compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from seed_fast._files import write_beside
from seed_fast._hub import hub_id, language_model_folder
from seed_fast._text import read_json, shown
from seed_fast.data.tokens import TokenizerIdentity

FILE = "image_tokenizer.json"


class OtherTokenizer(ValueError):
    """A language model is used with codes of another tokenizer than it has learned."""


def identity_bytes(identity: TokenizerIdentity) -> bytes:
    """Return the content of `image_tokenizer.json`."""
    return (json.dumps(asdict(identity), indent=1) + "\n").encode()


def write_identity(folder: str | Path, identity: TokenizerIdentity) -> None:
    """Record that the model of `folder` has learned codes of this tokenizer; the folder is created if needed."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_beside(Path(folder) / FILE, identity_bytes(identity))


def read_identity(folder: str | Path) -> TokenizerIdentity | None:
    """Read which tokenizer's codes the model of a folder or hub id has learned; None if that isn't recorded.

    Raises:
        ValueError: the file is damaged.
    """
    path = (Path(folder) if hub_id(folder) is None else language_model_folder(folder)) / FILE
    if not path.is_file():
        return None
    try:
        identity = TokenizerIdentity(**read_json(path))
        if not isinstance(identity.name, str):
            raise TypeError(f"name must be text, got {shown(identity.name)}")
        return identity
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: must say whose codes the model learned, got: {error}") from None


def check_identity(
    folder: str | Path,
    given: TokenizerIdentity,
    what: str,
    *,
    learned: TokenizerIdentity | None = None,
    anyway: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> None:
    """Compare the tokenizer whose codes a model has learned with the one that is about to be used.

    Args:
        folder: folder of the model, and its name in messages.
        given: the tokenizer that is about to be used, or that of a store of codes.
        what: name of `given` in messages, such as "tokenizer seed-2".
        learned: the tokenizer whose codes the model has learned; None: the one that the folder records.
        anyway: allow a mismatch, with a note.
        note: is called with one line where a mismatch is allowed, or whether there is one isn't known.

    Raises:
        OtherTokenizer: the two tokenizers give other codes; the message names both.
    """
    verb = "learned" if learned is None else "has"
    learned = learned or read_identity(folder)
    if learned is None:
        note(f"note: {folder} doesn't say whose codes it learned; it is taken for those of {what}")
        return
    same = learned.compare(given)
    line = f"{folder} {verb} the codes of {learned}, and {what} has those of {given}"
    if same is False and not anyway:
        raise OtherTokenizer(f"{line}: they mean something else")
    if same is False or (same is None and learned.name != given.name):
        note(
            f"note: {line}"
            + (": they mean something else" if same is False else "; whether they are the same isn't known")
        )
