"""Self-cognition correction of the 33B by direct preference optimisation (R1 §6.3; arXiv:2305.18290).

8,000 pairs of a reply that uses what it hears and one that calls itself a text model, from the model's own samples; R1
reports its error going from 2.63 % to 0.02 %. What the reference thinks of every pair is computed once, at the start.

Data:      records with `rejected_response` (or chosen and rejected): stepaudio data build FILES… --out=FOLDER
Plan:      stepaudio plan --config=configs/dpo_33b.py
Run:       stepaudio train --config=configs/dpo_33b.py --workdir=… --config.init=CHECKPOINT
           --config.data.sources.pairs.path=FOLDER
Hardware:  64 chips of v5p, 64 rows a step: some 8,000 pairs of 1,000 tokens in 25 steps an epoch
"""

import ml_collections

from configs import common, sft_33b


def get_config() -> ml_collections.ConfigDict:
    config = sft_33b.get_config()
    config.steps = 50
    config.microbatches = 1
    config.dpo = ml_collections.ConfigDict({"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 0.0})
    config.data = common.packed("pairs", tokens=10_240, rows=64)
    config.optim.learning_rate = 5e-7
    config.optim.end_learning_rate = 5e-8
    config.optim.warmup_steps = 5
    config.optim.weight_decay = 0.0
    config.checkpoints.save_every = 25
    return config
