"""Reading foreign pickles that may hold plain values only: no code of theirs can run.

Unpickling runs what a file names. Here every opcode is looked at first, and only those that build None, bool, int,
float, str, list, tuple and dict are let through; the unpickler that follows refuses every name as well.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

MAX_BYTES = 64 << 20  # of one pickle: an official sample has a few kilobytes
_VALUES = {
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT"),
    "BINFLOAT",
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("MARK", "POP", "POP_MARK", "DUP", "PROTO", "FRAME", "STOP"),
}
_REMEMBER = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"}
_NAMES = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "OBJ", "NEWOBJ", "REDUCE"}


class PickleRefused(ValueError):
    """A pickle that isn't made of plain values only, or is damaged. The message says why; the caller knows its name."""


def plain_unpickle(data: bytes) -> Any:
    """The value of a pickle of None, bool, int, float, str, list, tuple and dict.

    Raises:
        PickleRefused: it names a class or function, holds other values, or is damaged.
    """
    if len(data) > MAX_BYTES:
        raise PickleRefused(f"a pickle must have at most {MAX_BYTES} bytes, got {len(data)}")
    _look_through(data)
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except PickleRefused:
        raise
    except Exception as error:  # damaged pickles make the unpickler raise many kinds
        raise PickleRefused(f"the pickle is damaged: {error!r}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise PickleRefused(f"a pickle of plain values must name nothing, got {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise PickleRefused("a pickle of plain values must refer to nothing outside of it")


def _look_through(data: bytes) -> None:
    strings = ["", ""]  # the last two: what STACK_GLOBAL names
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _VALUES:
                if isinstance(argument, str):
                    strings = [strings[1], argument]
                continue
            if opcode.name in _REMEMBER:
                if argument is not None and argument > len(data):  # the unpickler would make room for so many
                    raise PickleRefused(f"the pickle is damaged: it numbers a value {argument}")
            elif opcode.name in _NAMES:
                named = argument or (".".join(strings) if opcode.name == "STACK_GLOBAL" else "")
                raise PickleRefused(
                    f"a pickle of plain values must name no class or function, got {opcode.name} {named}".rstrip()
                )
            else:
                raise PickleRefused(
                    f"a pickle must hold dict, list, tuple, str, int, float, bool and None, got {opcode.name}"
                )
    except PickleRefused:
        raise
    except Exception as error:
        raise PickleRefused(f"the pickle is damaged: {error}") from error
