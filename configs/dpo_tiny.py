"""DPO of the tiny model: answers that were heard, against answers of another scene.

Data:      stepaudio data miniature pairs --records=1000 --preferences
           stepaudio data build pairs/data.jsonl --audio=pairs --out=pairs/built
Run:       stepaudio train --config=configs/dpo_tiny.py --workdir=runs/dpo_tiny
           --config.data.sources.pairs.path=pairs/built
Hardware:  two CPU cores, some five minutes
"""

import ml_collections

from configs import common, sft_tiny


def get_config() -> ml_collections.ConfigDict:
    config = sft_tiny.get_config()
    config.dpo = ml_collections.ConfigDict({"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 0.0})
    config.data = common.packed("pairs", tokens=1_024, rows=4)
    config.data.window = 1_024
    config.data.threads = 2
    config.steps = config.eval_every = 60
    config.optim.learning_rate = 2e-5
    config.optim.end_learning_rate = 2e-6
    config.optim.weight_decay = 0.0
    return config
