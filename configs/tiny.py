"""Trains the tiny model that ships with the package, on the miniature world.

Run:       make train-tiny   (stepaudio train --config=configs/tiny.py --workdir=runs/tiny)
Hardware:  two CPU cores, at most 45 minutes
Expected:  see stepaudio_jax/assets/tiny/README.md, the card of the shipped checkpoint
"""

import ml_collections

from configs import common
from stepaudio_jax.miniature import KINDS


def get_config() -> ml_collections.ConfigDict:
    config = common.run()
    config.steps = 2800
    config.eval_every = 1400
    config.trainable = ("encoder", "adaptor", "decoder")
    config.scan_layers = False

    config.data = ml_collections.ConfigDict()
    config.data.batch_size = 32
    config.data.batches_per_group = 4
    config.data.group_threads = 1
    config.data.text_share = 0.08
    config.data.silent_share = 0.0
    config.data.curriculum = (
        (200, 1, ("order", "count", "direction", "timbre")),
        (450, 2, ()),
        (800, 3, ()),
        (2800, 5, (*KINDS, "dialogue", "order", "loudness", "arithmetic")),  # the hardest twice as often
    )
    config.data.buckets = ((80, 37_120), (96, 47_360), (112, 55_040), (136, 65_280), (160, 65_280))

    config.optim.learning_rate = 1.5e-3
    config.optim.end_learning_rate = 1e-5
    config.optim.warmup_steps = 100
    config.optim.b2 = 0.98
    config.optim.weight_decay = 0.05
    return config
