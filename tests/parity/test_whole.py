"""Audio and text to logits, gradients and 64 greedy tokens: any number of clips a prompt, mixed lengths."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from stepaudio_jax.audio import lengths
from stepaudio_jax.inference.programs import Programs, Rows
from stepaudio_jax.inference.sampling import SamplingArrays
from stepaudio_jax.inference.sounds import ROWS
from stepaudio_jax.inference.types import SamplingParams
from stepaudio_jax.models.layers import unstack
from tests.parity import cases, torch_reference
from tests.parity.cases import CONFIGS, PATCH, RULES, VOCAB

pytestmark = pytest.mark.parity

CLIPS = ((16_000, 800), (), (24_161,), (961, 12_345, 3200))
"""Samples of each prompt's clips."""
LENGTH, WIDTH = 64, 25_000
STEPS = 64


def prompts(rule: str) -> list[cases.Prompt]:
    return [cases.prompt(clips, rule, seed=i + 1, text=5 + 4 * i) for i, clips in enumerate(CLIPS)]


@pytest.mark.parametrize("rule", RULES)
def test_counts_are_the_published_ones(rule):
    """The package's lengths and the oracle's, over every length of two tokens and at both ends."""
    for samples in [*range(321, 3000), 400_000, 479_679, 479_680]:
        found = (
            lengths.mel_frames(samples),
            lengths.counted_frames(samples, rule),
            lengths.conv_frames(samples),
            lengths.pooled_frames(samples),
            lengths.adaptor_frames(samples),
            lengths.audio_tokens(samples, rule),
        )
        assert found == torch_reference.lengths(samples, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name, rule, figure):
    rows = prompts(rule)
    data = cases.batch(rows, rule, length=LENGTH, width=WIDTH)
    found = np.asarray(cases.run(cases.ours(name), "__call__", rule, *data))
    reference, worst = cases.reference(name)[0], 0.0
    for row, prompt in enumerate(rows):
        with torch.no_grad():
            truth = reference.logits(cases.truth_embeds(reference, prompt, rule)).numpy()
        worst = max(worst, cases.apart(found[row, : len(truth)], truth))
    figure("audio to logits", worst, 2e-4)


@functools.cache
def expected_tokens(name: str) -> list[list[int]]:
    """What transformers' `generate` writes after each prompt."""
    reference, _ = cases.reference(name)
    with torch.no_grad():
        return [reference.greedy(cases.truth_embeds(reference, p, "hf"), STEPS) for p in prompts("hf")]


@pytest.mark.parametrize(
    ("name", "separate"), [*((name, False) for name in CONFIGS), ("33b-like", True), ("yarn", True)]
)
def test_greedy_tokens(name, separate):
    """Prefill and cached decoding, the layers stacked or separate (as on a CPU), token by token."""
    rule, rows = "hf", prompts("hf")
    data = cases.batch(rows, rule, length=LENGTH, width=WIDTH)
    model = cases.fresh(name)
    if separate:
        model.decoder.layers = unstack(model.decoder.layers)
    programs = Programs(model, vocab_size=VOCAB, steps=STEPS, length_rule=rule)
    count, page_size, chunks = len(rows), 16, len(data.audio.samples)
    width = -(-(LENGTH + STEPS) // page_size)
    memory = programs.new_memory(count * width, page_size, entries=chunks, places=count)
    memory = programs.hear(memory, data.audio.samples, data.audio.sizes, np.arange(chunks))
    table = np.random.default_rng(0).permutation(count * width).reshape(count, width).astype(np.int32)
    each = int(lengths.adaptor_frames(WIDTH))
    heard = np.where(data.audio.slots >= 0, data.audio.slots // each * ROWS + data.audio.slots % each, -1)
    before = np.array([len(p.tokens) - 1 for p in rows], np.int32)
    memory = programs.prefill(memory, data.tokens, heard, np.zeros(count, np.int32), before, table)
    sampled = Rows(
        tokens=np.array([p.tokens[-1] for p in rows], np.int32),
        positions=before,
        steps=np.full(count, STEPS, np.int32),
        forced=np.full((count, STEPS), -1, np.int32),
        stop_ids=np.full((count, 1), -1, np.int32),
        places=np.arange(count),
        page_table=table,
        sampling=SamplingArrays.stack([SamplingParams(temperature=0.0)] * count),
    )
    _, burst = programs.decode(memory, sampled, STEPS)
    for row, truth in enumerate(expected_tokens(name)):
        assert len(truth) == STEPS and len(set(truth)) >= 8, "expected many different tokens"
        assert burst.tokens[row].tolist() == truth


@pytest.mark.parametrize("name", ["33b-like", "yarn"])
def test_gradients(name, figure):
    """Through decoder, adaptor and encoder down to the first convolution, for every parameter."""
    rule, rows = "hf", prompts("hf")
    data = cases.batch(rows, rule, length=LENGTH, width=WIDTH)
    mask = (data.segment_ids > 0) & (data.tokens != PATCH) & (data.positions > 0)
    found = cases.our_gradients(cases.ours(name), lambda m: cases.loss(m, m.hidden(*data), data.tokens, mask))
    reference, _ = cases.reference(name)
    reference.zero_grad()
    total = 0
    for row, prompt in enumerate(rows):
        ids = torch.tensor(prompt.tokens)
        wanted = torch.from_numpy(mask[row, : len(ids)])[1:]
        logits = reference.logits(cases.truth_embeds(reference, prompt, rule))[:-1]
        total = total + cross_entropy(logits[wanted], ids[1:][wanted], reduction="sum")
    (total / int(mask.sum())).backward()
    errors = cases.relative_errors(found, torch_reference.gradients(reference))
    worst = max(errors, key=errors.get)
    figure(f"gradients, worst of {len(errors)} tensors ({worst})", errors[worst], 1e-4)


@pytest.mark.parametrize("name", ["33b-like", "8b-like"])
def test_bfloat16_logits_are_no_worse_than_torch(name, figure):
    rule, rows = "hf", prompts("hf")
    data = cases.batch(rows, rule, length=LENGTH, width=WIDTH)
    found = np.asarray(cases.run(cases.ours(name, jnp.bfloat16), "__call__", rule, *data))
    reference, _ = cases.reference(name)
    half, ours, theirs, truths = reference.in_dtype(torch.bfloat16), [], [], []
    for row, prompt in enumerate(rows):
        with torch.no_grad():
            truth, own = (m.logits(cases.truth_embeds(m, prompt, rule)).float().numpy() for m in (reference, half))
        ours.append(found[row, : len(truth)] - truth)
        theirs.append(own - truth)
        truths.append(truth)
    our_error, their_error = (
        cases.rms(np.concatenate(errors)) / cases.rms(np.concatenate(truths)) for errors in (ours, theirs)
    )
    figure(f"bfloat16 logits, RMS error (torch's own {their_error:.3g})", our_error, 1.5 * their_error)
