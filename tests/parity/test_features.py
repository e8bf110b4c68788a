"""A clip's audio features: the same alone and in any batch, and the torch composition's on that clip alone.

Errors are absolute, after dividing by the root mean square of the expected features ("at unit RMS").
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.parity import cases, torch_reference
from tests.parity.cases import CONFIGS, RULES

pytestmark = pytest.mark.parity

SHORTEST, LONGEST = 800, 479_680
"""0.05 s and 29.98 s."""


def boundaries(first: int, last: int) -> list[int]:
    """Both sides of every clip length from first to last at which a count changes, under either rule."""

    def counts(samples: int):
        return [torch_reference.lengths(samples, rule) for rule in RULES]

    changes = [n for n in range(first + 1, last + 1) if counts(n) != counts(n - 1)]
    return sorted({first, last, *changes, *(n - 1 for n in changes)})


# Counts repeat every 1,280 samples (8 mel frames, one more token), so each window sees every change.
# Each is run in one bucket wider than its clips, as far as the positions allow, and four clips at a time.
WINDOWS = {
    "0.05 s": (boundaries(SHORTEST, SHORTEST + 1280), 4321),
    "1 s": (boundaries(15_700, 15_700 + 1280), 17_600),
    "29.98 s": (boundaries(LONGEST - 1280, LONGEST), LONGEST),
}
SPREAD = [1601, 8000, 33_333, 50_000, 80_161, 160_000]
TOGETHER = 4


@functools.cache
def expected(name: str, samples: int, rule: str) -> np.ndarray:
    """The torch composition, waveform to features [n, hidden], on the clip alone."""
    clip = cases.sound(samples)
    with torch.no_grad():
        return cases.reference(name)[0].features(torch_reference.log_mel(clip), samples, rule).numpy()


def batched(model, sizes, rule, width, *, mel=None) -> list[np.ndarray]:
    """Our features [n, hidden] of clips of these sizes, in one bucket, from waveforms or these mels.

    What lies behind a mel is not zero: nobody should hear it.
    """
    rows = np.zeros((len(sizes), width), np.float32)
    for row, size in zip(rows, sizes, strict=True):
        row[:size] = cases.sound(size)
    lengths = np.array(sizes, np.int32)
    if mel is None:
        features = cases.run(model, "encode_audio", rule, rows, lengths)
    else:
        frames = np.full((len(sizes), torch_reference.lengths(width, rule).mel, 128), 7.0, np.float32)
        for row, one in zip(frames, mel, strict=True):
            row[: len(one)] = one
        features = cases.run(model, "encode_mel", rule, frames, lengths)
    features = np.asarray(features, np.float32)
    counts = [torch_reference.lengths(size, rule).tokens for size in sizes]
    return [row[:count] for row, count in zip(features, counts, strict=True)]


def groups(sizes):
    """Four at a time, far-apart ones together; the last group repeats one to be full."""
    stride = -(-len(sizes) // TOGETHER)
    return [[sizes[min(i + j * stride, len(sizes) - 1)] for j in range(TOGETHER)] for i in range(stride)]


def test_the_windows_see_every_change():
    for sizes, width in WINDOWS.values():
        assert {n % 640 for n in sizes} >= {0, 1, 160, 161, 320, 321, 480, 481}
        assert {n % 1280 for n in sizes} >= {n % 1280 for n in boundaries(2080, 4640)[1:-1]}
        assert max(sizes) <= width
        for column in range(6):  # every count of Lengths takes at least two values
            for rule in RULES:
                assert len({torch_reference.lengths(n, rule)[column] for n in sizes}) > 1
        assert {torch_reference.lengths(n, "hf").pooled % 2 for n in sizes} == {0, 1}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("name", "window"), [("33b-like", "0.05 s"), ("33b-like", "1 s"), ("yarn", "0.05 s"), ("yarn", "29.98 s")]
)
def test_every_count_change_equals_torch_alone(name, window, rule, figure):
    sizes, width = WINDOWS[window]
    worst = 0.0
    for group in groups(sizes):
        for size, features in zip(group, batched(cases.ours(name), group, rule, width), strict=True):
            truth = expected(name, size, rule)
            worst = max(worst, cases.apart(features, truth) / cases.rms(truth))
    figure(f"waveform to features, {len(sizes)} lengths, at unit RMS", worst, 2e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CONFIGS)
def test_mixed_lengths_equal_torch_alone(name, rule, figure):
    sizes = [*SPREAD, SHORTEST, 2 * SHORTEST]
    worst = 0.0
    for size, features in zip(sizes, batched(cases.ours(name), sizes, rule, 161_000), strict=True):
        truth = expected(name, size, rule)
        worst = max(worst, cases.apart(features, truth) / cases.rms(truth))
    figure("waveform to features, 0.05 to 10 s in one batch, at unit RMS", worst, 2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_encoder_and_adaptor_alone_equal_torch(name, figure):
    """From one and the same log-mel, so that what differs is the encoder's and the adaptor's arithmetic."""
    rule, sizes = "hf", WINDOWS["1 s"][0]
    mel = [torch_reference.log_mel(cases.sound(size)).numpy() for size in sizes]
    worst = 0.0
    for size, features in zip(sizes, batched(cases.ours(name), sizes, rule, 17_600, mel=mel), strict=True):
        truth = expected(name, size, rule)
        worst = max(worst, cases.apart(features, truth) / cases.rms(truth))
    figure("mel to features, at unit RMS", worst, 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_encoder_equals_transformers_forward(name, figure):
    """Against `Qwen2AudioEncoder.forward` itself: 3,000 frames, and the rule that masks none of them."""
    mel = np.random.default_rng(1).standard_normal((1, 3000, 128)).astype(np.float32)
    with torch.no_grad():
        truth = cases.reference(name)[0].encoder(torch.from_numpy(mel).mT).last_hidden_state.numpy()
    encoder = jax.jit(lambda mel, sizes: cases.ours(name).encoder(mel, sizes, length_rule="vllm"))
    found = encoder(mel, np.array([LONGEST]))
    figure("Qwen2AudioEncoder.forward, at unit RMS", cases.apart(found, truth) / cases.rms(truth), 1e-5)


@pytest.mark.parametrize("name", ["33b-like", "linear"])
def test_features_do_not_depend_on_the_batch(name, figure):
    """Alone, with neighbours, with empty places, in a wider bucket; bit-equal within one bucket shape."""
    model, sizes, width = cases.ours(name), WINDOWS["0.05 s"][0], 4321
    worst = 0.0
    for group in groups(sizes):
        together = batched(model, group, "hf", width)
        for place, size in enumerate(group):
            features = together[place]
            others = [[0] * place + [size] + [0] * (TOGETHER - 1 - place), [size] * TOGETHER, group[::-1]]
            for neighbours in others:
                again = batched(model, neighbours, "hf", width)[neighbours.index(size)]
                np.testing.assert_array_equal(again, features)
            for other in (batched(model, [size], "hf", width), batched(model, [size, 9000], "hf", 9999)):
                worst = max(worst, cases.apart(other[0], features) / cases.rms(features))
    figure("alone or in another bucket, at unit RMS", worst, 1e-5)


@pytest.mark.parametrize("name", ["8b-like", "yarn"])
def test_bfloat16_is_no_worse_than_torch(name, figure):
    """RMS error against float32 on the same (bfloat16) weights, beside the torch composition's own."""
    truth_model, _ = cases.reference(name)
    half, model = truth_model.in_dtype(torch.bfloat16), cases.ours(name, jnp.bfloat16)
    some = [(sizes[::3], width) for sizes, width in WINDOWS.values() if width < LONGEST]
    buckets = [*some, (SPREAD, 161_000), ([LONGEST], LONGEST)]
    ours, theirs, truths = [], [], []
    for sizes, width in buckets:
        for size, features in zip(sizes, batched(model, sizes, "hf", width), strict=True):
            truth = expected(name, size, "hf")
            with torch.no_grad():
                own = half.features(torch_reference.log_mel(cases.sound(size)), size, "hf").float().numpy()
            ours.append((features - truth).ravel())
            theirs.append((own - truth).ravel())
            truths.append(truth.ravel())
    scale = cases.rms(np.concatenate(truths))
    our_error, their_error = (cases.rms(np.concatenate(errors)) / scale for errors in (ours, theirs))
    figure(f"bfloat16 features, RMS error (torch's own {their_error:.3g})", our_error, 1.5 * their_error)
