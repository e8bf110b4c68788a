"""The oracle: the released network in torch, written from the published facts and transformers' own modules.

One clip and one prompt at a time, nothing padded and nothing batched: what this computes on a clip alone is
what every batch must give. It shares no code with the package; only the config and the released tensor names.

    samples ─ log-mel ─ Qwen2AudioEncoder's submodules ─ adaptor ─┐ at the patch tokens
    tokens ─ embedding ───────────────────────────────────────────┴─ Qwen2ForCausalLM ─ logits

Shapes: N samples, T mel frames, C frames at 50 Hz, P at 25 Hz, A at 12.5 Hz, n audio tokens, S encoder width.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import librosa
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, relu
from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig, Qwen2Config, Qwen2ForCausalLM

from stepaudio_jax.config import DecoderConfig, StepAudioConfig

torch.set_num_threads(1)  # the models are tiny: on a busy machine threads mostly wait for each other


class Lengths(NamedTuple):
    """Every count that follows from a clip's samples, by MODEL.md §4."""

    mel: int
    counted: int
    conv: int
    pooled: int
    adaptor: int
    tokens: int


def lengths(samples: int, rule: str) -> Lengths:
    mel = (samples + 479) // 160
    counted = {"hf": mel - 2, "vllm": mel}[rule]
    conv = (mel - 1) // 2 + 1
    pooled = conv // 2
    heard = (counted + 1) // 2 // 2
    return Lengths(mel, counted, conv, pooled, (pooled - 1) // 2 + 1, (heard - 1) // 2 + 1)


def log_mel(samples: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N] at 16 kHz → [T, 128] in `dtype`, MODEL.md §3."""
    wave = pad(torch.from_numpy(np.asarray(samples)).to(dtype), (0, 479))
    window = torch.hann_window(400, periodic=True, dtype=dtype)
    spectrum = torch.stft(wave, 400, 160, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum[:, :-1].abs() ** 2
    filters = librosa.filters.mel(sr=16000, n_fft=400, n_mels=128, dtype=np.float64)
    logs = torch.clamp(torch.from_numpy(filters).to(dtype) @ power, min=1e-10).log10()
    return ((torch.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0).T


def key_bias(mel: int, counted: int, dtype: torch.dtype) -> Tensor:
    """[1, 1, C, C] added to the scores: a mask at mel rate, of which every second frame is taken."""
    padding = (torch.arange(mel) >= counted)[(mel + 1) % 2 :: 2]
    bias = torch.zeros(len(padding), dtype=dtype).masked_fill(padding, -1e10)
    return bias.expand(1, 1, len(padding), len(padding))


class Adapter(nn.Module):
    """Spelled as in the checkpoints."""

    def __init__(self, state: int, middle: int, out: int):
        super().__init__()
        self.conv = nn.Conv1d(state, state, 3, stride=2, padding=1)
        self.linear1 = nn.Linear(state, middle)
        self.linear2 = nn.Linear(middle, out)

    def forward(self, x: Tensor) -> Tensor:
        """[P, S] → [A, hidden]."""
        x = gelu(self.conv(x.T[None]))[0].T
        return self.linear2(relu(self.linear1(x)))


class Reference(nn.Module):
    def __init__(self, config: StepAudioConfig):
        super().__init__()
        audio, self.config = config.audio, config
        self.encoder = Qwen2AudioEncoder(
            Qwen2AudioEncoderConfig(
                num_mel_bins=audio.n_mels,
                encoder_layers=audio.n_audio_layer,
                encoder_attention_heads=audio.n_audio_head,
                encoder_ffn_dim=4 * audio.n_audio_state,
                d_model=audio.n_audio_state,
                max_source_positions=audio.n_audio_ctx,
                attn_implementation="eager",
            )
        )
        self.adapter = Adapter(audio.n_audio_state, audio.adapter_state, audio.llm_dim)
        self.decoder = Qwen2ForCausalLM(qwen2_config(config.decoder))
        self.eval().requires_grad_(True)

    def encode(self, mel: Tensor, samples: int, rule: str) -> Tensor:
        """[T, mels] → [P, S]: the encoder's rows at 25 Hz, after its last norm."""
        encoder, sizes = self.encoder, lengths(samples, rule)
        assert mel.shape[0] == sizes.mel
        x = gelu(encoder.conv1(mel.to(encoder.conv1.weight.dtype).T[None]))
        x = gelu(encoder.conv2(x)).permute(0, 2, 1)
        assert x.shape[1] == sizes.conv
        x = x + encoder.embed_positions.weight[: sizes.conv]
        bias = key_bias(sizes.mel, sizes.counted, x.dtype)
        for layer in encoder.layers:
            x = layer(x, bias)
        x = encoder.avg_pooler(x.permute(0, 2, 1)).permute(0, 2, 1)
        return encoder.layer_norm(x)[0]

    def features(self, mel: Tensor, samples: int, rule: str) -> Tensor:
        """[T, mels] → [n, hidden]: one row per audio token."""
        sizes = lengths(samples, rule)
        rows = self.adapter(self.encode(mel, samples, rule))
        assert rows.shape[0] == sizes.adaptor >= sizes.tokens
        return rows[: sizes.tokens]

    def embed(self, tokens: Sequence[int], patch: int, features: Sequence[Tensor]) -> Tensor:
        """[1, tokens, hidden]: token embeddings, the features in place of the patch tokens, in order."""
        ids = torch.tensor(tokens)
        embeds, at = self.decoder.model.embed_tokens(ids), ids == patch
        if features:
            rows = torch.cat(list(features))
            assert at.sum() == len(rows)
            embeds = embeds.masked_scatter(at[:, None], rows)
        return embeds[None]

    def logits(self, embeds: Tensor) -> Tensor:
        """[1, tokens, hidden] → [tokens, vocab]."""
        return self.decoder(inputs_embeds=embeds, use_cache=False).logits[0]

    @torch.no_grad()
    def greedy(self, embeds: Tensor, steps: int) -> list[int]:
        """The next `steps` tokens by transformers' own `generate`, with its cache; nothing ends it early."""
        out = self.decoder.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return out[0].tolist()

    def in_dtype(self, dtype: torch.dtype) -> Reference:
        """A copy, its parameters in `dtype`. Rotary frequencies stay float32, as transformers has them."""
        other = copy.deepcopy(self)
        for parameter in other.parameters():
            parameter.data = parameter.data.to(dtype)
        return other


def qwen2_config(decoder: DecoderConfig) -> Qwen2Config:
    rope = {"rope_type": "default", "rope_theta": decoder.rope_theta}
    if decoder.rope_scaling is not None:
        given = {k: v for k, v in dataclasses.asdict(decoder.rope_scaling).items() if v is not None}
        if decoder.rope_scaling.rope_type == "linear":
            given = {k: given[k] for k in ("rope_type", "factor")}
        rope |= given
    return Qwen2Config(
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.intermediate_size,
        num_hidden_layers=decoder.num_hidden_layers,
        num_attention_heads=decoder.num_attention_heads,
        num_key_value_heads=decoder.num_key_value_heads,
        head_dim=decoder.head_dim,
        rms_norm_eps=decoder.rms_norm_eps,
        rope_parameters=rope,
        max_position_embeddings=decoder.max_position_embeddings,
        tie_word_embeddings=decoder.tie_word_embeddings,
        attn_implementation="eager",
    )


RELEASED = (
    (r"^decoder\.", ""),
    (r"^encoder\.embed_positions\.", "encoder.positional_embedding."),
    (r"^encoder\.layer_norm\.", "encoder.after_norm."),
    (r"^encoder\.layers\.", "encoder.blocks."),
    (r"^(encoder\.blocks\.\d+)\.self_attn\.q_proj\.", r"\1.attn.query."),
    (r"^(encoder\.blocks\.\d+)\.self_attn\.k_proj\.", r"\1.attn.key."),
    (r"^(encoder\.blocks\.\d+)\.self_attn\.v_proj\.", r"\1.attn.value."),
    (r"^(encoder\.blocks\.\d+)\.self_attn\.out_proj\.", r"\1.attn.out."),
    (r"^(encoder\.blocks\.\d+)\.self_attn_layer_norm\.", r"\1.attn_ln."),
    (r"^(encoder\.blocks\.\d+)\.fc1\.", r"\1.mlp.0."),
    (r"^(encoder\.blocks\.\d+)\.fc2\.", r"\1.mlp.2."),
    (r"^(encoder\.blocks\.\d+)\.final_layer_norm\.", r"\1.mlp_ln."),
)
"""From the names of the modules above to the released ones (MODEL.md §2), applied in order."""


def released_name(name: str) -> str:
    for pattern, replacement in RELEASED:
        name = re.sub(pattern, replacement, name)
    return name


def random_model(config: StepAudioConfig, seed: int) -> tuple[Reference, dict[str, np.ndarray]]:
    """A model with every weight, bias and norm away from 0 and 1, and its state under the released names.

    Values are bfloat16 numbers held in float32, as a released checkpoint's are: a cast loses nothing.
    """
    reference = Reference(config)
    rng = np.random.default_rng(seed)
    state = {}
    for name, parameter in reference.named_parameters():  # a tied head appears once, as the embedding
        values = rng.standard_normal(parameter.shape, np.float32)
        values *= _scale(name, values.shape, config.decoder.tie_word_embeddings)
        values += 1 if _is_norm_weight(name) else 0
        parameter.data = torch.from_numpy(values).bfloat16().float()
        state[released_name(name)] = parameter.data.numpy().copy()
    return reference, state


def _is_norm_weight(name: str) -> bool:
    return bool(re.search(r"norm\.weight$", name))


def _scale(name: str, shape: Sequence[int], tied: bool) -> float:
    """Standard deviation: activations near 1, attention neither uniform nor one-hot, logits a few units wide.

    Tied embeddings are small in the stream, or every token would predict itself.
    """
    if name.endswith(".bias") or _is_norm_weight(name):
        return 0.2
    if "embed" in name:
        return 0.15 if tied else 0.4
    gain = 3.0 if "lm_head" in name else 1.5 if re.search(r"[qk]_proj", name) else 1.0
    return gain / math.sqrt(math.prod(shape[1:]))


def gradients(reference: Reference) -> dict[str, np.ndarray]:
    """The gradients that the last backward left, under the released names; zero where it reached nothing."""
    return {
        released_name(name): (torch.zeros_like(p) if p.grad is None else p.grad).numpy().copy()
        for name, p in reference.named_parameters()
    }
