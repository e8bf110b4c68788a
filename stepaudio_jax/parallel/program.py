"""The protocol between the stages and the planner: what a stage runs, ready to be jitted, compiled or weighed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted function of a stage and the shapes it is called with.

    Attributes:
      fn: the very function the trainer or engine runs.
      abstract_args: its arguments as trees of jax.ShapeDtypeStruct.
      in_shardings: of the arguments, likewise; None on a single device.
      out_shardings: of the results; None leaves them to the compiler.
      donate: positions of the arguments given away.
      groups: what the arguments hold, by name ("parameters", "KV cache"): parts of `abstract_args`, by `(position,)` or
        `(position, field)`.
      tokens: what one call advances by, over all devices.
      flops: arithmetic the model itself needs for that, over all devices (models/flops.py).
      repeated_flops: of it, what is computed twice by design, such as logits that are too many to keep.
      about: the shape of one call, for people.
    """

    fn: Callable[..., Any]
    abstract_args: tuple[Any, ...]
    in_shardings: tuple[Any, ...]
    out_shardings: Any = None
    donate: tuple[int, ...] = ()
    groups: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    tokens: int = 0
    flops: float = 0.0
    repeated_flops: float = 0.0
    about: str = ""

    def jit(self) -> Any:
        """The function under jax.jit with its shardings."""
        options = {} if self.out_shardings is None else {"out_shardings": self.out_shardings}
        options["keep_unused"] = True  # weights that a program does not read are in memory all the same
        return jax.jit(self.fn, in_shardings=self.in_shardings, donate_argnums=self.donate, **options)

    def lower(self) -> Any:
        """Traced for the mesh's devices, which need not be this machine's."""
        with jax.set_mesh(jax.tree.leaves(self.in_shardings)[0].mesh):
            return self.jit().lower(*self.abstract_args)
