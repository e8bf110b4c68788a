"""The same train step and the same replies on any mesh, for tests in one process and in several."""

import jax
import numpy as np
import optax
from flax import nnx

from stepaudio_jax import miniature, training
from stepaudio_jax.data import Batch, collate, encode
from stepaudio_jax.inference import Engine, EngineOptions, Finished, Request, SamplingParams
from stepaudio_jax.models.layers import logical_axes
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.text import Audio, Conversation, human
from stepaudio_jax.training.step import batch_specs
from tests import small

ROWS = 8


def batch(shards: int, seed: int = 0) -> Batch:
    """Eight rows, each a question about one clip."""
    tokenizer, examples = small.tokenizer(), []
    for row in range(ROWS):
        question = miniature.make_question(np.random.default_rng((seed, row)), max_events=2)
        examples.append(encode(question.conversation, tokenizer))
    return collate([[x] for x in examples], length=320, sound_rows=2 * ROWS, sound_samples=65_280, shards=shards)


def train_step(mesh, *, lora=None, **options):
    """Gradients (float32, on the host) and metrics of one step of a small model on a mesh; with `lora` of adapters."""
    model, optimizer = small.adapted(lora, scale=1.0) if lora else small.model(scale=1.0), optax.sgd(1.0)
    rules = ShardingRules(mesh, "train")
    trainable = ("lora",) if lora else training.step.MODULES
    graphdef, state = training.init_state(model, optimizer, trainable=trainable)
    specs = training.state_specs(rules, model, optimizer, state)
    microbatches = options.get("microbatches", 1)
    shards = rules.size(rules.split("batch"))
    data = batch(shards)
    if microbatches > 1:
        data = jax.tree.map(lambda *x: np.stack(x), *(batch(shards, seed) for seed in range(microbatches)))
    step = training.make_train_step(graphdef, optimizer, training.StepOptions(**options), rules=rules, specs=specs)
    shardings = rules.shardings(specs), rules.shardings(batch_specs(rules, data, microbatches))
    new, metrics = jax.jit(step, in_shardings=shardings)(*place((state, data), shardings))
    before, after = (gather(tree.params, mesh) for tree in (state, new))
    return jax.tree.map(np.subtract, before, after), {name: float(value) for name, value in metrics.items()}


def place(tree, shardings):
    """Arrays that every process has, each device taking its part."""
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_callback(np.shape(x), sharding, lambda at: np.asarray(x)[at]),
        tree,
        shardings,
    )


def gather(tree, mesh):
    """The whole of every array, on this process's host."""
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(np.asarray, jax.jit(lambda tree: tree, out_shardings=whole)(tree))


def replies(mesh, strategy: str, **options):
    """Token ids and log-probabilities of three replies of 16 tokens, greedy and sampled; `options` of the engine."""
    model = small.model(scale=1.0)
    rules = ShardingRules(mesh, strategy)
    graphdef, variables = nnx.split(model)
    params = nnx.to_pure_dict(variables)
    placed = nnx.merge(graphdef, place(params, rules.shardings(rules.specs(logical_axes(variables)))))
    engine = Engine(placed, small.tokenizer(), EngineOptions(max_rows=4, pages=64, burst=8, **options), rules=rules)
    requests = [
        Request(
            Conversation((human(Audio(small.sound(0.7 + i, i)), "What is it?"),)),
            SamplingParams(max_new_tokens=16, temperature=0.9 if i % 2 else 0.0, seed=i),
        )
        for i in range(3)
    ]
    done = [event.completion for event in engine.generate(requests) if isinstance(event, Finished)]
    return sorted((tuple(c.token_ids), tuple(c.log_probs)) for c in done)
