"""Five steps of AdamW beside torch's: the same weights, data, losses, gradients and parameters, in float32."""

import math

import jax
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from configs import tiny
from stepaudio_jax import training
from stepaudio_jax.data import Batch
from stepaudio_jax.models import hf_names
from tests.parity import cases, torch_reference

pytestmark = pytest.mark.parity

STEPS, RATE, END, WARMUP, DECAY, CLIP = 5, 2e-3, 2e-4, 1, 0.1, 1.0
BETAS = 0.9, 0.95
CLIPS = ((16_000, 800), (), (24_161,))


def prompts(step: int) -> list[cases.Prompt]:
    return [cases.prompt(clips, "hf", seed=10 * step + i + 1, text=5 + 4 * i) for i, clips in enumerate(CLIPS)]


def our_batch(step: int) -> Batch:
    """Every token but the first third of each prompt is learned."""
    data = cases.batch(prompts(step), "hf", length=64, width=25_000)
    learned = np.zeros(data.tokens.shape, bool)
    for row, prompt in enumerate(prompts(step)):
        learned[row, len(prompt.tokens) // 3 : len(prompt.tokens)] = True
    sources = np.zeros_like(data.tokens)
    return Batch(data.tokens, data.positions, data.segment_ids, learned, sources, data.audio)


def torch_loss(model: torch_reference.Reference, step: int) -> torch.Tensor:
    logits, targets = [], []
    for prompt in prompts(step):
        first = len(prompt.tokens) // 3
        logits.append(model.logits(cases.truth_embeds(model, prompt, "hf"))[first - 1 : -1])
        targets.append(torch.tensor(prompt.tokens[first:]))
    return cross_entropy(torch.cat(logits), torch.cat(targets))


def rate(step: int) -> float:
    if step < WARMUP:
        return RATE * step / WARMUP
    return END + (RATE - END) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def torch_steps(model: torch_reference.Reference):
    """Losses, gradients before clipping and parameters of each step, under the released names."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if "norm" not in n and not n.endswith(".bias")]
    rest = [p for n, p in named if "norm" in n or n.endswith(".bias")]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}], betas=BETAS, eps=1e-8
    )
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = torch_loss(model, step)
        loss.backward()
        gradients = torch_reference.gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        weights = {torch_reference.released_name(n): p.detach().numpy().copy() for n, p in named}
        yield float(loss), gradients, weights


def our_steps(model):
    config = tiny.get_config().optim
    config.update({
        "learning_rate": RATE, "end_learning_rate": END, "warmup_steps": WARMUP, "weight_decay": DECAY,
        "clip_norm": CLIP, "b1": BETAS[0], "b2": BETAS[1],
    })  # fmt: skip
    optimizer = training.make_optimizer(config, STEPS)
    graphdef, state = training.init_state(model, optimizer)
    step = jax.jit(training.make_train_step(graphdef, optimizer))

    def released(tree):
        return hf_names.save_state(training.merge(graphdef, tree))

    for number in range(STEPS):
        old = state.opt_state[1].mu
        state, metrics = step(state, our_batch(number))
        # The gradient, clipped, is what the first moment moved by.
        clipped = jax.tree.map(lambda new, old: (new - BETAS[0] * old) / (1 - BETAS[0]), state.opt_state[1].mu, old)
        norm = float(metrics["grad_norm"])
        gradients = jax.tree.map(lambda g, norm=norm: g * max(1.0, norm / CLIP), clipped)
        yield float(metrics["loss"]), released(gradients), released(state.params)


@pytest.mark.parametrize("name", ["8b-like", "yarn"])
def test_five_steps(name, figure):
    model = cases.fresh(name)
    twin, _ = torch_reference.random_model(cases.CONFIGS[name], seed=sorted(cases.CONFIGS).index(name))
    twin.encoder.embed_positions.requires_grad_(True)
    losses, worst = [], {"losses": 0.0, "gradients": 0.0, "parameters": 0.0, "the way moved": 0.0}
    start = {torch_reference.released_name(n): p.detach().numpy().copy() for n, p in twin.named_parameters()}
    for (loss, gradients, weights), (true_loss, true_gradients, true_weights) in zip(
        our_steps(model), torch_steps(twin), strict=True
    ):
        losses.append(true_loss)
        found = {
            "losses": abs(loss - true_loss),
            "gradients": max(cases.relative_errors(gradients, true_gradients).values()),
            "parameters": max(cases.relative_errors(weights, true_weights).values()),
        }
        if len(losses) > WARMUP:
            ways = ({k: v - start[k] for k, v in x.items()} for x in (weights, true_weights))
            found["the way moved"] = max(cases.relative_errors(*ways).values())
        worst = {name: max(value, found.get(name, 0.0)) for name, value in worst.items()}
    assert max(losses) - min(losses) > 0.05  # something happens
    for what in ("losses", "gradients", "parameters"):
        figure(f"{name}, five AdamW steps, {what}", worst[what], 1e-4)
    figure(f"{name}, five AdamW steps, the way moved", worst["the way moved"], 1e-2)
