"""Reinforcement learning with verified rewards on the miniature world, from a tiny policy that is right half the time.

The recipe in small: rewards 0.8 for the right answer and 0.2 for reasoning (R1 §4.1), PPO with a
critic, one policy step a rollout.

Run:       stepaudio rl train --config=configs/rlvr_tiny.py --workdir=… --config.init=CHECKPOINT
Hardware:  two CPU cores
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.reinforcement()
    config.model = "tiny"
    config.scan_layers = False
    config.steps = 40
    config.eval_every = 10
    config.save_dtype = "float32"
    config.trainable = ("adaptor", "decoder")
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 2
    config.critic_optim.learning_rate = 1e-3
    config.critic_optim.warmup_steps = 4

    config.prompts.miniature = common.small_world()
    rl = config.rl
    rl.prompts = 48
    rl.samples = 8
    rl.max_new_tokens = 96
    rl.share_prompts = True
    rl.row_tokens = 320
    rl.rows = 8
    rl.sound_rows = 8
    rl.sound_units = 64
    rl.critic_minibatches = 2
    rl.engine.max_rows = 64
    return config
