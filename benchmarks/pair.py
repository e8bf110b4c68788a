"""The same random decoder twice, ours and transformers', of Qwen2.5-0.5B's shape, and how the two are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import tokenizers
import torch
import transformers
from flax import nnx

from stepaudio_jax.config import AudioEncoderConfig, DecoderConfig, StepAudioConfig
from stepaudio_jax.models import StepAudio, hf_names
from stepaudio_jax.text import Tokenizer

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
"""Qwen2.5-0.5B's."""


def byte_tokenizer() -> Tokenizer:
    """One id per byte, so that a prompt's length is its text's; the model's other ids are made-up words."""
    special = ["<|endoftext|>", "<|EOT|>", "<|BOT|>", "<audio_start>", "<audio_end>", "<audio_patch>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [f"w{i}" for i in range(SHAPE["vocab_size"] - len(alphabet) - len(special))]
    vocab = {entry: i for i, entry in enumerate([*alphabet, *words])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(special)
    return Tokenizer(backend)


def models(layers: int) -> tuple[StepAudio, torch.nn.Module]:
    """The same random decoder twice."""
    audio = AudioEncoderConfig(n_audio_state=16, n_audio_head=2, n_audio_layer=1, llm_dim=896, adapter_state=16)
    text = DecoderConfig(**(SHAPE | {"num_hidden_layers": layers}), head_dim=64, rope_theta=1e6)
    # No end of text: both sides are to write every token they are asked for.
    ours = StepAudio(StepAudioConfig(text, audio, eos_token_ids=(), pad_token_id=0), rngs=nnx.Rngs(0))
    config = transformers.Qwen2Config(**(SHAPE | {"num_hidden_layers": layers}))
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
    with torch.device("meta"):
        theirs = transformers.Qwen2ForCausalLM(config)
    tensors = {k: torch.from_numpy(v.copy()) for k, v in hf_names.save_state(ours).items() if k.startswith("model.")}
    theirs = theirs.to_empty(device="cpu")
    theirs.load_state_dict(tensors, strict=False)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)  # its buffers are not in a state dict
    theirs.generation_config.eos_token_id = None
    return ours, theirs.eval().float()


def median_seconds(*runs: Callable[[], object], repeat: int) -> list[float]:
    """Median seconds of each, their repetitions taking turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeat):
        for run, mine in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in times]
