"""Faults of the models: norms, rotary positions, heads, the residual stream, encoder and adaptor, adapters."""

from tests.mutants import Mutant

LAYERS, DECODER, ENCODER, ADAPTOR, WHOLE, LORA, NAMES = (
    f"stepaudio_jax/models/{name}.py"
    for name in ("layers", "decoder", "encoder", "adaptor", "step_audio", "lora", "hf_names")
)
WIRING = "tests/models/test_wiring.py"
OF_MODELS, OF_LORA = "tests/models/test_models.py", "tests/models/test_lora.py"
PROMPTS = "tests/models/test_shared_prompts.py"
SHIPPED = "tests/training/test_wiring.py::test_the_shipped_model_knows_its_world_in_packed_rows"

MUTANTS = (
    Mutant("RMSNorm has an epsilon of its own", LAYERS, "keepdims=True) + self.eps)", "keepdims=True) + 1e-5)", (
        f"{WIRING}::test_the_norms_by_hand",), wiring=True),  # fmt: skip
    Mutant("the decoder's norms do not take the config's epsilon", DECODER,
           "self.norm = RMSNorm(rngs, config.hidden_size, config.rms_norm_eps, dtype=dtype)",
           "self.norm = RMSNorm(rngs, config.hidden_size, 1e-5, dtype=dtype)",
           (f"{WIRING}::test_the_decoder_by_hand",), wiring=True),  # fmt: skip
    Mutant("LayerNorm has the epsilon of another model", LAYERS, "keepdims=True) + 1e-5)", "keepdims=True) + 1e-6)", (
        f"{WIRING}::test_the_norms_by_hand",)),  # fmt: skip
    Mutant("LayerNorm does not take the mean away", LAYERS, "        wide = wide - wide.mean(-1, keepdims=True)\n", "", (
        f"{WIRING}::test_the_norms_by_hand",)),  # fmt: skip
    Mutant("rotary positions turn the other way", LAYERS,
           "[first * cos - second * sin, second * cos + first * sin]",
           "[first * cos + second * sin, second * cos - first * sin]",
           (f"{WIRING}::test_rotary_positions_by_hand",)),  # fmt: skip
    Mutant("rotary pairs are neighbours", LAYERS, "jnp.split(x.astype(jnp.float32), 2, axis=-1)",
           "(x.astype(jnp.float32)[..., ::2], x.astype(jnp.float32)[..., 1::2])",
           (f"{WIRING}::test_rotary_positions_by_hand",)),  # fmt: skip
    Mutant("rope_theta is not read", LAYERS, "config.head_dim, config.rope_theta, config.rope_scaling",
           "config.head_dim, 1e6, config.rope_scaling",
           (f"{WIRING}::test_rotary_positions_by_hand",), wiring=True),  # fmt: skip
    Mutant("rope_scaling is not read", LAYERS, "config.head_dim, config.rope_theta, config.rope_scaling",
           "config.head_dim, config.rope_theta, None",
           (f"{WIRING}::test_rotary_scaling_by_hand",), wiring=True),  # fmt: skip
    Mutant("YaRN's attention factor is left out", LAYERS,
           "jnp.cos(angles)[:, :, None] * factor, jnp.sin(angles)[:, :, None] * factor",
           "jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]",
           (f"{WIRING}::test_rotary_scaling_by_hand",), wiring=True),  # fmt: skip
    Mutant("values are rotated", DECODER, "apply_rope(k, cos, sin), v), \"qkv\")",
           "apply_rope(k, cos, sin), apply_rope(v, cos, sin)), \"qkv\")",
           (f"{WIRING}::test_the_decoder_by_hand",)),  # fmt: skip
    Mutant("keys are not rotated", DECODER, "apply_rope(k, cos, sin), v), \"qkv\")", "k, v), \"qkv\")",
           (f"{WIRING}::test_the_decoder_by_hand",)),  # fmt: skip
    Mutant("attention is not added to the stream", DECODER, "checkpoint_name(x + self.o_proj(", "checkpoint_name(self.o_proj(", (
        f"{WIRING}::test_the_decoder_by_hand",)),  # fmt: skip
    Mutant("the feed-forward is not added to the stream", DECODER, "return x + self.down_proj(jax.nn.silu(gate) * up)",
           "return self.down_proj(jax.nn.silu(gate) * up)", (f"{WIRING}::test_the_decoder_by_hand",)),  # fmt: skip
    Mutant("gate and up change places", DECODER, "jax.nn.silu(gate) * up", "jax.nn.silu(up) * gate", (
        f"{WIRING}::test_the_decoder_by_hand",)),  # fmt: skip
    Mutant("the feed-forward looks at the stream before its norm", DECODER,
           "        y = self.post_attention_layernorm(x)\n", "        y = x\n",
           (f"{WIRING}::test_the_decoder_by_hand",), wiring=True),  # fmt: skip
    Mutant("the decoder sees what comes later", DECODER,
           "return flash_attention(q, k, v, causal=True, **within)", "return flash_attention(q, k, v, causal=False, **within)",
           (f"{WIRING}::test_the_decoder_by_hand",), wiring=True),  # fmt: skip
    Mutant("segment ids do not reach the attention", DECODER,
           'within = {"q_segment_ids": segment_ids, "kv_segment_ids": segment_ids}', "within = {}",
           ("tests/training/test_packed_rows.py::test_per_token_losses_are_those_of_each_dialogue_alone",), wiring=True),  # fmt: skip
    Mutant("the last norm is left out", DECODER, "return self.norm(run_layers(self.layers, step, embeds, remat=remat)[0])",
           "return run_layers(self.layers, step, embeds, remat=remat)[0]",
           (f"{WIRING}::test_the_decoder_by_hand",)),  # fmt: skip
    Mutant("the head is always the embedding", DECODER,
           "return self.embed_tokens if self.lm_head is None else self.lm_head", "return self.embed_tokens",
           (f"{WIRING}::test_the_decoder_by_hand",), wiring=True),  # fmt: skip
    Mutant("tied embeddings have a head of their own", DECODER,
           "None if config.tie_word_embeddings else param", "param",
           (f"{WIRING}::test_the_decoder_by_hand",), wiring=True),  # fmt: skip
    Mutant("a shared prompt counts as much as a reply's own tokens", DECODER,
           "jnp.where(shared_lse > -jnp.inf, shared_lse - own_lse, -jnp.inf)",
           "jnp.where(shared_lse > -jnp.inf, 0.0, -jnp.inf)",
           (f"{PROMPTS}::test_replies_see_the_prompt_they_share",)),  # fmt: skip
    # Encoder and adaptor.
    Mutant("the encoder attends beyond a chunk's end", ENCODER, "            kv_segment_ids=key_ids,\n",
           "            kv_segment_ids=query_ids,\n", (f"{WIRING}::test_encoder_and_adaptor_by_hand",), wiring=True),  # fmt: skip
    Mutant("the encoder is causal", ENCODER, "            causal=False,\n", "            causal=True,\n",
           (f"{WIRING}::test_encoder_and_adaptor_by_hand",), wiring=True),  # fmt: skip
    Mutant("encoder rows are every second frame, not the mean of two", ENCODER,
           "x.reshape(x.shape[0], steps // 2, 2, -1).mean(2)", "x.reshape(x.shape[0], steps // 2, 2, -1)[:, :, 0]",
           (f"{WIRING}::test_encoder_and_adaptor_by_hand",)),  # fmt: skip
    Mutant("the encoder has no positions", ENCODER, "        x = x + whole(self.positional_embedding)[index // 2]\n", "",
           (f"{WIRING}::test_encoder_and_adaptor_by_hand",)),  # fmt: skip
    Mutant("positions go on from one chunk of a row to the next", ENCODER,
           "whole(self.positional_embedding)[index // 2]", "whole(self.positional_embedding)[: x.shape[1]]",
           ("tests/audio/test_rows.py::test_features_of_each_chunk_are_those_of_the_chunk_alone",), wiring=True),  # fmt: skip
    Mutant("the mel is not zeroed beyond a chunk's end", ENCODER,
           "zero_outside(gelu(self.conv1(zero_outside(x, layout.ids))), layout.ids)",
           "gelu(self.conv1(zero_outside(x, layout.ids)))",
           ("tests/audio/test_rows.py::test_features_of_each_chunk_are_those_of_the_chunk_alone",)),  # fmt: skip
    Mutant("the length rule does not reach the encoder", WHOLE,
           "self.encode_mel(mel, sizes, offsets, length_rule=length_rule, remat=remat)",
           "self.encode_mel(mel, sizes, offsets, remat=remat)",
           ("tests/training/test_wiring.py::test_the_length_rule_reaches_the_encoder",), wiring=True),  # fmt: skip
    Mutant("the adaptor has no stride", ADAPTOR, "stride=config.adapter_stride", "stride=1",
           (f"{WIRING}::test_encoder_and_adaptor_by_hand",), wiring=True),  # fmt: skip
    Mutant("the adaptor's ReLU is a GELU", ADAPTOR, "jax.nn.relu(self.linear1", "gelu(self.linear1",
           (f"{WIRING}::test_encoder_and_adaptor_by_hand",)),  # fmt: skip
    Mutant("a convolution looks one frame later", LAYERS, "jnp.pad(x, ((0, 0), (1, 1), (0, 0)))",
           "jnp.pad(x, ((0, 0), (0, 2), (0, 0)))", (f"{WIRING}::test_encoder_and_adaptor_by_hand",)),  # fmt: skip
    Mutant("features stand in no token's place", WHOLE, "return jnp.where((slots >= 0)[..., None], heard, embeds)",
           "return embeds", (SHIPPED,), wiring=True),  # fmt: skip
    Mutant("every token of sound has the first feature", WHOLE, "rows[jnp.maximum(slots, 0)]", "rows[jnp.zeros_like(slots)]",
           (SHIPPED,), wiring=True),  # fmt: skip
    # Adapters.
    Mutant("an adapter counts fully whatever its scale", LAYERS, "whole(self.a).astype(x.dtype)) * self.scale",
           "whole(self.a).astype(x.dtype))", (f"{OF_LORA}::test_merged_is_the_explicit_product",), wiring=True),  # fmt: skip
    Mutant("an adapter counts alpha, not alpha over rank", LORA,
           "self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)", "self.alpha",
           (f"{OF_LORA}::test_merged_is_the_explicit_product",)),  # fmt: skip
    Mutant("rslora is not read", LORA, "(math.sqrt(self.rank) if self.rslora else self.rank)", "self.rank",
           (f"{OF_LORA}::test_merged_is_the_explicit_product",), wiring=True),  # fmt: skip
    Mutant("merging forgets the scale", LORA, "w + scale * jnp.matmul", "w + jnp.matmul",
           (f"{OF_LORA}::test_merged_is_the_explicit_product",)),  # fmt: skip
    Mutant("every linear layer gets adapters", LORA, "        if path[-1] in config.targets:\n            layer.lora",
           "        if True:\n            layer.lora",
           ("tests/training/test_wiring.py::test_adapters_are_those_of_the_config",), wiring=True),  # fmt: skip
)
