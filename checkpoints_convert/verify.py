"""Do two checkpoints, of either kind, hold the same tensors? Or one what its manifest says?"""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import xxhash
from etils import epath
from rich.console import Console

from checkpoints_convert.adapted import AdaptedFolder, open_checkpoint
from checkpoints_convert.from_hf import resolve
from checkpoints_convert.progress import byte_bar
from checkpoints_convert.sources import ConversionError, HfFolder, OrbaxFolder, slabs
from checkpoints_convert.tied_head import EMBEDDING, HEAD, resolve_tied_head
from checkpoints_convert.transfer import MANIFEST, WORKERS
from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints.layout import PARAMS, refuse_unfinished
from stepaudio_jax.inputs import InputError, read_object

BF16_ROUNDING = 2.0**-8
"""The largest relative change that rounding to bfloat16 makes."""


class Difference(NamedTuple):
    """`largest`: absolute difference, or None where values were not compared."""

    name: str
    what: str
    largest: float | None = None


def open_folder(name: str) -> HfFolder | OrbaxFolder | AdaptedFolder:
    """A checkpoint of either kind, by what is in it.

    Raises:
      ConversionError: all that is wrong with it.
    """
    folder = checkpoints.resolve(name)
    refuse_unfinished(folder)
    source = open_checkpoint(folder) if (folder / PARAMS).exists() else HfFolder(resolve(name))
    if source.problems:
        raise ConversionError(*source.problems)
    return source


def compare(
    first: str, second: str, *, rtol: float = BF16_ROUNDING, atol: float = 0.0, show: Console | None = None
) -> list[Difference]:
    """Tensor by tensor: the same bits where the types are the same, |a − b| ≤ atol + rtol · |b| where they differ."""
    a, b = open_folder(first), open_folder(second)
    for folder, other in ((a, b), (b, a)):  # of a tied model, one may hold the output matrix and the other not
        if isinstance(folder, HfFolder) and HEAD not in other.tensors and EMBEDDING in other.tensors:
            resolve_tied_head(folder)
    differences = [Difference(name, f"only in {first}") for name in a.tensors if name not in b.tensors]
    differences += [Difference(name, f"only in {second}") for name in b.tensors if name not in a.tensors]
    both = [name for name in a.tensors if name in b.tensors]
    for name in both:
        if a.tensors[name].shape != b.tensors[name].shape:
            differences.append(Difference(name, f"shape {a.tensors[name].shape} and {b.tensors[name].shape}"))
    same_shape = [name for name in both if a.tensors[name].shape == b.tensors[name].shape]

    def one(name: str, advance: Callable[[int], None]) -> Difference | None:
        exact = a.tensors[name].dtype == b.tensors[name].dtype
        wrong, largest = 0, 0.0
        for start, stop in slabs(a.tensors[name], math.lcm(a.multiple(name), b.multiple(name))):
            x, y = a.read(name, start, stop), b.read(name, start, stop)
            if not (exact and np.array_equal(_bits(x), _bits(y))):
                x, y = x.astype(np.float32), y.astype(np.float32)
                difference = np.abs(x - y)
                unequal = ~((x == y) | (np.isnan(x) & np.isnan(y)))
                if not exact:
                    unequal &= ~(difference <= atol + rtol * np.abs(y))
                wrong += max(int(unequal.sum()), int(exact))  # bits may differ where values do not: −0, NaN
                largest = max(largest, float(np.nanmax(difference, initial=0.0)))
            advance(x.size * a.tensors[name].dtype.itemsize)
        return Difference(name, f"{wrong:,} values differ", largest) if wrong else None

    total = sum(a.tensors[name].nbytes for name in same_shape)
    return differences + [found for found in _in_parallel(one, same_shape, total, show) if found]


def check_manifest(name: str, *, show: Console | None = None) -> list[Difference]:
    """Compares a converted checkpoint with the checksums its manifest holds.

    Raises:
      ConversionError: no manifest.
    """
    source = open_folder(name)
    path = epath.Path(source.folder) / MANIFEST
    try:
        recorded = {name: entry["xxh3_128"] for name, entry in read_object(path)["tensors"].items()}
    except InputError as error:
        raise ConversionError(str(error)) from None
    except (OSError, KeyError, TypeError, AttributeError):
        raise ConversionError(f"{path}: no manifest with checksums; name a second checkpoint to compare with") from None
    differences = [Difference(n, "in the manifest, not here") for n in recorded if n not in source.tensors]
    differences += [Difference(n, "here, not in the manifest") for n in source.tensors if n not in recorded]

    def one(name: str, advance: Callable[[int], None]) -> Difference | None:
        digest = xxhash.xxh3_128()
        for start, stop in slabs(source.tensors[name], source.multiple(name)):
            digest.update(_bits(source.read(name, start, stop)).data)
            advance((stop - start) * source.tensors[name].row_bytes)
        return None if digest.hexdigest() == recorded[name] else Difference(name, "another checksum")

    names = [name for name in source.tensors if name in recorded]
    total = sum(source.tensors[name].nbytes for name in names)
    return differences + [found for found in _in_parallel(one, names, total, show) if found]


def _bits(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)


def _in_parallel(
    one: Callable[[str, Callable[[int], None]], Difference | None],
    names: Iterable[str],
    total: int,
    show: Console | None,
) -> list[Difference | None]:
    with byte_bar(show, "comparing", total) as advance, concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda name: one(name, advance), names))
