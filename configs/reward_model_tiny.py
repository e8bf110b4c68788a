"""SFT of a tiny judge on labelled comparisons: critique first, verdict last (R1.5 §3.3).

Data:      stepaudio rl judge-data FILES… --out=lessons      (or `python -m benchmarks.tiny_judge`, which makes its own)
Run:       stepaudio train --config=configs/reward_model_tiny.py --workdir=… --config.data.sources.lessons.path=lessons
Hardware:  two CPU cores, half an hour, for a judge that mixes the two replies up. To agree with its labels it needs
           --config.steps=1500 --config.data.batch_size=16 and 48,000 lessons: three minutes on one H100
"""

import ml_collections

from configs import common, sft_tiny


def get_config() -> ml_collections.ConfigDict:
    config = sft_tiny.get_config()
    config.data = common.packed("lessons", tokens=2_048, rows=4)
    config.data.window = 1_024
    config.data.threads = 2
    config.steps = config.eval_every = 300
    config.checkpoints.save_every = 100
    config.optim.learning_rate = 1e-3
    config.optim.end_learning_rate = 1e-4
    return config
