"""The last lesson of the tiny model: more of the questions it still gets wrong, at a low rate.

After configs/tiny.py the model hears nearly every event, but slips when it must look back into its own list (which
sound came after which, how many of them were loud).

Run:       make train-tiny   (which runs configs/tiny.py first)
Hardware:  two CPU cores, some six minutes
Expected:  see stepaudio_jax/assets/tiny/README.md, the card of the shipped checkpoint
"""

import ml_collections

from configs import tiny
from stepaudio_jax.miniature import KINDS


def get_config() -> ml_collections.ConfigDict:
    config = tiny.get_config()
    config.init = "runs/tiny/checkpoint"
    config.seed = 1
    config.steps = 450
    config.eval_every = 450
    config.data.text_share = 0.1
    config.data.curriculum = ((450, 5, (*KINDS, *4 * ("dialogue",), *4 * ("order",), "loudness", "arithmetic")),)
    config.optim.learning_rate = 6e-4
    config.optim.warmup_steps = 30
    return config
