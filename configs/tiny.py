"""Trains the tiny model that ships with the package, on the miniature world.

What is hard is the timbre of high tones, whose harmonics lie above 1.4 kHz: whether a run learned it was once a matter
of luck. Two things help. The first lesson is long and of single sounds, most of them tones, cheap in a bucket of their
own; tones are frequent in the second and third too. And the rate rises slowly to 1e-3, so that this first lesson has
small steps. benchmarks/README.md has what was tried.

Run:       make train-tiny   (stepaudio train --config=configs/tiny.py --workdir=runs/tiny)
Hardware:  two CPU cores, at most 45 minutes
Expected:  see stepaudio_jax/assets/tiny/README.md, the card of the shipped checkpoint
"""

import ml_collections

from configs import common
from stepaudio_jax.miniature import KINDS


def get_config() -> ml_collections.ConfigDict:
    config = common.run()
    config.steps = 3000
    config.eval_every = 1500
    config.trainable = ("encoder", "adaptor", "decoder")
    config.scan_layers = False

    config.data = ml_collections.ConfigDict()
    config.data.batch_size = 32
    config.data.batches_per_group = 4
    config.data.group_threads = 1
    config.data.text_share = 0.08
    config.data.silent_share = 0.0
    config.data.curriculum = (
        (350, 1, ("timbre", "timbre", "order", "count", "direction")),  # single sounds, most of them tones
        (650, 2, ("timbre", "timbre", "pitch", "pitch", "direction", "tempo", "loudness", "order", "count")),
        (1000, 3, (*KINDS, "timbre", "pitch")),
        (3000, 5, (*KINDS, "dialogue", "order", "loudness", "arithmetic")),  # the hardest twice as often
    )
    config.data.buckets = ((56, 20_480), (80, 37_120), (96, 47_360), (112, 55_040), (136, 65_280), (160, 65_280))

    config.optim.learning_rate = 1e-3
    config.optim.end_learning_rate = 1e-5
    config.optim.warmup_steps = 400
    config.optim.b2 = 0.98
    config.optim.weight_decay = 0.05
    return config
