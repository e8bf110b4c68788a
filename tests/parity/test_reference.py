"""The oracle against transformers' own whole modules and the published numbers."""

import numpy as np
import pytest
import torch

from tests.parity import cases, torch_reference

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_composed_encoder_is_transformers_own_at_3000_frames(name):
    """Its forward masks nothing, which is the "vllm" rule on a clip that fills the encoder."""
    model, _ = cases.reference(name)
    mel = torch.from_numpy(np.random.default_rng(0).standard_normal((3000, 128), np.float32))
    with torch.no_grad():
        expected = model.encoder(mel.T[None]).last_hidden_state[0]
        torch.testing.assert_close(model.encode(mel, 479_680, "vllm"), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("seconds", "tokens"),
    [(0.5, 6), (1, 13), (2, 25), (5, 63), (10, 125), (25, 313), (29.9, 374), (29.98, 375)],
)
def test_published_token_counts(seconds, tokens):
    assert torch_reference.lengths(round(seconds * 16000), "hf").tokens == tokens


def test_shortest_clips():
    assert [torch_reference.lengths(n, "hf").tokens for n in (1, 320, 321)] == [0, 0, 1]
    assert torch_reference.lengths(1, "vllm").tokens == 1
    assert torch_reference.lengths(479_680, "hf").conv == 1500
    assert torch_reference.lengths(479_681, "hf").mel == 3001


@pytest.mark.parametrize("rule", cases.RULES)
def test_mask_has_one_entry_per_conv_frame(rule):
    for samples in range(800, 4000, 37):
        sizes = torch_reference.lengths(samples, rule)
        bias = torch_reference.key_bias(sizes.mel, sizes.counted, torch.float32)
        assert bias.shape == (1, 1, sizes.conv, sizes.conv)
        if rule == "hf":  # two frames of the mel are padding: exactly one of them is looked at
            assert (bias[0, 0, 0] < 0).tolist() == [False] * (sizes.conv - 1) + [True]
        else:
            assert not bias.any()


def test_log_mel_has_one_frame_per_count():
    for samples in range(800, 1500, 53):
        mel = torch_reference.log_mel(cases.sound(samples))
        assert mel.shape == (torch_reference.lengths(samples, "hf").mel, 128)
        exact = torch_reference.log_mel(cases.sound(samples), torch.float64)
        torch.testing.assert_close(mel.double(), exact, atol=5e-4, rtol=0)


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_weights_are_released_and_random(name):
    model, state = cases.reference(name)
    layers, blocks = cases.CONFIGS[name].decoder.num_hidden_layers, cases.CONFIGS[name].audio.n_audio_layer
    tied = cases.CONFIGS[name].decoder.tie_word_embeddings
    assert (model.decoder.lm_head.weight is model.decoder.model.embed_tokens.weight) == tied
    assert len(state) == 7 + 15 * blocks + 6 + 2 + 12 * layers + (not tied)
    assert not [key for key in state if key.endswith(("attn.key.bias", "o_proj.bias"))]
    for key, values in state.items():
        assert values.std() > 0.01, key
        np.testing.assert_array_equal(values, torch.from_numpy(values).bfloat16().float().numpy())
