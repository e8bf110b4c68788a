"""Hugging Face safetensors to one of our checkpoints."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from etils import epath
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from rich.console import Console

from checkpoints_convert.safetensors_files import DTYPES, Tensor
from checkpoints_convert.sinks import OrbaxSink
from checkpoints_convert.sources import ConversionError, HfFolder, Source
from checkpoints_convert.tied_head import resolve_tied_head
from checkpoints_convert.transfer import destination_problems, overlap_problems, transfer
from stepaudio_jax import checkpoints
from stepaudio_jax.config import ConfigError, StepAudioConfig
from stepaudio_jax.inputs import InputError, parse_object, read_text
from stepaudio_jax.models.hf_names import mismatches, tensor_map
from stepaudio_jax.text import TokenizerError

DTYPE_CHOICES = {"keep": None, "bf16": DTYPES["BF16"], "f32": DTYPES["F32"]}
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
)
"""What travels with the weights, in either direction, where it exists."""
OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "preprocessor_config.json")
"""Of these, what is small and a JSON object."""


def resolve(name: str, revision: str | None = None) -> epath.Path:
    """The folder of a Hugging Face model: a local one, or a hub id, downloaded into the hub's own cache.

    The cache, the token (HF_TOKEN or `hf auth login`) and the going-on with a broken download are huggingface_hub's.

    Raises:
      ConversionError: neither a folder nor an id that the hub gives us.
    """
    folder = epath.Path(name)
    if folder.exists():
        if not folder.is_dir():
            raise ConversionError(f"{name}: expected a folder with config.json and *.safetensors, found a file")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise ConversionError(f"{name}: no permission to read this folder")
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ConversionError(f"{name}: no such folder, and not a hub id (owner/name)")
    try:
        patterns = ["*.safetensors", "*.safetensors.index.json", "config.json", *TEXT_FILES]
        return epath.Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise ConversionError(f"{name}: no such folder, and the hub cannot be reached") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ConversionError(f"{name}: no such folder, and the hub says: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConversionError(f"{name}: no such folder, and downloading it failed ({error})") from None


def revision_of(folder: epath.Path) -> str | None:
    """The commit of a folder in the hub's cache (…/snapshots/<commit>)."""
    return folder.name if folder.parent.name == "snapshots" else None


def read_texts(folder: epath.Path, problems: list[str]) -> dict[str, str]:
    """Tokenizer and generation files of a folder. What is wrong with them is added to `problems`."""
    texts = {}
    for name in TEXT_FILES:
        try:
            texts[name] = read_text(folder / name)
            if name in OBJECTS:
                parse_object(texts[name].encode(), str(folder / name))
        except FileNotFoundError:
            continue
        except InputError as error:
            problems.append(str(error))
    return texts


def tokenizer_problems(folder: epath.Path, config: StepAudioConfig | None) -> list[str]:
    """What keeps a folder's tokenizer from being used with a model."""
    try:
        checkpoints.read_tokenizer(folder) if config is None else checkpoints.load_tokenizer(folder, config)
    except TokenizerError as error:
        return [f"{error} (another folder's can be given with --tokenizer)"]
    return []


def from_hf(
    src: str,
    dst: epath.PathLike,
    *,
    dtype: str = "keep",
    revision: str | None = None,
    tokenizer: epath.PathLike | None = None,
    overwrite: bool = False,
    show: Console | None = None,
) -> None:
    """Converts a Step-Audio folder or hub id (nested or flat config.json) to a checkpoint.

    Args:
      dtype: "keep", "bf16" or "f32".
      tokenizer: a folder whose tokenizer files are taken instead of the source's own.
      show: where progress goes, if anywhere.

    Raises:
      ConversionError: every problem of source and destination, before anything is written.
    """
    source = HfFolder(resolve(src, revision))
    problems, config = list(source.problems), None
    try:
        config = StepAudioConfig.read(source.folder)
        if config.text_config is None or config.audio_encoder_config is None:
            part, other = ("decoder", "encoder") if config.text_config else ("encoder", "decoder")
            problems.append(f"{source.folder}: only the {part} of a model; give --{part} {src} and --{other} …")
            config = None
    except ConfigError as error:
        problems.append(str(error))
    texts = source.folder if tokenizer is None else epath.Path(tokenizer)
    problems += tokenizer_problems(texts, config)
    if config is not None and config.decoder.tie_word_embeddings:
        problems += resolve_tied_head(source)
    if config is not None and source.tensors:
        known = {f"missing {name}" for name in source.unreadable}  # their shard is named already
        found = [problem for problem in mismatches(config, shapes(source)) if problem not in known]
        problems += [f"{source.folder}: {problem}" for problem in found]
    problems += overlap_problems(source.folder, epath.Path(dst))
    about = {"source": Path(src).name if epath.Path(src).exists() else src, "revision": revision_of(source.folder)}
    files = read_texts(source.folder, problems)
    if tokenizer is not None:
        files |= read_texts(texts, problems)
    write_checkpoint(
        source, config, dst, problems, dtype=dtype, files=files, about=about, overwrite=overwrite, show=show
    )


def write_checkpoint(
    source: Source,
    config: StepAudioConfig | None,
    dst: epath.PathLike,
    problems: list[str],
    *,
    dtype: str,
    files: Mapping[str, str],
    about: Mapping[str, Any],
    overwrite: bool,
    show: Console | None,
) -> None:
    """Writes any source of released tensors as a checkpoint, unless there are problems, its own or the disk's."""
    dst = epath.Path(dst)
    stored = {name: Tensor(DTYPE_CHOICES[dtype] or t.dtype, t.shape) for name, t in source.tensors.items()}
    problems = problems + destination_problems(dst, sum(t.nbytes for t in stored.values()), overwrite=overwrite)
    if config is not None and dtype == "keep":
        problems += mixed_stacks(config, stored)
    if problems or config is None:
        raise ConversionError(*problems)
    places = tensor_map(config)
    transfer(
        source,
        dst,
        lambda folder: OrbaxSink(folder, places, {name: stored[name] for name in places}),
        kind="orbax",
        tensors=stored,
        files={"config.json": json.dumps(config.to_hf(), indent=2) + "\n", **files},
        about={**about, "dtype": dtype},
        overwrite=overwrite,
        show=show,
    )


def shapes(source: Source) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in source.tensors.items()}


def mixed_stacks(config: StepAudioConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """A stack of layers is one array, of one type."""
    kinds: dict[str, set[np.dtype]] = {}
    for name, place in tensor_map(config).items():
        if name in tensors:
            kinds.setdefault(".".join(place.path), set()).add(tensors[name].dtype)
    return [
        f"{name}: layers of types {', '.join(sorted(map(str, found)))}; choose one with --dtype"
        for name, found in kinds.items()
        if len(found) > 1
    ]
