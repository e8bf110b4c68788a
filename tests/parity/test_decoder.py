"""The decoder against Qwen2ForCausalLM: logits, packed rows, rotary scalings, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from stepaudio_jax.config import RopeScaling
from stepaudio_jax.models.layers import rope_frequencies
from tests.parity import cases, torch_reference
from tests.parity.cases import CONFIGS, PATCH

pytestmark = pytest.mark.parity

SIZES = (150, 7, 64)
"""Tokens of the test sequences; the first reaches far beyond the trained length of the scaled configs."""


def sequences() -> list[np.ndarray]:
    return [np.random.default_rng(size).integers(0, PATCH, size).astype(np.int32) for size in SIZES]


def packed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segments [2, 160]: the longest alone in a row, the others in one."""
    tokens, positions, segments = (np.zeros((2, 160), np.int32) for _ in range(3))
    long, *others = sequences()
    for row, members in enumerate(([long], others)):
        start = 0
        for segment, ids in enumerate(members, 1):
            span = slice(start, start + len(ids))
            tokens[row, span], positions[row, span], segments[row, span] = ids, np.arange(len(ids)), segment
            start += len(ids)
    return tokens, positions, segments


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name, figure):
    tokens, positions, segments = packed()
    model = cases.ours(name)
    found = np.asarray(jax.jit(lambda *args: model(*args))(tokens, positions, segments))
    long, short, middle = sequences()
    places = [(long, found[0, :150]), (short, found[1, :7]), (middle, found[1, 7:71])]
    worst = width = 0.0
    for ids, logits in places:
        with torch.no_grad():
            truth = cases.reference(name)[0].decoder(torch.from_numpy(ids)[None].long()).logits[0].numpy()
        worst, width = max(worst, cases.apart(logits, truth)), max(width, truth.std())
    assert width > 0.5
    figure(f"decoder logits (standard deviation {width:.2g})", worst, 2e-4)


def yarn(factor: float, trained: int | None, **more) -> RopeScaling:
    return RopeScaling("yarn", factor, original_max_position_embeddings=trained, **more)


SCALINGS = {
    "linear": RopeScaling("linear", 3.5),
    "yarn": yarn(4.0, 4096),
    "yarn, trained length left out": yarn(4.0, None),
    "yarn, not truncated": yarn(16.0, 2048, truncate=False),
    "yarn, betas": yarn(2.0, 8192, beta_fast=16.0, beta_slow=2.0),
    "yarn, attention factor": yarn(8.0, 512, attention_factor=0.8),
    "yarn, mscale": yarn(40.0, 4096, mscale=1.0, mscale_all_dim=0.7),
    "yarn, factor 1": yarn(1.0, 4096),
    "yarn, everything scaled": yarn(8.0, 6),
}


@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotary_frequencies(scaling, theta):
    """Our table of frequencies against transformers' own, at the released head size."""
    config = dataclasses.replace(
        CONFIGS["yarn"].decoder, rope_scaling=SCALINGS[scaling], rope_theta=theta, head_dim=128,
        max_position_embeddings=16384,
    )  # fmt: skip
    theirs = torch_reference.Qwen2ForCausalLM(torch_reference.qwen2_config(config)).model.rotary_emb
    inverse, factor = rope_frequencies(config)
    np.testing.assert_allclose(inverse, theirs.inv_freq.numpy(), rtol=2e-6)
    assert factor == pytest.approx(theirs.attention_scaling, rel=1e-6)


def loss_mask(tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Two thirds of the tokens; never a segment's first, which nothing before it predicts."""
    chosen = np.random.default_rng(0).random(tokens.shape) < 2 / 3
    first = np.diff(segments, prepend=0, axis=1) != 0
    return chosen & ~first & (segments > 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients(name, figure):
    """Of the cross-entropy over packed rows, for every parameter of the decoder."""
    tokens, positions, segments = packed()
    mask = loss_mask(tokens, segments)
    found = cases.our_gradients(
        cases.ours(name), lambda m: cases.loss(m, m.hidden(tokens, positions, segments), tokens, mask)
    )
    reference, _ = cases.reference(name)
    reference.zero_grad()
    total = 0
    for row in range(2):
        for segment in range(1, segments[row].max() + 1):
            here = segments[row] == segment
            ids, wanted = (torch.from_numpy(a[row][here]) for a in (tokens.astype(np.int64), mask))
            logits = reference.decoder(ids[None]).logits[0, :-1]
            total = total + cross_entropy(logits[wanted[1:]], ids[1:][wanted[1:]], reduction="sum")
    (total / int(mask.sum())).backward()
    truth = torch_reference.gradients(reference)
    truth = {name: grad for name, grad in truth.items() if name.startswith(("model.", "lm_head."))}
    errors = cases.relative_errors({k: found[k] for k in truth}, truth)
    worst = max(errors, key=errors.get)
    figure(f"decoder gradients, worst of {len(errors)} tensors ({worst})", errors[worst], 1e-4)


@pytest.mark.parametrize("name", ["33b-like", "8b-like"])
def test_bfloat16_logits_are_no_worse_than_torch(name, figure):
    tokens, positions, segments = packed()
    model = cases.ours(name, jnp.bfloat16)
    found = np.asarray(jax.jit(lambda *args: model(*args))(tokens, positions, segments))
    assert found.dtype == np.float32
    reference, _ = cases.reference(name)
    ids = torch.from_numpy(sequences()[0])[None].long()
    with torch.no_grad():
        truth = reference.decoder(ids).logits[0].numpy()
        half = reference.in_dtype(torch.bfloat16).decoder(ids).logits[0].float().numpy()
    ours, theirs = (cases.rms(logits - truth) / cases.rms(truth) for logits in (found[0, :150], half))
    figure(f"bfloat16 logits, relative RMS error (transformers' own {theirs:.3g})", ours, 1.5 * theirs)
