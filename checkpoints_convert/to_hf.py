"""One of our checkpoints to Hugging Face safetensors, in the released layout or as a plain Qwen2 decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from etils import epath
from rich.console import Console

from checkpoints_convert.adapted import open_checkpoint
from checkpoints_convert.from_hf import DTYPE_CHOICES, read_texts
from checkpoints_convert.safetensors_files import CODES, Tensor
from checkpoints_convert.sinks import ShardSink
from checkpoints_convert.sources import ConversionError
from checkpoints_convert.transfer import destination_problems, overlap_problems, transfer
from stepaudio_jax.inputs import is_remote

TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
DEFAULT_SHARD = 5 * 10**9


def to_hf(
    src: epath.PathLike,
    dst: epath.PathLike,
    *,
    dtype: str = "keep",
    max_shard_size: int = DEFAULT_SHARD,
    decoder_only: bool = False,
    overwrite: bool = False,
    show: Console | None = None,
) -> None:
    """Writes a checkpoint as safetensors shards with index, config.json, tokenizer and generation config. Adapters are
    merged into their base on the way.

    Args:
      max_shard_size: bytes of tensors in a shard; a larger tensor gets a shard of its own.
      decoder_only: leaves out encoder and adaptor: a Qwen2ForCausalLM that transformers loads.

    Raises:
      ConversionError, CheckpointError, ConfigError: what is wrong with source or destination, before anything is
        written.
    """
    dst = epath.Path(dst)
    source = open_checkpoint(src)
    kept = {
        name: Tensor(DTYPE_CHOICES[dtype] or tensor.dtype, tensor.shape)
        for name, tensor in source.tensors.items()
        if not decoder_only or name.startswith(("model.", "lm_head."))
    }
    problems = [*source.problems, *overlap_problems(source.folder, dst)]
    texts = read_texts(source.folder, problems)
    if is_remote(dst):
        problems.append(f"{dst}: shards are written in place, which only a local folder allows; copy them afterwards")
    problems += [
        f"{name}: {t.dtype} is no type of released weights; choose one with --dtype"
        for name, t in kept.items()
        if t.dtype not in CODES
    ]
    problems += destination_problems(dst, sum(t.nbytes for t in kept.values()), overwrite=overwrite)
    if problems:
        raise ConversionError(*problems)
    config = source.config.to_hf("decoder" if decoder_only else "nested")
    config["torch_dtype"] = config["dtype"] = main_dtype(kept)
    texts.setdefault(
        "generation_config.json",
        json.dumps({"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}, indent=2) + "\n",
    )
    transfer(
        source,
        dst,
        lambda folder: ShardSink(folder, kept, max_shard_size),
        kind=f"safetensors {max_shard_size}",
        tensors=kept,
        files={"config.json": json.dumps(config, indent=2) + "\n", **texts},
        about={"source": source.folder.name, "dtype": dtype},
        overwrite=overwrite,
        show=show,
    )


def main_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The type of most of the weights, as torch names it."""
    sizes: dict[np.dtype, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return TORCH_DTYPES[CODES[max(sizes, key=lambda dtype: sizes[dtype])]]
