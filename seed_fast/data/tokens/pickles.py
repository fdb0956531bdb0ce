"""Reading foreign pickles of plain values only: none of their code can run, and none can take for ever.

Python's unpickler calls whatever a file names, and hashes any value that a file uses as a key: sixty nested pairs, a
hundred bytes, would take years. So it isn't used at all: the few opcodes that build None, bool, int, float, str, list,
tuple and dict are carried out here, and keys must be plain values.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from seed_fast import limits
from seed_fast._text import shown

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_REMEMBER = ("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET")
_IGNORED = ("PROTO", "FRAME")
_NAMES = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "OBJ", "NEWOBJ", "REDUCE"}


class PickleRefused(ValueError):
    """A pickle that isn't made of plain values only, or is damaged. The message says why; the caller knows its name."""


def plain_unpickle(data: bytes) -> Any:
    """Return the value of a pickle of None, bool, int, float, str, list, tuple and dict.

    Values may contain each other many times, so a walk over all of them may never end: read only the fields you need.

    Raises:
        PickleRefused: the pickle names a class or function, holds other values, has keys that are no str, int, float,
            bool or None, is longer than `limits.MAX_PICKLE_BYTES`, or is damaged.
    """
    if len(data) > limits.MAX_PICKLE_BYTES:
        raise PickleRefused(f"a pickle must have at most {limits.MAX_PICKLE_BYTES} bytes, got {len(data)}")
    try:
        return _Machine().run(data)
    except PickleRefused:
        raise
    except Exception as error:  # the parser of opcodes, and a stack that holds less than they ask for
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PickleRefused(f"the pickle is damaged: {reason[:200]}") from error


class _Machine:
    """The stack machine of a pickle: unfinished values, the marks between them, and remembered values."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._strings = ["", ""]  # the last two: what STACK_GLOBAL names
        self._do: dict[str, Callable[[Any], object]] = {
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "LIST": lambda _: self._push_after_mark(list),
            "TUPLE": lambda _: self._push_after_mark(tuple),
            "DICT": lambda _: self._push_after_mark(lambda values: _set({}, values)),
            "APPEND": lambda _: self._extend(self._pop(1)),
            "APPENDS": lambda _: self._extend(self._pop_mark()),
            "SETITEM": lambda _: self._set(self._pop(2)),
            "SETITEMS": lambda _: self._set(self._pop_mark()),
            "MARK": lambda _: self._mark(),
            "POP": lambda _: self._pop(1) if self._stack else self._pop_mark(),
            "POP_MARK": lambda _: self._pop_mark(),
            "DUP": lambda _: self._stack.append(self._stack[-1]),
            "MEMOIZE": lambda _: self._memo.__setitem__(len(self._memo), self._stack[-1]),
        }
        self._do |= dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put)
        self._do |= dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda key: self._stack.append(self._memo[key]))

    def run(self, data: bytes) -> Any:
        """Run the opcodes of a pickle and return the value that is left at the end."""
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in _REMEMBER and (argument or 0) > len(data):  # Python's unpickler would make room for so many
                raise PickleRefused(f"the pickle is damaged: it numbers a value {argument}")
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._stack.append(argument)
                if isinstance(argument, str):
                    self._strings = [self._strings[1], argument]
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _TUPLES:
                self._stack.append(tuple(self._pop(_TUPLES[name])))
            elif name in self._do:
                self._do[name](argument)
            elif name not in _IGNORED:
                self._refuse(name, argument)
        raise PickleRefused("the pickle is damaged: it has no end")

    def _refuse(self, name: str, argument: Any) -> None:
        if name in _NAMES:
            named = argument or (".".join(self._strings) if name == "STACK_GLOBAL" else "")
            raise PickleRefused(
                f"a pickle of plain values must name no class or function, got {name} {str(named)[:100]}".rstrip()
            )
        raise PickleRefused(f"a pickle must hold dict, list, tuple, str, int, float, bool and None, got {name}")

    def _pop(self, count: int) -> list[Any]:
        values = self._stack[len(self._stack) - count :]
        if len(values) < count:
            raise IndexError("an opcode asks for more values than there are")
        del self._stack[len(self._stack) - count :]
        return values

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._below.pop()
        return values

    def _push_after_mark(self, build: Callable[[list[Any]], Any]) -> None:
        value = build(self._pop_mark())  # which changes the stack
        self._stack.append(value)

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError(f"values are appended to a {type(target).__name__}")
        target.extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError(f"items are set in a {type(target).__name__}")
        _set(target, values)


def _set(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Set the items of a dict from a list of keys and values in turn."""
    for key, value in zip(values[::2], values[1::2], strict=True):
        if key is not None and not isinstance(key, (str, int, float)):
            raise PickleRefused(f"a key must be str, int, float, bool or None, got {shown(key)}")
        target[key] = value
    return target
