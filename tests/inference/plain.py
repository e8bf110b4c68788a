"""The plainest generation loop: every token by a whole forward pass over all rows, no cache of anything."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stepaudio_jax.data import collate, encode
from stepaudio_jax.inference import Request
from stepaudio_jax.inference.sampling import SamplingArrays, sample
from stepaudio_jax.models import StepAudio
from stepaudio_jax.text import Tokenizer


@functools.cache
def _programs(graphdef):
    def features(state, data):
        return nnx.merge(graphdef, state).encode_audio(*data.audio[:3])

    def last_logits(state, data, heard, last):
        model = nnx.merge(graphdef, state)
        embeds = model.embed(data.tokens, heard, data.audio.slots)
        hidden = model.decoder(embeds, data.positions, data.segment_ids)
        return model.decoder.logits(hidden[jnp.arange(len(last)), last])

    return jax.jit(features), jax.jit(last_logits)


def write(
    model: StepAudio, tokenizer: Tokenizer, requests: Sequence[Request], *, length: int, sound: int
) -> list[tuple[list[int], list[float]]]:
    """Token ids and log-probabilities (at the sampling temperature) of each request's reply, up to its
    `max_new_tokens`, a stop id or `length`.

    Args:
      sound: samples of sound that a row has room for.
    """
    graphdef, state = nnx.split(model)
    features, last_logits = _programs(graphdef)
    examples = [encode(r.conversation, tokenizer, generate=True, thinking=r.thinking) for r in requests]
    rows = len(examples)
    data = collate([[example] for example in examples], length=length, sound_rows=rows, sound_samples=sound)
    heard = features(state, data)
    sizes = np.array([example.num_tokens for example in examples])
    arrays = SamplingArrays(*map(jnp.asarray, SamplingArrays.stack([r.sampling for r in requests])))
    seen = np.zeros((rows, model.config.decoder.vocab_size), bool)
    for row, example in enumerate(examples):
        seen[row, example.rendered.token_ids] = True
    positions = np.broadcast_to(np.arange(length), data.tokens.shape)
    replies: list[tuple[list[int], list[float]]] = [([], []) for _ in requests]
    ends = set(model.config.eos_token_ids) | {tokenizer.end_of_turn}
    live = set(range(rows))

    @jax.jit
    def choose(logits, seen, at):
        tokens, found = sample(logits, arrays, lambda: seen, at, tokenizer.vocab_size)
        return tokens, found.log_probs()

    while live:
        data = data._replace(positions=positions, segment_ids=(positions < sizes[:, None]).astype(np.int32))
        chosen, log_probs = map(np.asarray, choose(last_logits(state, data, heard, sizes - 1), seen, sizes))
        for row in sorted(live):
            token = int(chosen[row])
            tokens, scores = replies[row]
            tokens.append(token)
            scores.append(float(log_probs[row, token]))
            seen[row, token] = True
            if token in ends or len(tokens) == requests[row].sampling.max_new_tokens or sizes[row] == length:
                live.remove(row)
            else:
                data.tokens[row, sizes[row]] = token
                sizes[row] += 1
    return replies
