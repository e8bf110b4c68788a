"""RLHF on the miniature world's dialogues: a tiny policy learns to keep to what was agreed on, and to be good to hear.

One stage mixes dialogues that are judged by a rubric, dialogues that are judged without one, and questions with
verified answers (R1.5 §3.3); a KL of its own in the loss holds the policy to the one that it began as. The judge here
is a rule of the small world; one of your own: --config.reward_model.judge=endpoint --config.reward_model.at=http://…/v1

Run:       stepaudio rl train --config=configs/rlhf_tiny.py --workdir=… --config.init=CHECKPOINT
Hardware:  two CPU cores
"""

import ml_collections

from configs import common, rlvr_tiny
from stepaudio_jax.miniature.judging import ANSWERS


def get_config() -> ml_collections.ConfigDict:
    config = rlvr_tiny.get_config()
    config.prompts.dialogues = common.dialogues()
    config.prompts.miniature.weight = 0.5
    config.prompts.miniature.accuracy = "named"  # in whatever words: a sentence is no mistake
    config.prompts.miniature.kinds = tuple(ANSWERS)
    config.reward_model = common.reward_model()
    config.reward_model.judge = "miniature"

    rl = config.rl
    rl.baseline = "rloo"
    rl.prompts, rl.samples = 64, 6
    rl.minibatches = 2
    rl.row_tokens, rl.rows = 448, 8
    rl.kl.weight = 0.01
    rl.normalise = True
    return config
