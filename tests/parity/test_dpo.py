"""Our DPO beside TRL's own code, on the same log-probabilities: loss and its gradient, rewards, margins, accuracy."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stepaudio_jax.data import Batch
from stepaudio_jax.training.losses import TokenScores
from stepaudio_jax.training.objectives import DPO

pytestmark = pytest.mark.parity

PAIRS, LENGTH = 6, 20


class Accelerator:
    """Of one process."""

    device = torch.device("cpu")

    def gather(self, x):
        return x

    gather_for_metrics = gather


def trl_loss(log_probs: torch.Tensor, mask: np.ndarray, reference: np.ndarray, beta: float):
    """TRL's DPOTrainer._compute_loss of chosen and rejected rows, [2 · pairs, length − 1], and what it reports."""
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=False),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=None,
        beta=beta,
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    nothing = torch.zeros_like(log_probs)
    outputs = types.SimpleNamespace(
        log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), aux_loss=None
    )
    masks = torch.from_numpy(np.pad(mask, ((0, 0), (1, 0)))).long()
    inputs = {
        "input_ids": torch.zeros_like(masks),
        "attention_mask": torch.ones_like(masks),
        "completion_mask": masks,
        "ref_chosen_logps": torch.from_numpy(reference[:PAIRS]),
        "ref_rejected_logps": torch.from_numpy(reference[PAIRS:]),
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return loss, trainer._metrics["eval"]


def test_loss_gradient_and_rewards_are_those_of_trl(figure):
    rng, beta = np.random.default_rng(0), 0.25
    log_probs = -rng.exponential(size=(2 * PAIRS, LENGTH - 1)).astype(np.float32)
    mask = rng.random(log_probs.shape) < 0.6
    log_probs = np.where(mask, log_probs, 0)  # TRL's outputs are 0 where nothing is to be learnt
    reference = (log_probs.sum(1) + rng.normal(0, 2, 2 * PAIRS)).astype(np.float32)
    tensor = torch.from_numpy(log_probs).requires_grad_(True)
    truth, told = trl_loss(tensor, mask, reference, beta)
    truth.backward()

    # The same in one packed row: better, worse, better, worse.
    order = [i + side * PAIRS for i in range(PAIRS) for side in (0, 1)]
    segments = np.repeat(np.arange(1, 2 * PAIRS + 1), LENGTH - 1)[None].astype(np.int32)
    starts = np.zeros(segments.shape, np.float32)
    starts[0, :: LENGTH - 1] = reference[order]
    ours_mask = jnp.asarray(mask[order].reshape(1, -1))
    ints = np.zeros_like(segments)
    batch = Batch(ints, ints, segments, ints.astype(bool), ints, None, starts)
    objective = DPO(beta=beta)
    count = objective.count(batch, ours_mask)

    def loss(x):
        total, sums = objective(TokenScores(x, jnp.zeros_like(x), x > 0), batch, ours_mask)
        return total / count, objective.metrics(sums, count)

    (found, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(log_probs[order].reshape(1, -1)))
    figure("DPO beside TRL, loss", abs(float(found) - truth.item()), 1e-6)
    expected = tensor.grad.numpy()[order].reshape(1, -1) * np.asarray(ours_mask)
    figure("DPO beside TRL, gradient", float(np.abs(np.asarray(gradient) - expected).max()), 1e-6)
    for ours, theirs in (("reward_chosen", "chosen"), ("reward_rejected", "rejected"), ("margin", "margins")):
        assert float(metrics[ours]) == pytest.approx(told[f"rewards/{theirs}"][0], rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(told["rewards/accuracies"][0])
