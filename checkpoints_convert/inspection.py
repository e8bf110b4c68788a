"""What is in a checkpoint, from its headers alone: a table of modules, shapes, types, parameters and bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from rich import box, filesize
from rich.markup import escape
from rich.table import Table

from checkpoints_convert.safetensors_files import CODES, DTYPES, Tensor
from checkpoints_convert.verify import open_folder
from stepaudio_jax.config import PRESETS, StepAudioConfig
from stepaudio_jax.inputs import one_line
from stepaudio_jax.models.hf_names import released_shapes

PARTS = (
    ("encoder.", "encoder"),
    ("adapter.", "adaptor"),
    ("model.embed_tokens.", "embedding"),
    ("lm_head.", "head"),
    ("model.", "decoder"),
    ("", "other"),
)


def tensors_of(name: str) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint of either kind, or of a preset as it is released (bfloat16)."""
    if name in PRESETS and name != "tiny":
        shapes = released_shapes(StepAudioConfig.preset(name))
        return {tensor: Tensor(DTYPES["BF16"], shape) for tensor, shape in shapes.items()}
    return open_folder(name).tensors


def report(name: str) -> Table:
    """One row for each kind of tensor, layers counted together, with sums by part of the model."""
    tensors = tensors_of(name)
    groups: dict[str, dict[tuple[str, Tensor], int]] = {part: {} for _, part in PARTS}
    for tensor, about in tensors.items():
        part = next(part for prefix, part in PARTS if tensor.startswith(prefix))
        key = (re.sub(r"(?<=\.)\d+(?=\.)", "{i}", tensor, count=1), about)
        groups[part][key] = groups[part].get(key, 0) + 1
    table = Table(title=escape(name), caption="{i} counts layers", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("tensor", overflow="fold")
    for column in ("shape", "type"):
        table.add_column(column, no_wrap=True)
    for column in ("of them", "parameters", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    for part, rows in groups.items():
        if not rows:
            continue
        for (tensor, about), count in rows.items():
            shape, shown = "×".join(map(str, about.shape)), escape(one_line(tensor))
            table.add_row(shown, shape, CODES.get(about.dtype, str(about.dtype)), *_numbers({(tensor, about): count}))
        table.add_row(part, "", "", *_numbers(rows), style="bold", end_section=True)
    everything = {key: count for rows in groups.values() for key, count in rows.items()}
    table.add_row("all", "", "", *_numbers(everything), style="bold")
    return table


def _numbers(rows: Mapping[tuple[str, Tensor], int]) -> tuple[str, str, str]:
    parameters = sum(count * math.prod(about.shape) for (_, about), count in rows.items())
    size = sum(count * about.nbytes for (_, about), count in rows.items())
    return f"{sum(rows.values()):,}", f"{parameters:,}", filesize.decimal(size)
