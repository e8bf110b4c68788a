"""How large keys and values are, channel by channel, for a cache of integers.

A few built-in prompts, of words and of sound, are run through the model once. A key's channel i turns into channel
i + D/2 and back as its position grows (RoPE), so the two get one scale: the largest length of the pair. Values are
not turned. What is larger than anything here by more than `MARGIN` is clipped.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stepaudio_jax.audio import lengths, stack
from stepaudio_jax.data import bucket, encode
from stepaudio_jax.inference.options import powers
from stepaudio_jax.inference.programs import Programs
from stepaudio_jax.inference.prompts import SOUND_WIDTHS
from stepaudio_jax.inference.sounds import ROWS
from stepaudio_jax.text import Audio, Conversation, Tokenizer, assistant, human

MARGIN = 1.25
SECONDS = 5

TEXTS = (
    "Please listen closely. Who is speaking, in what mood, and what can be heard in the background?",
    "The price rose from 1,204.50 to 1,377.25 between March and July; by how much is that, in percent?",
    "请仔细听这段录音，说话人是谁，语气怎么样，背景里有什么声音？",
    "def area(width, height):\n    return width * height\n\nWhat does this function do, and when does it fail?",
)
THINK = "I hear a calm voice, rather low, speaking slowly; behind it there is a steady hum, then a short, bright click."


def prompts() -> list[Conversation]:
    """What the scales are read from: each text alone and with a thoughtful reply, about noise and about a sweep."""
    rng = np.random.default_rng(0)
    time = np.arange(SECONDS * lengths.SAMPLE_RATE) / lengths.SAMPLE_RATE
    noise = rng.standard_normal(len(time)).astype(np.float32) * 0.1
    sweep = (0.3 * np.sin(2 * np.pi * (100 * time + 300 * time**2))).astype(np.float32)
    heard = [[Audio(noise)], [Audio(sweep)], [], [Audio(noise * 0.01), Audio(sweep)]]
    return [
        Conversation((human(*clips, text), assistant(text, think=THINK)))
        for text, clips in zip(TEXTS, heard, strict=True)
    ]


def kv_scale(programs: Programs, tokenizer: Tokenizer, page_size: int) -> Float[Array, "L 2*N D"]:
    """The scales of each layer's keys and values, interleaved as in the pages: what an integer is multiplied by."""
    largest = jnp.zeros(())
    for conversation in prompts():
        largest = jnp.maximum(largest, _largest(programs, tokenizer, conversation, page_size))
    return jnp.maximum(largest * (MARGIN / 127), 1e-8)


def _largest(programs: Programs, tokenizer: Tokenizer, conversation: Conversation, page_size: int) -> Array:
    """[L, 2 · N, D]: the largest length of each pair of channels of the keys, the largest magnitude of the values."""
    example = encode(conversation, tokenizer, length_rule=programs.length_rule)
    size = example.num_tokens
    room = bucket(size, powers(2**16, 256))  # one program for all of them
    pages = -(-room // page_size)
    memory = programs.new_memory(pages, page_size, max(len(example.chunks), 1), 1)
    tokens, heard = np.zeros(room, np.int32), np.full(room, -1, np.int32)
    tokens[:size] = example.rendered.token_ids
    if example.chunks:
        samples, sizes = stack(example.chunks, SOUND_WIDTHS)
        memory = programs.hear(memory, samples, sizes, np.arange(len(sizes), dtype=np.int32))
        for place, (start, count) in enumerate(example.rendered.spans):
            heard[start : start + count] = place * ROWS + np.arange(count)
    lanes = programs.lanes
    table = np.arange(pages, dtype=np.int32)
    rows = [np.repeat(x[None], lanes, 0) for x in (tokens, heard, table)]
    zero, full = np.zeros(lanes, np.int32), np.full(lanes, size, np.int32)
    memory = programs.prefill(memory, rows[0], rows[1], zero, full, rows[2])

    def measure(pool):
        layers = programs.config.decoder.num_hidden_layers
        held = pool[0].reshape(layers, pages * page_size, *pool.shape[3:])[:, :size].astype(jnp.float32)
        keys, values = held[:, :, ::2], jnp.abs(held[:, :, 1::2]).max(1)
        pairs = jnp.hypot(*jnp.split(keys, 2, axis=-1)).max(1)
        return jnp.stack([jnp.concatenate([pairs, pairs], -1), values], 2).reshape(layers, *pool.shape[3:])

    return jax.jit(measure)(memory.pages)
