"""Hours of sound in one prompt: does the engine hear all of it, and write what a whole forward pass says?

    python -m benchmarks.hours [--hours 3] [--check-hours 1]

A small random model of the real layout (two layers, two heads), its positions made enough by YaRN. A prompt of so many
hours goes through the engine: every chunk encoded, every token in pages, no window, nothing cut. A shorter one is also
computed by one pass over the whole sequence, and the first token compared. Seconds are this machine's, of a model that
has no weight to speak of: what grows is attention, with the square of the length.
"""

from __future__ import annotations

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from stepaudio_jax import miniature
from stepaudio_jax.audio.rows import UNIT_SAMPLES
from stepaudio_jax.config import AudioEncoderConfig, DecoderConfig, StepAudioConfig
from stepaudio_jax.data import collate, encode
from stepaudio_jax.inference import Engine, EngineOptions, Finished, Request, SamplingParams
from stepaudio_jax.inference.refusal import sufficient_yarn
from stepaudio_jax.models import StepAudio
from stepaudio_jax.text import Audio, Conversation, Tokenizer, human

RATE, NEW, POSITIONS = 16_000, 8, 4_096
TOKENS_A_SECOND = 12.5


def make_model(hours: float) -> tuple[StepAudio, float]:
    """(The model with positions for so long a prompt, the factor that takes.)"""
    decoder = DecoderConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=False, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    audio = AudioEncoderConfig(n_audio_state=32, n_audio_head=2, n_audio_layer=1, llm_dim=64, adapter_state=64)
    sizes = StepAudioConfig(decoder, audio, eos_token_ids=(0, 1), pad_token_id=0)
    tokens = int(hours * 3_600 * TOKENS_A_SECOND * 1.05) + 1_000
    factor = sufficient_yarn(tokens, decoder) or 1.0
    model = StepAudio(sizes.with_yarn(factor), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: 4 * x + 0.02 * rng.standard_normal(x.shape).astype(x.dtype), state))
    return model, factor


def question(hours: float) -> Conversation:
    """Tones that come and go, so that no two chunks are alike."""
    at = np.arange(int(hours * 3_600) * RATE, dtype=np.float32) / RATE
    sound = np.sin(2 * np.pi * (200 + at % 977) * (at % 61), dtype=np.float32) * np.float32(0.3)
    return Conversation((human(Audio(sound, f"{hours:g} hours"), "How many?"),))


def first_token(model: StepAudio, tokenizer: Tokenizer, conversation: Conversation) -> tuple[int, float]:
    """(The likeliest token, how much likelier than the next) by one pass over the whole sequence."""
    example = encode(conversation, tokenizer, generate=True)
    length = -(-example.num_tokens // 256) * 256
    rows = len(example.chunks)  # of 30 s, a chunk each
    data = collate([[example]], length=length, sound_rows=rows, sound_samples=375 * UNIT_SAMPLES)
    assert data.audio is not None
    graphdef, state = nnx.split(model)

    @jax.jit
    def logits(state, data):
        made = nnx.merge(graphdef, state)
        hidden = made.hidden(data.tokens, data.positions, data.segment_ids, data.audio)
        return made.decoder.logits(hidden[:, example.num_tokens - 1])[0, : tokenizer.vocab_size]

    found = np.asarray(logits(state, jax.tree.map(jnp.asarray, data)))
    best = np.sort(found)[-2:]
    return int(found.argmax()), float(best[1] - best[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--check-hours", type=float, default=0.5)
    args = parser.parse_args()
    console = Console(width=110)
    tokenizer = Tokenizer(miniature.build_tokenizer(512, samples=200))
    table = Table(title="one prompt, no windows")
    for name in ("hours", "tokens", "YaRN", "pages", "first token", "each after", "peak GB", "as one pass has it"):
        table.add_column(name, justify="right")
    for hours, check in ((args.check_hours, True), (args.hours, False)):
        model, factor = make_model(hours)
        conversation, page = question(hours), 64
        room = model.config.decoder.max_position_embeddings
        options = EngineOptions(
            max_rows=1, max_length=room, page_size=page, pages=room // page + 2, prefill_tokens=2_048, burst=1,
            sounds=512,
        )  # fmt: skip
        engine = Engine(model, tokenizer, options)
        start, moments, done = time.perf_counter(), [], None
        engine.add(Request(conversation, SamplingParams(temperature=0.0, max_new_tokens=NEW)))
        while engine.has_work:
            for event in engine.step():
                done = event.completion if isinstance(event, Finished) else done
            moments.append(time.perf_counter() - start)
        assert done is not None
        first = moments[-len(done.token_ids)]
        after = (moments[-1] - first) / max(len(done.token_ids) - 1, 1)
        same = ""
        if check:
            token, margin = first_token(model, tokenizer, conversation)
            same = f"{'yes' if token == done.token_ids[0] else 'NO'} (by {margin:.2f})"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = (f"{hours:g}", f"{done.usage.prompt_tokens:,}", f"{factor:g}", f"{options.pages:,}", f"{first:.0f} s")
        table.add_row(*row, f"{after:.2f} s", f"{peak:.1f}", same)
        console.print(table)


if __name__ == "__main__":
    main()
