"""What one process finds out and all have to know: the first one looks, the others are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class FirstProcessError(RuntimeError):
    """In the other processes: the first one failed, and says why itself."""


def of_first(find: Callable[[], Any]) -> Any:
    """What `find` gives on the first process, a value of JSON, on every process; only there it is called.

    Raises:
      whatever it raises, on the first process. FirstProcessError: on the others, then.
    """
    if jax.process_count() == 1:
        return find()
    error: BaseException | None = None
    said = b""
    if jax.process_index() == 0:
        try:
            said = json.dumps({"found": find()}).encode()
        except BaseException as raised:  # also KeyboardInterrupt: the others wait
            error, said = raised, json.dumps({"error": f"{type(raised).__name__}: {raised}"}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(said))))
    given = np.frombuffer(said, np.uint8) if said else np.zeros(size, np.uint8)
    told = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(given), np.uint8)))
    if error is not None:
        raise error
    if "error" in told:
        raise FirstProcessError(told["error"])
    return told["found"]


def is_first() -> bool:
    """Whether this process writes what is not arrays."""
    return jax.process_index() == 0
