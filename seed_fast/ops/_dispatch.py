"""The only dispatcher: it chooses the backend that runs an op, and says why each other one does not.

An op registers a preference list of `Backend`s. Selection is a pure function of the arguments (device, dtype, shape,
layout) and of what this machine has; the first backend without an objection runs. `SEED_FAST_BACKEND=<name>` and
`with seed_fast.ops.backend("<name>"):` are strict: they raise with the objections instead of falling back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from seed_fast import _env

logger = logging.getLogger("seed_fast.ops")

NAMES = ("cuda", "triton", "cpu", "sdpa", "xformers", "reference")


class BackendError(RuntimeError):
    """Raised when a backend that was asked for by name cannot run the op on these arguments."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Args:
        name: one of `NAMES`.
        run: the implementation; it takes the op's arguments and returns the op's results.
        unavailable: returns why this machine cannot run the backend at all, or "" where it can.
        objections: takes the op's arguments and returns why they cannot go through this backend, an empty list where
            they can. It looks at the arguments alone, so it is called before `unavailable`, which may load a driver.
        note: shown beside the backend in `seed-fast info`, for example that it never ran on real hardware.
    """

    name: str
    run: Callable[..., Any]
    unavailable: Callable[[], str]
    objections: Callable[..., list[str]]
    note: str = ""

    def reasons(self, *args: Any) -> list[str]:
        """Return why this backend cannot run on `args`; an empty list where it can."""
        reasons = self.objections(*args)
        missing = "" if reasons else self.unavailable()
        return [missing] if missing else reasons


_TABLE: dict[str, tuple[Backend, ...]] = {}
_forced: str | None = None
_logged: set[tuple[str, str]] = set()


def register(op: str, *backends: Backend) -> None:
    """Declare the backends of `op` in order of preference; the last one must accept all arguments."""
    _TABLE[op] = backends


def _check_name(name: str, source: str) -> str:
    """Return `name` if a backend may have it; `source` is what the error names otherwise."""
    if name not in NAMES:
        raise ValueError(f"{source}: backend must be one of {', '.join(NAMES)}, got {name!r}")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force every op inside the `with` block onto backend `name`; an op that cannot run there raises `BackendError`.

    The setting holds for the whole process, not for one thread.

    Raises:
        ValueError: no backend has this name.
    """
    global _forced
    previous, _forced = _forced, _check_name(name, "seed_fast.ops.backend")
    try:
        yield
    finally:
        _forced = previous


def forced() -> str:
    """Return the name of the backend that is forced now, by `backend` or SEED_FAST_BACKEND, or "" where none is."""
    if _forced is not None:
        return _forced
    name = _env.get("SEED_FAST_BACKEND")
    return _check_name(name, "SEED_FAST_BACKEND") if name else ""


def select(op: str, *args: Any) -> Backend:
    """Return the backend that runs `op` on `args`: the forced one, or else the first without an objection.

    Raises:
        BackendError: a forced backend cannot run; the message lists the reasons.
    """
    wanted = forced()
    for candidate in _TABLE[op]:
        if wanted and candidate.name != wanted:
            continue
        reasons = candidate.reasons(*args)
        if not reasons:
            return candidate
        if wanted:
            raise BackendError(f"{op}: backend {wanted!r} was asked for but cannot run: {'; '.join(reasons)}")
        # A fallback is worth a line where the machine lacks something; wrong arguments for a kernel surprise nobody.
        if not candidate.objections(*args):
            _log_once(op, candidate.name, reasons)
    raise BackendError(f"{op}: no backend {wanted!r} is registered for it")


def _log_once(op: str, name: str, reasons: list[str]) -> None:
    """Log that `op` does not run on backend `name`, once per process."""
    if (op, name) not in _logged:
        _logged.add((op, name))
        logger.warning("%s: falling back from backend %r: %s", op, name, "; ".join(reasons))


def explain(op: str, *args: Any) -> str:
    """Say which backend would run `op` on `args` (the op's own arguments), and why each other one would not.

    Returns:
        Several lines of text: the op with its chosen backend, then one line per backend in order of preference.

    Raises:
        ValueError: `op` is not an op of this package.

    Examples:
        >>> import torch
        >>> from seed_fast.ops import explain
        >>> print(explain("nearest_code", torch.zeros(4, 32), torch.zeros(8, 32)))  # doctest: +SKIP
    """
    if op not in _TABLE:
        raise ValueError(f"explain: op must be one of {', '.join(sorted(_TABLE))}, got {op!r}")
    wanted, chosen, lines = forced(), "", []
    for candidate in _TABLE[op]:
        reasons = candidate.reasons(*args)
        if wanted and candidate.name != wanted:
            reasons.append(f"backend {wanted!r} is forced")
        if not reasons and not chosen:
            chosen = candidate.name
            lines.append(f"  {candidate.name}: runs")
        else:
            lines.append(f"  {candidate.name}: " + ("; ".join(reasons) or f"{chosen} is preferred"))
    return "\n".join([f"{op}: {chosen or 'no backend'}", *lines])


def backend_table() -> list[dict[str, Any]]:
    """List every backend of every op, as `seed-fast info` prints them.

    Returns:
        One dict per op and backend: "op" and "backend" (names), "available" (bool), "reason" (why it is not available
        on this machine, or "") and "note" (a remark on the backend, or "").
    """
    rows = []
    for op, backends in sorted(_TABLE.items()):
        for candidate in backends:
            reason = candidate.unavailable()
            rows.append(
                {
                    "op": op,
                    "backend": candidate.name,
                    "available": not reason,
                    "reason": reason,
                    "note": candidate.note,
                }
            )
    return rows
