"""From a config to what a step computes: every option reaches what it is for. Against closed forms, small numbers."""

import importlib
import math
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import configs
from configs import lora_tiny, sft_tiny
from stepaudio_jax import checkpoints, miniature, training
from stepaudio_jax.data import Batch, collate, encode
from stepaudio_jax.models.lora import is_lora, linear_layers
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.text import Audio, Conversation, assistant, human
from stepaudio_jax.training.guard import guarded
from stepaudio_jax.training.initial import init_model, new_model
from stepaudio_jax.training.losses import token_scores
from stepaudio_jax.training.objectives import DPO, NextToken
from stepaudio_jax.training.sources import run_tokenizer
from stepaudio_jax.training.stage import Stage, prepare
from stepaudio_jax.training.step import TrainState, hidden_states
from tests import small
from tests.training import runs

LENGTH, VOCABULARY = 24, 520
DECODER_MATRICES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
SUPERVISED = {
    "dpo_33b": (5120, {"adaptor", "decoder"}, DPO),
    "dpo_tiny": (192, {"adaptor", "decoder"}, DPO),
    "encoder_pretraining_tiny": (192, {"encoder", "adaptor"}, NextToken),
    "lora_33b": (5120, {"decoder adapters"}, NextToken),
    "lora_8b": (3584, {"decoder adapters"}, NextToken),
    "lora_tiny": (192, {"decoder adapters"}, NextToken),
    "mid_training_33b": (5120, {"adaptor", "decoder"}, NextToken),
    "mid_training_8b": (3584, {"adaptor", "decoder"}, NextToken),
    "mid_training_tiny": (192, {"adaptor", "decoder"}, NextToken),
    "reward_model_33b": (5120, {"adaptor", "decoder"}, NextToken),
    "reward_model_tiny": (192, {"adaptor", "decoder"}, NextToken),
    "sft_33b": (5120, {"adaptor", "decoder"}, NextToken),
    "sft_8b": (3584, {"adaptor", "decoder"}, NextToken),
    "sft_tiny": (192, {"adaptor", "decoder"}, NextToken),
    "think_incomplete_33b": (5120, {"adaptor", "decoder"}, NextToken),
    "think_incomplete_tiny": (192, {"adaptor", "decoder"}, NextToken),
    "tiny": (192, {"encoder", "adaptor", "decoder"}, NextToken),
    "tiny_finish": (192, {"encoder", "adaptor", "decoder"}, NextToken),
}
"""By the recipe: hidden size of the decoder, what is trained, what is minimised. The encoder is frozen in every stage
of the release (R1 §4); the shipped tiny model has one of its own to train."""
AUDIO_AND_TEXT = {
    "mid_training_33b": {"audio": (4.0, ("audio",)), "text": (1.0, ("text",))},
    "mid_training_8b": {"audio": (4.0, ("audio",)), "text": (1.0, ("text",))},
    "sft_33b": {
        "audio_cot": (0.4, ("audio", "cot")),
        "audio_plain": (3.6, ("audio", "empty_think")),
        "text": (1.0, ("text",)),
    },
}
"""4 B tokens of sound to 1 B of text, a tenth of the former with reasoning (R1 §4.1, R1.5 §3.1)."""


def config_of(name: str):
    return importlib.import_module(f"configs.{name}").get_config()


def one_device_stage(config) -> Stage:
    return prepare(config, make_mesh({}, jax.devices()[:1]))


def small_config(**changes):
    """Two rows of text, a model of some thousand parameters."""
    return runs.config(**({"data.buckets": ((LENGTH, 0),), "optim.warmup_steps": 0} | changes))


def knows_nothing(stage: Stage, config) -> TrainState:
    """A state whose head is zero: every logit is 0, and a token's log-probability −ln V."""
    model = small.model(scale=1.0)
    model.decoder.lm_head.set_value(jnp.zeros_like(model.decoder.lm_head[...]))
    model.decoder.norm.scale.set_value(jnp.ones_like(model.decoder.norm.scale[...]))
    return training.init_state(model, stage.optimizer, trainable=config.trainable)[1]


def batch(segments, trained, **fields) -> Batch:
    """Rows of text: [B, T] segment ids, and which tokens' predictions are trained."""
    shape = np.zeros((2, LENGTH), np.int32)
    ids, mask = shape.copy(), shape.astype(bool)
    for row, values in enumerate(segments):
        ids[row, : len(values)], mask[row, : len(values)] = values, trained[row]
    tokens = np.random.default_rng(0).integers(9, VOCABULARY, shape.shape).astype(np.int32)
    positions = np.where(ids > 0, np.arange(LENGTH), 0).astype(np.int32)
    return Batch(**({"tokens": tokens, "positions": positions, "segment_ids": ids, "loss_mask": mask, "sources": shape,
                     "audio": None} | fields))  # fmt: skip


def of_a_step(config, data: Batch, *names: str) -> dict[str, float]:
    """These metrics of a step, and "step"; no more than they need is compiled."""
    stage = one_device_stage(config)

    def metrics(state):
        after, found = stage.program.fn(state, data, np.float32(np.inf))
        return {name: found[name] for name in names} | {"step": after.step}

    return {name: float(value) for name, value in jax.jit(metrics)(knows_nothing(stage, config)).items()}


def test_the_table_has_every_supervised_config():
    names = [module.name for module in pkgutil.iter_modules(configs.__path__) if module.name != "common"]
    assert {name for name in names if config_of(name).get("stage") == "supervised"} == set(SUPERVISED)


@pytest.mark.parametrize("name", SUPERVISED)
def test_what_each_config_trains(name):
    size, trained, objective = SUPERVISED[name]
    stage = one_device_stage(config_of(name))
    paths = flatten_dict(stage.state.params)
    found = {f"{path[0]} adapters" if is_lora(path) else path[0] for path in paths}
    assert found == trained and isinstance(stage.options.objective, objective)
    assert stage.model.config.decoder.hidden_size == size
    adapted = {path[2] for path in paths if is_lora(path)}
    assert adapted == (DECODER_MATRICES if "decoder adapters" in trained else set())
    frozen = {path[0] for path in flatten_dict(stage.state.frozen)}
    assert frozen == {"encoder", "adaptor", "decoder"} - (trained & {"encoder", "adaptor", "decoder"})


@pytest.mark.parametrize("name", AUDIO_AND_TEXT)
def test_what_each_config_draws_from(name):
    sources = config_of(name).data.sources
    assert {key: (source.weight, tuple(source.only)) for key, source in sources.items()} == AUDIO_AND_TEXT[name]


def test_the_loss_of_a_model_that_knows_nothing():
    """ln V a token, its square times the weight besides; of each source, and counted once."""
    config = small_config(z_loss=0.5)
    config.data.sources = {"one": {}, "two": {}}
    segments = [[1] * 6 + [2] * 5, [1] * 4]
    trained = [[0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 1], [0, 1, 1, 0]]
    data = batch(segments, trained, sources=np.array([[0] * LENGTH, [1] * LENGTH], np.int32))
    losses = ("loss", "loss/one", "loss/two")
    metrics = of_a_step(config, data, *losses, "z_loss", "tokens", "filled")
    for name in losses:
        assert metrics[name] == pytest.approx(math.log(VOCABULARY), rel=1e-5)
    assert metrics["z_loss"] == pytest.approx(math.log(VOCABULARY) ** 2, rel=1e-5)
    assert (metrics["tokens"], metrics["filled"], metrics["step"]) == (7, 15, 1)


def test_the_reported_norm_is_the_gradients():
    """Before clipping. Of one trained token the head's gradient is h · (p · (1 + 2 · w · ln V) − e), h being as long as
    √E, for a norm has a mean square of one; nothing flows back through a head of zeros."""
    config = small_config(z_loss=0.5, **{"optim.clip_norm": 1e-3})
    metrics = of_a_step(config, batch([[1] * 6, [0]], [[0, 0, 0, 1, 0, 0], [0]]), "grad_norm")
    factor = 1 + 2 * 0.5 * math.log(VOCABULARY)
    off, on = factor / VOCABULARY, factor / VOCABULARY - 1
    expected = math.sqrt(32 * ((VOCABULARY - 1) * off**2 + on**2))
    assert metrics["grad_norm"] == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_a_pair_of_known_log_probabilities():
    """−(1 − ε) log σ(m) − ε log σ(−m), m = β · ((−2 ln V − r₁) − (−3 ln V − r₂))."""
    config = small_config()
    config.dpo = {"beta": 0.3, "label_smoothing": 0.1, "sft_weight": 0.2}
    reference = np.zeros((2, LENGTH), np.float32)
    reference[0, 0], reference[0, 5] = -13.0, -12.5
    data = batch([[1] * 5 + [2] * 6, [0]], [[0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1], [0]], reference=reference)
    metrics = of_a_step(config, data, "loss", "reward_chosen", "reward_rejected", "loss_chosen")
    chosen, rejected = 0.3 * (-2 * math.log(VOCABULARY) + 13.0), 0.3 * (-3 * math.log(VOCABULARY) + 12.5)
    margin = chosen - rejected
    expected = 0.9 * math.log1p(math.exp(-margin)) + 0.1 * math.log1p(math.exp(margin))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["reward_chosen"] == pytest.approx(chosen, rel=1e-5)
    assert metrics["reward_rejected"] == pytest.approx(rejected, rel=1e-5)
    assert metrics["loss_chosen"] == pytest.approx(math.log(VOCABULARY), rel=1e-5)
    assert one_device_stage(config).options.objective == DPO(beta=0.3, label_smoothing=0.1, sft_weight=0.2)


def test_options_of_the_config_reach_the_program():
    """In the program that is compiled: what is computed again, loops over layers and chunks, types, shapes."""

    def program(**changes) -> str:
        made = one_device_stage(small_config(**changes)).program
        return str(jax.make_jaxpr(made.fn)(*made.abstract_args))

    rows = 2 * LENGTH
    plain = program()
    assert "remat" not in plain and "scan[" in plain and "bf16" not in plain
    assert f"f32[{rows},{VOCABULARY}]" in plain and f"f32[{rows},48]" in plain
    changed = program(remat="full", vocab_chunks=8, compute_dtype="bfloat16")
    assert "SaveOnlyTheseNames(saveable_names=frozenset())" in changed  # the policy "full"
    assert f"bf16[{rows},48]" in changed and f"f32[{rows},48]" not in changed
    assert f"f32[{rows},{VOCABULARY // 8}]" in changed and f"f32[{rows},{VOCABULARY}]" not in changed
    assert "scan[" not in program(scan_layers=False)
    halves = program(microbatches=2)
    assert f"f32[{LENGTH},48]" in halves and f"f32[{rows},48]" not in halves


def test_frozen_parameters_lie_in_the_compute_type():
    def types(tree) -> set[str]:
        return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}

    config = small_config(compute_dtype="bfloat16")
    stage = one_device_stage(config)
    for found in (stage.state, jax.eval_shape(lambda: stage.new_state(config))):
        assert types(found.frozen) == {"bfloat16"} and types(found.params) == {"float32"}
    config = lora_tiny.get_config()
    config.compute_dtype = "bfloat16"
    made = init_model(config, one_device_stage(config).rules)
    layer = made.decoder.layers.q_proj
    assert layer.kernel.dtype == jnp.bfloat16 and layer.lora.a.dtype == jnp.float32


def test_updates_follow_the_optim_section():
    """In closed form: of a gradient that stays 1, −rate · (1 + decay · θ); where it falls to 0 after the first step,
    the second moves by b₁ / (1 + b₁) / √(b₂ / (1 + b₂))."""
    config = small_config(steps=10)
    config.optim.update({"learning_rate": 0.5, "end_learning_rate": 0.1, "warmup_steps": 2, "schedule": "linear"})
    config.optim.update({"b1": 0.8, "b2": 0.6, "weight_decay": 0.25, "clip_norm": 1e9})
    optimizer = one_device_stage(config).optimizer
    update = jax.jit(optimizer.update)
    params = {"norm": {"scale": jnp.full(3, 2.0)}, "linear": {"kernel": jnp.full((2, 2), 2.0)}}
    ones = jax.tree.map(jnp.ones_like, params)
    state = optimizer.init(params)
    for step in range(11):
        rate = 0.25 * step if step < 2 else 0.5 - 0.4 * (step - 2) / 8
        updates, state = update(ones, state, params)
        np.testing.assert_allclose(updates["norm"]["scale"], -rate, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(updates["linear"]["kernel"], -rate * 1.5, rtol=1e-5, atol=1e-9)
    _, state = update(ones, optimizer.init(params), params)
    updates, _ = update(jax.tree.map(jnp.zeros_like, params), state, params)
    moved = (0.8 / 1.8) / math.sqrt(0.6 / 1.6)
    np.testing.assert_allclose(updates["norm"]["scale"], -0.25 * moved, rtol=1e-5)


def test_a_step_counts_its_flops_and_tokens():
    """Of text, in forward passes of the decoder: three where it is trained, two where its gradients only pass through
    or its adapters are."""
    for name, passes in (("sft_tiny", 3), ("encoder_pretraining_tiny", 2), ("lora_tiny", 2)):
        config = config_of(name)
        config.data.update({"batch_size": 2, "buckets": ((64, 0),)})
        stage = one_device_stage(config)
        assert stage.program.flops == pytest.approx(passes * stage.forward_flops)
        assert stage.program.tokens == 128


def seeded(seed: int):
    return small_config(seed=seed)


def test_a_run_begins_with_the_weights_it_names(tmp_path):
    made = small.model(seed=3)
    checkpoints.save(tmp_path / "it", made, small.tokenizer().backend.to_str())
    config = small_config(**{"init": str(tmp_path / "it"), "tokenizer.vocab_size": 1024})
    found = init_model(config, one_device_stage(config).rules)
    np.testing.assert_array_equal(found.decoder.embed_tokens[...], made.decoder.embed_tokens[...])
    np.testing.assert_array_equal(found.encoder.conv1.kernel[...], made.encoder.conv1.kernel[...])
    tokenizer, text = run_tokenizer(config)
    assert tokenizer.vocab_size == 512 and text == small.tokenizer().backend.to_str()
    one, other = (jax.jit(lambda c=c: new_model(c).decoder.embed_tokens[...])() for c in map(seeded, (1, 2)))
    assert np.any(one != other)


def test_adapters_are_those_of_the_config():
    config = small_config(trainable=("lora",))
    config.lora = {"rank": 3, "alpha": 7.5, "targets": ("q_proj", "linear1"), "modules": ("adaptor", "decoder"),
                   "rslora": True}  # fmt: skip
    stage = one_device_stage(config)
    adapted = {path[-1]: layer.lora for path, layer in linear_layers(stage.model) if layer.lora is not None}
    assert set(adapted) == {"q_proj", "linear1"}
    assert adapted["q_proj"].a.shape == (2, 32, 3) and adapted["linear1"].b.shape == (3, 24)
    assert {lora.scale for lora in adapted.values()} == {7.5 / math.sqrt(3)}
    assert len(jax.tree.leaves(stage.state.params)) == 4


def test_the_shipped_model_knows_its_world_in_packed_rows():
    """Of three dialogues in a row, log-probabilities of what the model was trained to say: near 0 where tokens, places
    and sounds come to it as they did then. Another place for a token costs nats."""
    config = sft_tiny.get_config()
    config.data.update({"batch_size": 1, "buckets": ((384, 160 * 1280),)})
    tokenizer, _ = run_tokenizer(config)
    rng = np.random.default_rng(7)
    examples = [encode(miniature.make_question(rng, max_events=3).conversation, tokenizer) for _ in range(3)]
    data = collate([examples], length=384, sound_rows=1, sound_samples=160 * 1280)
    stage = one_device_stage(config)
    state = stage.new_state(config)._replace(opt_state=None)
    found = np.asarray(jax.jit(stage.segment_scores().fn)(state, data))[0, :3]
    means = found / [example.rendered.loss_mask.sum() for example in examples]
    assert (means > -0.2).all(), means


def test_a_shared_prompt_is_seen_by_its_replies():
    """Of a row [prompt, reply, reply], in which each is a segment of its own: another word in the prompt moves both."""
    model = small.model(scale=1.0)
    segments = np.array([[3] * 6 + [1] * 4 + [2] * 5 + [0] * 3])
    positions = np.array([[*range(6), *range(6, 10), *range(6, 11), 0, 0, 0]])
    groups = np.array([[-1] * 6 + [1] * 9 + [0] * 3])
    tokens = np.random.default_rng(0).integers(9, VOCABULARY, segments.shape)
    made = Batch(tokens, positions, segments, segments > 0, segments * 0, None, groups=groups)
    other = made._replace(tokens=np.where(np.arange(18) == 2, 5, tokens))
    hidden = jax.jit(lambda batch: hidden_states(model, batch, training.StepOptions()))
    before, after = (np.asarray(hidden(x)) for x in (made, other))
    moved = np.abs(before - after).max(-1)[0] > 1e-5
    assert moved[2:15].all() and not moved[:2].any() and not moved[15:].any()


def test_the_length_rule_reaches_the_encoder():
    """Of a length whose last frame the two rules count differently."""
    model = small.model(scale=1.0)
    clip = Audio(small.sound(0.7)[: 160 * 65])
    example = encode(Conversation((human(clip, "What?"), assistant("That."))), small.tokenizer())
    data = collate([[example]], length=64, sound_rows=1, sound_samples=20 * 1280)
    hidden = jax.jit(lambda rule: hidden_states(model, data, training.StepOptions(length_rule=rule)), static_argnums=0)
    hf, vllm = (np.asarray(hidden(rule)) for rule in ("hf", "vllm"))
    assert np.abs(hf - vllm).max() > 1e-4


def test_a_gradient_that_is_not_finite_changes_nothing():
    def step(state, data):
        return TrainState(data, {}, data, state.step + 1), {"loss": jnp.float32(1.0), "grad_norm": jnp.sum(data)}

    begin = TrainState(jnp.zeros(2), {}, jnp.zeros(2), jnp.int32(0))
    for data, skipped in ((jnp.array([1.0, 2.0]), False), (jnp.array([1.0, np.inf]), True)):
        after, metrics = guarded(step)(begin, data, jnp.float32(9.0))
        expected = begin.params if skipped else data
        np.testing.assert_array_equal(after.params, expected)
        np.testing.assert_array_equal(after.opt_state, expected)
        assert bool(metrics["skipped"]) == skipped and int(after.step) == 1


def test_scores_at_a_temperature_and_their_entropy():
    logits = np.random.default_rng(0).normal(size=(2, 3, 8))
    targets = np.array([[0, 3, 7], [2, 2, 5]])
    head = training.step.nnx.Param(jnp.eye(8), logical_axes=("vocab", "embed"))
    found = token_scores(jnp.asarray(logits, jnp.float32), head, targets, temperature=0.5, entropy=True)
    exact = logits / 0.5 - np.log(np.exp(logits / 0.5).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.log_probs, np.take_along_axis(exact, targets[..., None], -1)[..., 0], rtol=1e-5)
    np.testing.assert_allclose(found.entropy, -(np.exp(exact) * exact).sum(-1), rtol=1e-5)
