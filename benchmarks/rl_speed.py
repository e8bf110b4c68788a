"""An update of PPO and of GRPO on a small Qwen2 beside Tunix's learners, on this CPU: the same sizes, prompts, samples.

    pip install google-tunix==0.1.7 into an environment with this project, then: python -m benchmarks.rl_speed

An update is the rollout, rewards, old log-probabilities, values, advantages, one critic and one policy step (GRPO: one
policy step), and the new weights in the sampler; no KL on either side. Weights are random, so replies run to their
length. Both run in this process, in turn; seconds are medians over the updates after the first ones, which compile.
The second table holds a rollout of the trainer against the engine alone, on the same requests.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from stepaudio_jax import miniature
from stepaudio_jax.config import AudioEncoderConfig, DecoderConfig, StepAudioConfig
from stepaudio_jax.inference import Engine, EngineOptions, Request, SamplingParams
from stepaudio_jax.models import StepAudio, make_critic
from stepaudio_jax.parallel import ShardingRules, make_mesh
from stepaudio_jax.rl import ppo
from stepaudio_jax.rl.learner import Learner, PolicyReader, read_critic
from stepaudio_jax.rl.losses import Clip
from stepaudio_jax.rl.objectives import CriticLoss, PolicyLoss
from stepaudio_jax.rl.rollout import Layout, Prompt, rollout, to_example
from stepaudio_jax.text import Conversation, Tokenizer, human
from stepaudio_jax.training.step import StepOptions

VOCABULARY, LAYERS, WIDTH, HIDDEN, HEADS, KV_HEADS, DIM = 512, 4, 128, 384, 4, 2, 32
PROMPT, NEW, RATE = 64, 32, 1e-4
WARM = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """So many prompts an update, and replies to each."""

    name: str
    prompts: int
    samples: int


CASES = (Case("PPO", 16, 1), Case("GRPO", 4, 4))


class Ours:
    def __init__(self, case: Case):
        self.case = case
        decoder = DecoderConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM, tie_word_embeddings=False,
            max_position_embeddings=512,
        )  # fmt: skip
        audio = AudioEncoderConfig(n_audio_state=16, n_audio_head=2, n_audio_layer=1, llm_dim=WIDTH, adapter_state=16)
        sizes = StepAudioConfig(decoder, audio, eos_token_ids=(0, 1), pad_token_id=0)
        self.tokenizer = Tokenizer(miniature.build_tokenizer(VOCABULARY, samples=200))
        rules = ShardingRules(make_mesh({}, jax.devices()[:1]))

        def learner(model, objective, read, trainable):
            options = StepOptions(objective=objective, scan_layers=False)
            made = Learner(model, optax.adamw(RATE), options, read, trainable=trainable, rules=rules)
            return made.begin(model)

        policy, critic = (StepAudio(sizes, rngs=nnx.Rngs(0)) for _ in range(2))
        make_critic(critic, nnx.Rngs(0))
        self.policy = learner(policy, PolicyLoss(Clip()), PolicyReader(1.0, 1), ("decoder",))
        self.critic: Any = None
        if case.samples == 1:
            self.critic = learner(critic, CriticLoss(), read_critic, ("decoder", "value_head"))
        baseline = "critic" if case.samples == 1 else "grpo"
        self.ppo = ppo.PPO(samples=case.samples, baseline=baseline, critic_minibatches=1)
        rows = case.prompts * case.samples
        length = PROMPT + case.samples * (NEW + 1)  # a prompt and its replies, each of which repeats its last token
        self.layout = Layout(case.prompts, length, sound_rows=0, sound_samples=0, share_prompts=case.samples > 1)
        options = EngineOptions(max_rows=rows, max_length=PROMPT + NEW + 1, pages=rows * 8, burst=NEW, burst_seconds=10)
        self.engine = Engine(self.policy.model(), self.tokenizer, options)
        self.asked = [Prompt(self._conversation(i), "", "speed", "exact") for i in range(case.prompts)]
        self.sampling = SamplingParams(temperature=1.0, max_new_tokens=NEW)

    def _conversation(self, number: int) -> Conversation:
        """Of as many tokens as a prompt has."""
        letter = chr(97 + number)
        for count in range(4 * PROMPT):
            for text in (letter * count, f"{letter * count}."):
                made = Conversation((human(text),))
                if len(self.engine.prepare(Request(made)).token_ids) == PROMPT:
                    return made
        raise ValueError(f"no prompt of {PROMPT} tokens")

    def update(self, number: int) -> int:
        sampled = rollout(self.engine, self.asked, self.case.samples, self.sampling, (0, number))
        prepared = [self.engine.prepare(Request(prompt.conversation)) for prompt in self.asked]
        examples = [to_example(each, prepared[each.prompt]) for each in sampled]
        scores = np.array([np.mean([t % 2 == 0 for t in each.token_ids]) for each in sampled], np.float32)
        played = ppo.Rollout(sampled, examples, scores, np.ones(len(scores), bool))
        ppo.update(played, self.ppo, self.layout, self.policy, self.critic)
        self.engine.update(self.policy.model())
        return sum(len(each.token_ids) for each in sampled)

    def seconds(self, updates: int) -> list[float]:
        found = []
        for number in range(WARM + updates):
            start = time.perf_counter()
            self.update(number)
            found.append(time.perf_counter() - start)
        return found[WARM:]

    def rollouts(self, repeat: int) -> tuple[float, float]:
        """Tokens a second of the trainer's rollout, and of the engine alone."""
        rates: tuple[list[float], list[float]] = ([], [])
        for number in range(repeat):
            start = time.perf_counter()
            sampled = rollout(self.engine, self.asked, self.case.samples, self.sampling, (1, number))
            rates[0].append(sum(len(each.token_ids) for each in sampled) / (time.perf_counter() - start))
            requests = [
                Request(prompt.conversation, dataclasses.replace(self.sampling, seed=1_000 * number + 10 * i + j))
                for i, prompt in enumerate(self.asked)
                for j in range(self.case.samples)
            ]
            before, start = self.engine.stats().generated_tokens, time.perf_counter()
            for _ in self.engine.generate(requests):
                pass
            written = self.engine.stats().generated_tokens - before
            rates[1].append(written / (time.perf_counter() - start))
        return statistics.median(rates[0]), statistics.median(rates[1])


class Bytes:
    """A tokenizer in Tunix's words: a byte is a token."""

    def encode(self, text: str, **_) -> list[int]:
        return [3 + byte for byte in str(text).encode()]

    def decode(self, ids, **_) -> str:
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self) -> int:
        return 2

    def eos_id(self) -> int:
        return 1

    def pad_id(self) -> int:
        return 0


def tunix_seconds(case: Case, updates: int) -> list[float]:
    """Between two rewards, which it asks for once an update."""
    from tunix.models.qwen2 import model as qwen2
    from tunix.rl import rl_cluster, utils
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.ppo import ppo_learner
    from tunix.rl.rollout import base_rollout

    config = qwen2.ModelConfig(
        num_layers=LAYERS, vocab_size=VOCABULARY, embed_dim=WIDTH, hidden_dim=HIDDEN, num_heads=HEADS, head_dim=DIM,
        num_kv_heads=KV_HEADS, rope_theta=1_000_000, norm_eps=1e-6, use_tied_embedding=False,
    )  # fmt: skip
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    moments: list[float] = []

    def reward(prompts, completions, **_):
        moments.append(time.perf_counter())
        return [float(np.mean([int(token) % 2 == 0 for token in text.split()] or [0.0])) for text in completions]

    with mesh:
        actor = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
        roles = rl_cluster.Role
        own = (roles.ACTOR, roles.CRITIC, roles.REFERENCE, roles.ROLLOUT)
        cluster = rl_cluster.RLCluster(
            actor=actor,
            critic=utils.create_critic_model(actor) if case.samples == 1 else None,
            reference=actor if case.samples > 1 else None,
            tokenizer=Bytes(),
            cluster_config=rl_cluster.ClusterConfig(
                role_to_mesh=dict.fromkeys(own, mesh),
                training_config=rl_cluster.RLTrainingConfig(
                    actor_optimizer=optax.adamw(RATE),
                    critic_optimizer=optax.adamw(RATE),
                    eval_every_n_steps=10**6,
                    max_steps=WARM + updates + 1,
                ),
                rollout_config=base_rollout.RolloutConfig(
                    max_tokens_to_generate=NEW, max_prompt_length=PROMPT, kv_cache_size=256, temperature=1.0
                ),
            ),
        )
        if case.samples == 1:
            options = ppo_learner.PPOConfig(gamma=1.0, gae_lambda=1.0, beta=0.0)
            learner = ppo_learner.PPOLearner(cluster, options, reward_fns=reward)
        else:
            grpo = grpo_learner.GRPOConfig(num_generations=case.samples, num_iterations=1, beta=0.0)
            learner = grpo_learner.GRPOLearner(cluster, grpo, reward_fns=reward)
        size = PROMPT - 1  # beside the token that begins it
        texts = ["".join(chr(97 + (i + j) % 26) for j in range(size)) for i in range(case.prompts)]
        learner.train([{"prompts": np.array(texts)} for _ in range(WARM + updates + 1)])
    return [after - before for before, after in itertools.pairwise(moments)][WARM:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--without-tunix", action="store_true")
    args = parser.parse_args()
    console = Console(width=110)
    table = Table(title="seconds of an update")
    alone = Table(title="rollouts: tokens a second")
    columns = {table: ("", "ours", "Tunix", "ratio", "bar"), alone: ("", "rollout", "engine", "share", "bar")}
    for each, names in columns.items():
        for name in names:
            each.add_column(name, justify="right" if name else "left")
    for case in CASES:
        ours = Ours(case)
        mine = statistics.median(ours.seconds(args.updates))
        what = f"{case.name}: {case.prompts} prompts × {case.samples}"
        theirs = None if args.without_tunix else statistics.median(tunix_seconds(case, args.updates))
        shown = ("", "") if theirs is None else (f"{theirs:.4f}", f"{theirs / mine:.2f}×")
        table.add_row(what, f"{mine:.4f}", *shown, "2×")
        rate, engine = ours.rollouts(args.updates)
        alone.add_row(what, f"{rate:,.0f}", f"{engine:,.0f}", f"{rate / engine:.2f}", "0.70")
    console.print(table, alone)


if __name__ == "__main__":
    main()
