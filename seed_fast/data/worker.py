"""How a decoding process begins.

This file must not import numpy: its BLAS would start as many threads as there are cores, in every worker, before
`start_worker` could ask for one. Workers never import torch at all.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def start_worker() -> None:
    """One BLAS thread; deaf to Ctrl-C, on which the parent ends its workers; and gone when the parent is."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """The pool's pipes alone would keep a worker waiting for ever after its parent was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
