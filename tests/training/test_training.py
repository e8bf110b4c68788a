"""Loss, optimizer, step and trainer: against closed forms and Optax, and on a run small enough for a test."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import lora_tiny, tiny
from stepaudio_jax import checkpoints, miniature, training
from stepaudio_jax.data import collate, encode
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.text import Conversation, assistant, human
from stepaudio_jax.training.sources import MiniatureSource
from stepaudio_jax.training.stage import prepare
from tests import small
from tests.training import runs


def test_the_loss_is_the_mean_over_masked_tokens():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 6, 11)).astype(np.float32)
    tokens = rng.integers(0, 11, (2, 6))
    mask = rng.random((2, 6)) < 0.5
    targets, counted = training.next_tokens(tokens, mask)
    # Hidden states that are the logits, of a head that is the identity.
    head = nnx.Param(jnp.eye(11), logical_axes=("vocab", "embed"))
    scores = training.token_scores(jnp.asarray(logits), head, targets)
    loss = -jnp.where(counted, scores.log_probs, 0).sum() / counted.sum()
    wide = logits[:, :-1].astype(np.float64)
    log_probs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, tokens[:, 1:, None], -1)[..., 0]
    assert float(loss) == pytest.approx(-picked[mask[:, 1:]].mean(), rel=1e-6)
    assert int(counted.sum()) == mask[:, 1:].sum()
    np.testing.assert_array_equal(scores.top, logits.argmax(-1) == targets)
    per_token = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    assert float(loss) == pytest.approx(float(per_token[mask[:, 1:]].mean()), rel=1e-6)


@pytest.mark.parametrize("chunks", [1, 2, 5, 10])
def test_the_vocabulary_in_chunks(chunks):
    """Log-probabilities and gradients as of the whole logits, also where one chunk holds all the probability."""
    rng = np.random.default_rng(chunks)
    hidden, table = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 6, 8), (40, 8)))
    table = table.at[7].mul(30)
    targets, weights = rng.integers(0, 40, (2, 6)), rng.standard_normal((2, 6))

    def chunked(hidden, table):
        head = nnx.Param(table, logical_axes=("vocab", "embed"))
        return (training.token_scores(hidden, head, targets, chunks=chunks).log_probs * weights).sum()

    def whole(hidden, table):
        return -(optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, targets) * weights).sum()

    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, table) for f in (chunked, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, expected)
    with pytest.raises(ValueError, match="vocab_chunks: 3 does not divide the 40"):
        training.token_scores(hidden, nnx.Param(table, logical_axes=("vocab", "embed")), targets, chunks=3)


def test_a_batch_without_loss_tokens_is_no_division_by_zero():
    model = small.model()
    graphdef, state = training.init_state(model, optax.sgd(1.0))
    silent = batch(range(2))._replace(loss_mask=np.zeros((2, 320), bool))
    after, metrics = jax.jit(training.make_train_step(graphdef, optax.sgd(1.0)))(state, silent)
    assert float(metrics["loss"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


@pytest.mark.parametrize("trainable", [("adaptor", "decoder"), ("adaptor",)])
def test_frozen_modules_have_no_optimizer_state_and_do_not_move(trainable):
    model, data = small.model(scale=1.0), batch(range(2))
    whole = training.init_state(model, optim())[1]
    graphdef, state = training.init_state(model, optim(), trainable=trainable)
    assert set(state.params) == set(trainable) and set(state.frozen) == {"encoder", "adaptor", "decoder"} - set(
        trainable
    )
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.size > 1)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(state.params))
    step = jax.jit(training.make_train_step(graphdef, optax.sgd(1.0)))
    state, every = (s._replace(opt_state=optax.sgd(1.0).init(s.params)) for s in (state, whole))
    after, full = step(state, data)[0], jax.jit(training.make_train_step(graphdef, optax.sgd(1.0)))(every, data)[0]
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    for name in trainable:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params[name], full.params[name])
    with pytest.raises(ValueError, match=r"trainable: expected some of .*, lora, value_head, found ears"):
        training.init_state(model, optim(), trainable=("ears",))


def test_microbatches_take_the_step_of_the_whole():
    """Of unequal numbers of tokens: the mean is over all of them, not of the means."""
    model = small.model(scale=1.0)
    whole, *parts = (batch(examples) for examples in (range(4), range(2), range(2, 4)))
    for mask in (whole.loss_mask[2:], parts[1].loss_mask):
        mask[:, ::2] = False
    assert parts[0].loss_mask.sum() > parts[1].loss_mask.sum() + 5 > 10
    stacked = jax.tree.map(lambda *x: np.stack(x), *parts)
    graphdef, state = training.init_state(model, optax.sgd(1.0))
    one, two = (
        jax.jit(training.make_train_step(graphdef, optax.sgd(1.0), training.StepOptions(microbatches=n)))(state, b)
        for n, b in ((1, whole), (2, stacked))
    )
    for name in ("loss", "accuracy", "tokens", "think_tokens", "grad_norm"):
        assert float(one[1][name]) == pytest.approx(float(two[1][name]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one[0].params, two[0].params)


def batch(seeds=range(4)):
    questions = [miniature.make_question(np.random.default_rng(seed), max_events=2) for seed in seeds]
    examples = [encode(question.conversation, small.tokenizer()) for question in questions]
    return collate([[x] for x in examples], length=320, sound_rows=len(examples), sound_samples=65_280)


def test_the_length_of_think_blocks_is_their_mean():
    """Over all turns that are trained on, two of them in one row, and rows without any."""
    thoughts, tokenizer = ("One tone, and then a click.", None, "Noise."), small.tokenizer()
    first, second, third = (
        encode(Conversation((human("What?"), assistant("That.", think=think))), tokenizer) for think in thoughts
    )
    ignored = encode(Conversation((human("What?"), assistant("That.", think="Long. " * 9, loss=False))), tokenizer)
    data = collate([[first, second], [third, ignored], []], length=160, sound_rows=0, sound_samples=0)
    graphdef, state = training.init_state(small.model(), optax.sgd(1.0))
    step = jax.jit(training.make_train_step(graphdef, optax.sgd(1.0)))
    expected = np.mean([len(tokenizer.encode(f"{think or ''}\n</think>\n")) for think in thoughts])
    assert float(step(state, data)[1]["think_tokens"]) == pytest.approx(expected)
    silent = data._replace(think_tokens=np.zeros_like(data.tokens))
    assert np.isnan(float(step(state, silent)[1]["think_tokens"]))


def optim(**changes):
    config = tiny.get_config().optim
    config.update({"warmup_steps": 1} | changes)
    return training.make_optimizer(config, 20)


def test_steps_learn_a_batch_by_heart():
    model = small.model(scale=1.0)
    graphdef, state = training.init_state(model, optim(learning_rate=5e-3))
    step = jax.jit(training.make_train_step(graphdef, optim(learning_rate=5e-3)))
    data = batch()
    losses = []
    for _ in range(20):
        state, metrics = step(state, data)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.75 * losses[0], losses
    assert int(state.step) == 20
    assert step._cache_size() == 1


def test_padding_and_neighbours_do_not_move_the_gradient():
    model = small.model(scale=1.0)  # of weights so large that it is chaotic, no gradient could be compared
    optimizer = optax.sgd(1.0)
    graphdef, state = training.init_state(model, optimizer)
    step = jax.jit(training.make_train_step(graphdef, optimizer))
    question = miniature.make_question(np.random.default_rng(0), max_events=2)
    example = encode(question.conversation, small.tokenizer())
    one = collate([[example]], length=256, sound_rows=1, sound_samples=65_280)
    two = collate([[example], [example]], length=320, sound_rows=3, sound_samples=80_640)
    alone, crowded = (
        jax.tree.map(jnp.subtract, state.params, step(state, data)[0].params) for data in (one, two)
    )  # at a rate of 1, the gradients
    difference = jax.tree.map(jnp.subtract, alone, crowded)
    assert optax.tree.norm(difference) <= 1e-5 * optax.tree.norm(alone)


def test_layers_written_out_take_the_same_step():
    model, data = small.model(scale=1.0), batch(range(2))
    graphdef, state = training.init_state(model, optax.sgd(1.0))
    scanned, written_out = (
        jax.jit(training.make_train_step(graphdef, optax.sgd(1.0), training.StepOptions(scan_layers=scan)))(
            state, data
        )[0].params
        for scan in (True, False)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), scanned, written_out)
    with pytest.raises(ValueError, match='remat: "full" recomputes scanned layers'):
        training.StepOptions(remat="full", scan_layers=False)


def test_decay_is_for_matrices_only():
    model = small.model()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = optim(weight_decay=0.5, learning_rate=1.0, end_learning_rate=1.0)
    state = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):  # the first step of a warm-up has rate 0
        updates, state = optimizer.update(zeros, state, params)
    decoder = updates["decoder"]
    np.testing.assert_allclose(decoder["embed_tokens"], -0.5 * params["decoder"]["embed_tokens"], rtol=1e-5)
    np.testing.assert_allclose(
        decoder["layers"]["q_proj"]["kernel"], -0.5 * params["decoder"]["layers"]["q_proj"]["kernel"], rtol=1e-5
    )
    assert not np.any(decoder["layers"]["q_proj"]["bias"])
    assert not np.any(decoder["layers"]["input_layernorm"]["scale"])
    assert not np.any(updates["encoder"]["after_norm"]["bias"])


def test_bfloat16_parameters_are_refused():
    model = small.model()
    nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))
    with pytest.raises(ValueError, match="needs float32 parameters, found bfloat16"):
        training.init_state(model, optim())


def test_the_source_is_a_function_of_seed_and_step():
    """Also where it goes on from: in the middle of a group of batches."""
    tokenizer = training_tokenizer()

    def source(seed):
        config = runs.config(seed=seed, model="tiny", **runs.SOUND)
        return MiniatureSource(config, tokenizer, prepare(config, make_mesh({}, jax.devices()[:1])))

    def first(seed):
        made = source(seed)
        return [next(made) for _ in range(5)]

    one, same, other = first(0), first(0), first(1)
    late = source(0)
    late.restore({"batch": 4})
    for a, b in zip([*one, one[4]], [*same, next(late)], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert late.state() == {"batch": 5}
    assert any(
        a.tokens.shape != b.tokens.shape or np.any(a.tokens != b.tokens) for a, b in zip(one, other, strict=True)
    )


def training_tokenizer():
    from stepaudio_jax.text import Tokenizer

    return Tokenizer(miniature.build_tokenizer(1024))


def test_every_example_fits_the_buckets():
    """The largest scenes with the longest words, many of them: training must not stop for one."""
    config, tokenizer = tiny.get_config().data, training_tokenizer()
    longest, samples = config.buckets[-1]
    rng = np.random.default_rng(0)
    for i in range(900):
        question = miniature.make_question(rng, miniature.KINDS[i % len(miniature.KINDS)])
        example = encode(question.conversation, tokenizer)
        assert example.num_tokens <= longest and example.sound_units * 1_280 <= samples


@pytest.mark.usefixtures("one_device")
def test_a_run_leaves_a_checkpoint_its_config_and_its_metrics(tmp_path):
    seen = []
    config = runs.config(steps=4, eval_every=2, save_dtype="bfloat16", **runs.SOUND)
    path = training.train(
        config, tmp_path / "run", evaluate=lambda model, tokenizer: seen.append(model) or {"eval": 1.0}
    )
    model, tokenizer = checkpoints.load(path)
    assert tokenizer.vocab_size == 512 and model.config == small.config(max_position_embeddings=1024)
    assert {str(x.dtype) for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {"bfloat16"}
    assert len(seen) == 2
    lines = runs.lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(0 < line["padding"] < 1 for line in lines)
    assert all(5 < line["think_tokens"] < line["tokens"] for line in lines)
    assert len(runs.lines(tmp_path / "run", "eval")) == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 4
    assert "4 of 4 steps" in (tmp_path / "run" / "report.html").read_text()


def test_configs_take_overrides_and_name_the_nearest_key():
    config = training.read_config("configs/tiny.py", ["--config.optim.learning_rate=1e-5", "--config.steps=7"])
    assert config.optim.learning_rate == 1e-5 and config.steps == 7
    with pytest.raises(ValueError, match=r"optim.learning_rat: no such key.*did you mean optim.learning_rate"):
        training.read_config("configs/tiny.py", ["--config.optim.learning_rat=1e-5"])
    with pytest.raises(ValueError):
        training.read_config("configs/tiny.py", ["--config.steps=many"])
    with pytest.raises(ValueError, match="warmup_steps: expected fewer than the 100 steps"):
        training.make_optimizer(config.optim, 100)
    with pytest.raises(FileNotFoundError, match="no such config file"):
        training.read_config("configs/huge.py")


@pytest.mark.usefixtures("one_device")
def test_a_run_trains_adapters(tmp_path):
    """What it leaves is a folder of adapters beside its base, which as a whole is what was trained."""
    config = lora_tiny.get_config()
    config.update({"steps": 2, "eval_every": 2, "scan_layers": True})
    config.data.update({"batch_size": 2, "batches_per_group": 2, "buckets": ((160, 65_280),)})
    config.optim.warmup_steps = 0
    seen = []
    path = training.train(config, tmp_path / "run", evaluate=lambda model, _: seen.append(model) or {})
    (base, _), (model, _), (beside, _, about) = (
        checkpoints.load("tiny"), checkpoints.load(path, dtype=jnp.float32), checkpoints.load_adapters(path),
    )  # fmt: skip
    assert about.base == "tiny" and about.modules == () and about.lora.rank == config.lora.rank
    for name in ("encoder", "adaptor"):
        states = (nnx.to_pure_dict(nnx.state(getattr(m, name), nnx.Param)) for m in (base, model))
        jax.tree.map(np.testing.assert_array_equal, *states)
    assert np.any(beside.decoder.layers.q_proj.lora.b[...]) and np.any(
        np.asarray(model.decoder.layers.q_proj.kernel[...]) != np.asarray(base.decoder.layers.q_proj.kernel[...])
    )
    (trained,) = seen
    ours, theirs = (m.decoder.layers.down_proj.lora for m in (beside, trained))
    np.testing.assert_array_equal(ours.a[...], theirs.a[...])
    np.testing.assert_array_equal(ours.b[...], theirs.b[...])
    config.init = ""
    with pytest.raises(ValueError, match=r"config.init: adapters are trained beside the weights of a checkpoint"):
        training.train(config, tmp_path / "other")
