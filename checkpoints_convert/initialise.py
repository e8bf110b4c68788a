"""A new Step-Audio out of public base weights: a Qwen2.5 decoder, the Qwen2-Audio encoder, a fresh adaptor.

The vocabulary grows to the tokenizer. Rows of tokens that the decoder does not know start as the mean of those it does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import tokenizers
from etils import epath
from rich.console import Console

from checkpoints_convert.from_hf import read_texts, resolve, revision_of, shapes, write_checkpoint
from checkpoints_convert.safetensors_files import Tensor
from checkpoints_convert.sources import ConversionError, HfFolder, slabs
from checkpoints_convert.tied_head import resolve_tied_head
from checkpoints_convert.transfer import destination_problems, overlap_problems
from stepaudio_jax import checkpoints
from stepaudio_jax.config import ConfigError, StepAudioConfig
from stepaudio_jax.inputs import InputError, read_text
from stepaudio_jax.models.hf_names import mismatches, released_shapes
from stepaudio_jax.text import Tokenizer, TokenizerError

QWEN2_AUDIO_PREFIX = "audio_tower."
VOCABULARY_ROWS = ("model.embed_tokens.weight", "lm_head.weight")
PAD_VOCABULARY_TO = 512
"""The release pads 158,258 entries to 158,720, the next multiple."""

SPECIALS = {
    "<|EOT|>": 151665,
    "<|BOT|>": 151666,
    "<audio_start>": 151688,
    "<audio_end>": 151689,
    "<audio_patch>": 151690,
    "<tts_start>": 151693,
    "<tts_end>": 151694,
    "<tts_pad>": 151695,
    **{f"<audio_{i}>": 151696 + i for i in range(6562)},
}
"""The release's special strings beyond Qwen2.5's, and their ids (MODEL.md §5)."""

_LAYER = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
_OTHER = {"positional_embedding": "embed_positions", "after_norm": "layer_norm"}


def qwen2_audio_names(config: StepAudioConfig) -> dict[str, str]:
    """Released encoder name → Qwen2-Audio's name of the same tensor (MODEL.md §2)."""
    names = {}
    for ours in released_shapes(config):
        if not ours.startswith("encoder."):
            continue
        head, _, kind = ours.removeprefix("encoder.").rpartition(".")
        if head.startswith("blocks."):
            _, layer, module = head.split(".", 2)
            theirs = f"layers.{layer}.{_LAYER[module]}"
        else:
            theirs = _OTHER.get(head, head)
        names[ours] = f"{QWEN2_AUDIO_PREFIX}{theirs}.{kind}"
    return names


def with_special_strings(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A Qwen2.5 tokenizer with the release's special strings, at the release's ids where those are still free.

    Ids in between are filled with `<|reserved_ID|>`.
    """
    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    size, added = backend.get_vocab_size(with_added_tokens=True), []
    for text, wanted in SPECIALS.items():
        if backend.token_to_id(text) is not None:
            continue
        filled = range(size + len(added), wanted if size + len(added) >= SPECIALS["<|EOT|>"] else 0)
        added += [*(f"<|reserved_{number}|>" for number in filled), text]
    backend.add_special_tokens(added)  # all at once: each call goes through all that were added before
    return backend


class ComposedSource:
    """The tensors of a new model, out of two folders and a seed."""

    def __init__(self, config: StepAudioConfig, decoder: HfFolder, encoder: HfFolder, *, old_rows: int, seed: int):
        self._decoder, self._encoder = decoder, encoder
        self._names = qwen2_audio_names(config)
        self._old_rows, self._seed = old_rows, seed
        self._means: dict[str, np.ndarray] = {}
        self.tensors = {}
        for name, shape in released_shapes(config).items():
            if name in self._names:
                dtype = encoder.tensors[self._names[name]].dtype
            elif name.startswith("adapter."):
                dtype = decoder.tensors["model.norm.weight"].dtype
            else:
                dtype = decoder.tensors[name].dtype
            self.tensors[name] = Tensor(dtype, shape)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        if name in self._names:
            return self._encoder.read(self._names[name], start, stop)
        if name.startswith("adapter."):
            return self._adaptor(name)[start:stop]
        if name not in VOCABULARY_ROWS:
            return self._decoder.read(name, start, stop)
        kept = min(max(start, self._old_rows), stop)
        old = self._decoder.read(name, start, kept)
        new = np.broadcast_to(self._mean(name), (stop - kept, *old.shape[1:]))
        return np.concatenate([old, new.astype(old.dtype)])

    def multiple(self, name: str) -> int:
        return 1

    def _mean(self, name: str) -> np.ndarray:
        if name not in self._means:
            tensor = self._decoder.tensors[name]._replace(shape=(self._old_rows, *self.tensors[name].shape[1:]))
            total = np.zeros(tensor.shape[1:], np.float64)
            for start, stop in slabs(tensor):
                total += self._decoder.read(name, start, stop).astype(np.float32).sum(axis=0, dtype=np.float64)
            self._means[name] = (total / self._old_rows).astype(np.float32)
        return self._means[name]

    def _adaptor(self, name: str) -> np.ndarray:
        """Weights of variance 1 / fan-in, biases 0, as a new `models.Adaptor` starts."""
        tensor = self.tensors[name]
        if len(tensor.shape) == 1:
            return np.zeros(tensor.shape, tensor.dtype)
        key = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(key, np.uint32))
        scale = 1 / math.sqrt(math.prod(tensor.shape[1:]))
        return (rng.standard_normal(tensor.shape, np.float32) * np.float32(scale)).astype(tensor.dtype)

    def fingerprint(self) -> str:
        return f"{self._decoder.fingerprint()} {self._encoder.fingerprint()} {self._old_rows} {self._seed}"


def from_parts(
    decoder: str,
    encoder: str,
    dst: epath.PathLike,
    *,
    dtype: str = "keep",
    tokenizer: epath.PathLike | None = None,
    seed: int = 0,
    overwrite: bool = False,
    show: Console | None = None,
) -> None:
    """Writes a checkpoint that starts from public base weights.

    Args:
      decoder: folder or hub id of a Qwen2ForCausalLM.
      encoder: folder or hub id of a Qwen2AudioForConditionalGeneration.
      tokenizer: a folder with a Step-Audio tokenizer; by default the decoder's own, with the special strings added.
      seed: of the adaptor.

    Raises:
      ConversionError: every problem of the sources and the destination, before anything is written.
    """
    heads, ears = HfFolder(resolve(decoder)), HfFolder(resolve(encoder))
    problems = [*heads.problems, *ears.problems]
    text = audio = None
    for source, part in ((heads, "text_config"), (ears, "audio_encoder_config")):
        try:
            config = StepAudioConfig.read(source.folder)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if getattr(config, part) is None or (part == "text_config" and config.audio_encoder_config is not None):
            kind = "Qwen2ForCausalLM" if part == "text_config" else "Qwen2AudioForConditionalGeneration"
            problems.append(f"{source.folder / 'config.json'}: expected a {kind}")
        elif part == "text_config":
            text = config
        else:
            audio = config.audio
    dst = epath.Path(dst)
    problems += [*overlap_problems(heads.folder, dst), *overlap_problems(ears.folder, dst)]
    problems += destination_problems(dst, 0, overwrite=overwrite)  # its size follows once the sources are sound
    backend, old_rows = _tokenizers(heads.folder, tokenizer, problems)
    if text is None or audio is None or backend is None or problems:
        raise ConversionError(*problems)

    padded = -(-backend.get_vocab_size(with_added_tokens=True) // PAD_VOCABULARY_TO) * PAD_VOCABULARY_TO
    ids = Tokenizer(backend)
    new = StepAudioConfig(
        dataclasses.replace(text.decoder, vocab_size=max(text.decoder.vocab_size, padded)),
        dataclasses.replace(audio, llm_dim=text.decoder.hidden_size),
        eos_token_ids=tuple(dict.fromkeys((*text.eos_token_ids, ids.end_of_turn))),
        pad_token_id=text.pad_token_id,
    )
    if text.decoder.tie_word_embeddings:
        problems += resolve_tied_head(heads)
    problems += [f"{heads.folder}: {problem}" for problem in mismatches(text, shapes(heads))]
    ours = {theirs: name for name, theirs in qwen2_audio_names(new).items()}
    heard = {name: t.shape for name, t in ears.tensors.items() if name.startswith(QWEN2_AUDIO_PREFIX)}
    expected = released_shapes(new)
    problems += [f"{ears.folder}: missing {name}" for name in ours if name not in heard]
    problems += [f"{ears.folder}: unknown {name}" for name in heard if name not in ours]
    problems += [
        f"{ears.folder}: {name}: expected shape {expected[ours[name]]}, found {shape}"
        for name, shape in heard.items()
        if name in ours and shape != expected[ours[name]]
    ]
    texts = read_texts(epath.Path(tokenizer) if tokenizer else heads.folder, problems)
    if problems:
        raise ConversionError(*problems)
    source = ComposedSource(new, heads, ears, old_rows=min(old_rows, text.decoder.vocab_size), seed=seed)
    names = {"decoder": heads, "encoder": ears}
    about = {
        part: {"source": folder.folder.name, "revision": revision_of(folder.folder)} for part, folder in names.items()
    } | {"seed": seed}
    write_checkpoint(
        source,
        new,
        dst,
        [],
        dtype=dtype,
        files=texts | {"tokenizer.json": backend.to_str()},
        about=about,
        overwrite=overwrite,
        show=show,
    )


def _tokenizers(
    folder: epath.Path, other: epath.PathLike | None, problems: list[str]
) -> tuple[tokenizers.Tokenizer | None, int]:
    """The new model's tokenizer, and how many of its ids the decoder knows."""
    path = folder / "tokenizer.json"
    try:
        old = tokenizers.Tokenizer.from_str(read_text(path))
    except FileNotFoundError:
        problems.append(f"{path}: no such file; it says which rows of the embedding are trained")
        return None, 0
    except InputError as error:
        problems.append(str(error))
        return None, 0
    except Exception as error:  # the library raises bare Exception for every kind of malformed file
        problems.append(f"{path}: not a tokenizer.json ({error})")
        return None, 0
    size = old.get_vocab_size(with_added_tokens=True)
    if other is None:
        return with_special_strings(old), size
    try:
        new = checkpoints.read_tokenizer(epath.Path(other)).backend
    except TokenizerError as error:
        problems.append(str(error))
        return None, size
    changed = [i for i in range(size) if old.id_to_token(i) != new.id_to_token(i)]
    if changed:
        first = changed[0]
        problems.append(
            f"{other}: not an extension of the decoder's tokenizer: {len(changed)} ids differ, the first is {first}: "
            f"{old.id_to_token(first)!r} and {new.id_to_token(first)!r}"
        )
    return new, size
