"""SFT of the tiny model on a stored data set: the whole way of one's own data, on a laptop.

Data:      stepaudio data miniature scenes --records=2000
           stepaudio data build scenes/data.jsonl --audio=scenes --out=scenes/built
Run:       stepaudio train --config=configs/sft_tiny.py --workdir=runs/sft_tiny
           --config.data.sources.scenes.path=scenes/built
Hardware:  two CPU cores, some five minutes
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.run()
    config.init = "tiny"
    config.steps = config.eval_every = 100
    config.log_every = 5
    config.checkpoints.save_every = 50
    config.data = common.packed("scenes", tokens=1_024, rows=4)
    config.data.window = 1_024
    config.data.threads = 2
    config.optim.learning_rate = 3e-4
    config.optim.end_learning_rate = 3e-5
    config.optim.warmup_steps = 10
    return config
