"""Whose codes a language model learned: `image_tokenizer.json` in its folder.

Codes of two tokenizers of one size look alike, and a model reads and draws the other's fluently and wrongly. So what
trains a model writes down whose codes it saw, and what uses a model with a tokenizer compares.
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
    """A language model and a tokenizer, or a store of codes, that don't belong together."""


def identity_bytes(identity: TokenizerIdentity) -> bytes:
    """The content of `image_tokenizer.json`."""
    return (json.dumps(asdict(identity), indent=1) + "\n").encode()


def write_identity(folder: str | Path, identity: TokenizerIdentity) -> None:
    """Write down that the model of `folder` learned codes of this tokenizer; the folder is made if it isn't there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_beside(Path(folder) / FILE, identity_bytes(identity))


def read_identity(folder: str | Path) -> TokenizerIdentity | None:
    """Whose codes the model of a folder or hub id learned; None if it doesn't say.

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
    """Compare the tokenizer whose codes a model learned with the one that is about to be used.

    Args:
        folder: of the model, which says whose codes it learned; and its name in messages.
        given: the tokenizer at hand, or that of a store of codes.
        what: where that one comes from, such as "--model other".
        learned: in place of what the folder says.
        anyway: a mismatch is a note.
        note: told in one line what can't be told apart, or was let pass.

    Raises:
        OtherTokenizer: the codes mean something else; the message names both.
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
