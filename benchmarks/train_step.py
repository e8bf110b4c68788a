"""A training step of the tiny model beside two peers with the same weights and the same batch, float32 on this CPU.

    make bench, or: .venv-parity/bin/python -m benchmarks.train_step [--quick]

"plain JAX" is what one would write by hand for this batch: jnp functions over a tree of per-layer arrays, attention
as a softmax of all scores, logits of all tokens, optax. "torch" is transformers' encoder and decoder, run over the
batch as a whole, with torch's fused AdamW. Every row is full and has one clip of the same length, so that neither peer
needs a mask for padding. All compute log-mel from waveforms, clip gradients and take an AdamW step; losses are compared
first. "ours, from log-mels" is the same step without the front end, which is what storing them could save. Repetitions
alternate, so that a busy machine slows all alike; ratios are of the medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from benchmarks.pair import median_seconds
from stepaudio_jax import training
from stepaudio_jax.audio import lengths, log_mel
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.data import Batch, Example, collate
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.encoder import key_frames
from stepaudio_jax.models.layers import rope_frequencies
from stepaudio_jax.text import Rendered
from tests.parity import torch_reference

ROWS, LENGTH, SAMPLES, WIDTH = 32, 112, 54_000, 55_040
RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.98), 0.05, 1.0


def batch(rows: int) -> Batch:
    """Full rows: a clip, then words, of which the second half is trained."""
    rng = np.random.default_rng(0)
    count = int(lengths.audio_tokens(SAMPLES))
    mask = np.arange(LENGTH) >= LENGTH // 2
    examples = [
        Example(
            Rendered(rng.integers(10, 1000, LENGTH).astype(np.int32), mask, ((1, count),)),
            (rng.normal(0, 0.1, SAMPLES).astype(np.float32),),
        )
        for _ in range(rows)
    ]
    return collate([[one] for one in examples], length=LENGTH, sound_rows=rows, sound_samples=WIDTH)


def ours(model: StepAudio, data: Batch) -> Callable[[], float]:
    optimizer = training.make_optimizer(_optim(), 1_000_000)
    graphdef, state = training.init_state(model, optimizer)
    step = jax.jit(
        training.make_train_step(graphdef, optimizer, training.StepOptions(scan_layers=False)), donate_argnums=0
    )

    def run() -> float:
        nonlocal state
        state, metrics = step(state, data)
        return float(metrics["loss"])

    return run


class _OfMels(StepAudio):
    """Takes the log-mels of `AudioInput.samples`."""

    encode_audio = StepAudio.encode_mel


def without_front_end(model: StepAudio, data: Batch) -> Callable[[], float]:
    """Ours on log-mels that are there before the step, as those that `data build --mel` stores could be."""
    assert data.audio is not None
    mels = np.asarray(jax.jit(log_mel)(*data.audio[:3]))
    twin = nnx.merge(nnx.graphdef(model), jax.tree.map(jnp.copy, nnx.state(model)))  # a step overwrites its arrays
    twin.__class__ = _OfMels
    return ours(twin, data._replace(audio=data.audio._replace(samples=mels)))


def _optim() -> Any:
    from configs import tiny

    config = tiny.get_config().optim
    config.update({"schedule": "constant", "learning_rate": RATE, "warmup_steps": 0, "weight_decay": DECAY})
    config.update({"b1": BETAS[0], "b2": BETAS[1], "clip_norm": CLIP})
    return config


# What one would write by hand.


def dense(p, x):
    y = x @ p["kernel"]
    return y + p["bias"] if "bias" in p else y


def layer_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def rms_norm(p, x, eps):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"]


def conv(p, x, stride):
    window = jax.lax.conv_general_dilated(x, p["kernel"], (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"))
    return window + p["bias"]


def attention(q, k, v, mask):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(mask, scores, -1e30)), v)


def rotate(x, cos, sin):
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def encode(p, config, samples):
    mel = log_mel(samples, jnp.full(len(samples), SAMPLES))[:, : lengths.mel_frames(SAMPLES)]
    x = jax.nn.gelu(conv(p["conv1"], mel, 1), approximate=False)
    x = jax.nn.gelu(conv(p["conv2"], x, 2), approximate=False)
    x = x + p["positional_embedding"][: x.shape[1]]
    mask = jnp.arange(x.shape[1]) < key_frames(np.int32(SAMPLES), "hf")
    for layer in p["layers"]:
        y = layer_norm(layer["attn_ln"], x)
        heads = (*y.shape[:2], config.n_audio_head, -1)
        q, k, v = (dense(layer[name], y).reshape(heads) for name in ("query", "key", "value"))
        x = x + dense(layer["out"], attention(q, k, v, mask).reshape(x.shape))
        y = jax.nn.gelu(dense(layer["mlp_up"], layer_norm(layer["mlp_ln"], x)), approximate=False)
        x = x + dense(layer["mlp_down"], y)
    pairs = x.shape[1] // 2
    return layer_norm(p["after_norm"], x[:, : 2 * pairs].reshape(len(x), pairs, 2, -1).mean(2))


def plain_logits(p, config: StepAudioConfig, data: Batch):
    x = encode(p["encoder"], config.audio, data.audio.samples)
    x = jax.nn.gelu(conv(p["adaptor"]["conv"], x, 2), approximate=False)
    features = dense(p["adaptor"]["linear2"], jax.nn.relu(dense(p["adaptor"]["linear1"], x)))
    count, text = int(lengths.audio_tokens(SAMPLES)), config.decoder
    p = p["decoder"]
    x = p["embed_tokens"][data.tokens].at[:, 1 : 1 + count].set(features[:, :count])
    angles = jnp.arange(LENGTH)[:, None] * jnp.asarray(rope_frequencies(text)[0], jnp.float32)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    for layer in p["layers"]:
        y = rms_norm(layer["input_layernorm"], x, text.rms_norm_eps)
        q, k, v = (dense(layer[f"{n}_proj"], y).reshape(*y.shape[:2], -1, text.head_dim) for n in "qkv")
        group = text.num_attention_heads // text.num_key_value_heads
        k, v = jnp.repeat(rotate(k, cos, sin), group, 2), jnp.repeat(v, group, 2)
        x = x + dense(layer["o_proj"], attention(rotate(q, cos, sin), k, v, causal).reshape(*x.shape[:2], -1))
        y = rms_norm(layer["post_attention_layernorm"], x, text.rms_norm_eps)
        x = x + dense(layer["down_proj"], jax.nn.silu(dense(layer["gate_proj"], y)) * dense(layer["up_proj"], y))
    return rms_norm(p["norm"], x, text.rms_norm_eps) @ p["lm_head"].T


def plain(model: StepAudio, data: Batch) -> Callable[[], float]:
    params = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for name in ("encoder", "decoder"):
        stack = params[name]["layers"]
        depth = jax.tree.leaves(stack)[0].shape[0]
        params[name]["layers"] = [jax.tree.map(lambda a, i=i: jnp.array(a[i]), stack) for i in range(depth)]
    decays = jax.tree_util.tree_map_with_path(lambda key, _: key[-1].key not in ("scale", "bias"), params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(RATE, *BETAS, weight_decay=DECAY, mask=decays)
    )
    state, config = optimizer.init(params), model.config

    def loss(params, data: Batch):
        logits = plain_logits(params, config, data)[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.tokens[:, 1:])
        mask = data.loss_mask[:, 1:]
        return jnp.where(mask, losses, 0).sum() / mask.sum()

    def step(params, state, data):
        value, grads = jax.value_and_grad(loss)(params, data)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    jitted = jax.jit(step, donate_argnums=(0, 1))

    def run() -> float:
        nonlocal params, state
        params, state, value = jitted(params, state, data)
        return float(value)

    return run


def torch_twin(model: StepAudio, data: Batch) -> Callable[[], float]:
    from stepaudio_jax.models import hf_names

    twin = torch_reference.Reference(model.config)
    own = {torch_reference.released_name(name): parameter for name, parameter in twin.named_parameters()}
    for name, value in hf_names.save_state(model).items():
        own[name].data = torch.from_numpy(np.array(value))
    twin.encoder.embed_positions.requires_grad_(True)
    matrices = [p for n, p in own.items() if "norm" not in n and not n.endswith(".bias") and "_ln" not in n]
    rest = [p for p in own.values() if not any(p is other for other in matrices)]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=1e-8, fused=True)
    sizes = torch_reference.lengths(SAMPLES, "hf")
    bias = torch_reference.key_bias(sizes.mel, sizes.counted, torch.float32)
    window = torch.hann_window(400, periodic=True)
    from librosa.filters import mel as mel_bank

    filters = torch.from_numpy(mel_bank(sr=16000, n_fft=400, n_mels=128).astype(np.float32))
    samples = torch.from_numpy(data.audio.samples[:, :SAMPLES].copy())
    tokens, mask = torch.from_numpy(data.tokens.astype(np.int64)), torch.from_numpy(data.loss_mask)[:, 1:]

    def features():
        spectrum = torch.stft(F.pad(samples, (0, 479)), 400, 160, window=window, return_complex=True)
        logs = torch.clamp(filters @ spectrum[..., :-1].abs() ** 2, min=1e-10).log10()
        mel = (torch.maximum(logs, logs.amax((1, 2), keepdim=True) - 8) + 4) / 4
        encoder = twin.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).permute(0, 2, 1)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for layer in encoder.layers:
            x = layer(x, bias)
        x = encoder.layer_norm(encoder.avg_pooler(x.permute(0, 2, 1)).permute(0, 2, 1))
        x = F.gelu(twin.adapter.conv(x.permute(0, 2, 1))).permute(0, 2, 1)
        return twin.adapter.linear2(F.relu(twin.adapter.linear1(x)))[:, : sizes.tokens]

    def run() -> float:
        optimizer.zero_grad()
        embeds = twin.decoder.model.embed_tokens(tokens)
        embeds = torch.cat([embeds[:, :1], features(), embeds[:, 1 + sizes.tokens :]], 1)
        logits = twin.decoder(inputs_embeds=embeds, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits[mask], tokens[:, 1:][mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows and repetitions: does it run at all")
    args = parser.parse_args()
    rows, repeat = (4, 2) if args.quick else (ROWS, 15)
    torch.manual_seed(0)
    model = StepAudio(StepAudioConfig.preset("tiny"), rngs=nnx.Rngs(0))
    data = batch(rows)
    runs = {
        "torch": torch_twin(model, data), "plain JAX": plain(model, data), "ours": ours(model, data),
        "ours, from log-mels": without_front_end(model, data),
    }  # fmt: skip
    losses = {name: [run() for _ in range(3)] for name, run in runs.items()}
    for name, found in losses.items():
        worst = max(abs(a - b) for a, b in zip(found, losses["ours"], strict=True))
        if worst > 1e-3:
            raise SystemExit(f"{name}: its losses {found} are not ours, {losses['ours']}")
    seconds = dict(zip(runs, median_seconds(*runs.values(), repeat=repeat), strict=True))
    table = Table(title=f"tiny, {rows} rows of {LENGTH} tokens, {SAMPLES / 16000:.1f} s of sound each, float32")
    for column in ("", "a step", "beside ours", "loss of the third step"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f} s", f"{value / seconds['ours']:.2f} ×", f"{losses[name][-1]:.5f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
