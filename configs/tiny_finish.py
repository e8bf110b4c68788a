"""The last lesson of the tiny model, from configs/tiny.py's checkpoint: silence is met with a guess.

Without it the model hears sounds in a silent clip. Why not from the start: the one run that did so (a share of 0.04
throughout) never told bright tones from hollow ones.

Run:       make train-tiny   (which runs configs/tiny.py first)
Hardware:  two CPU cores, some five minutes
Expected:  see stepaudio_jax/assets/tiny/README.md, the card of the shipped checkpoint
"""

import ml_collections

from configs import tiny
from stepaudio_jax.miniature import KINDS


def get_config() -> ml_collections.ConfigDict:
    config = tiny.get_config()
    config.init = "runs/tiny/checkpoint"
    config.seed = 1
    config.steps = 400
    config.eval_every = 400
    config.data.silent_share = 0.08
    config.data.curriculum = ((400, 5, (*KINDS, "dialogue", "order", "loudness", "arithmetic")),)
    config.optim.learning_rate = 6e-4
    config.optim.warmup_steps = 30
    return config
