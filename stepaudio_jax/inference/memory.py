"""How many pages of keys and values there are to be."""

from __future__ import annotations

import dataclasses
import math
import os

import jax

from stepaudio_jax.inference.options import EngineOptions
from stepaudio_jax.inference.programs import Programs

DEVICE_SHARE = 0.9
"""Of what is free on an accelerator; the rest is for what programs need while they run."""
HOST_SHARE = 0.25
"""Of what is free in a machine's memory, which other things need too."""


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Attributes: pages of each lane; bytes_a_page, on all devices of a lane together."""

    pages: int
    bytes_a_page: int

    @classmethod
    def of(cls, programs: Programs, options: EngineOptions, page_size: int, table_width: int) -> MemoryPlan:
        """No more than every row's longest sequence would need, and no more than there is room for.

        Raises:
          ValueError: room for less than one page.
        """
        one = programs.memory_shapes(1, page_size, 1, 1, quantised=options.kv_cache == "int8").pages
        bytes_a_page = math.prod(one.shape[1:]) * one.dtype.itemsize
        if options.pages is not None:
            return cls(options.pages, bytes_a_page)
        memory = options.memory if options.memory is not None else free_memory(programs)
        pages = min(options.max_rows * table_width, memory // programs.lanes // bytes_a_page)
        if pages < 1:
            raise ValueError(
                f"memory: a page of {page_size} tokens takes {bytes_a_page:,} bytes, and there are {memory:,} for all"
            )
        return cls(int(pages), bytes_a_page)


def free_memory(programs: Programs) -> int:
    """Bytes that may go to keys and values, over all devices of this run."""
    devices = programs.rules.mesh.devices.flat if programs.rules else jax.devices()[:1]
    stats = [device.memory_stats() for device in devices if device.process_index == jax.process_index()]
    if all(stat and "bytes_limit" in stat for stat in stats):
        least = min(stat["bytes_limit"] - stat["bytes_in_use"] for stat in stats)
        return int(least * DEVICE_SHARE) * len(list(devices))
    free = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else os.sysconf("SC_PHYS_PAGES")
    return int(free * os.sysconf("SC_PAGE_SIZE") * HOST_SHARE)
