"""Audio-centric mid-training of the 33B (R1.5 §3.1): sound and text-only reasoning in one mixture, from base weights.

The step is that of configs/sft_33b.py; sources, rates and the length of the run are its own.

Plan:      stepaudio plan --config=configs/mid_training_33b.py
Hardware:  64 chips of v5p, 128 rows a step in two microbatches
"""

import ml_collections

from configs import common, sft_33b


def get_config() -> ml_collections.ConfigDict:
    config = sft_33b.get_config()
    config.steps = 20_000
    config.checkpoints.save_every = 500
    config.data = common.packed(tokens=10_240, rows=128)
    config.data.sources.audio = common.source("audio", weight=4.0)
    config.data.sources.text = common.source("text", weight=1.0)
    config.optim.learning_rate = 2e-5
    config.optim.end_learning_rate = 2e-6
    config.optim.warmup_steps = 500
    return config
