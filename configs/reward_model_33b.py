"""SFT of a generative reward model on labelled comparisons (R1.5 §3.3): critique first, verdict last.

Records are dialogues like any other: the comparison in the human turn, the critique and its verdict in the assistant's.

Data:      stepaudio data build FILES… --out=FOLDER --tokenizer=CHECKPOINT
Run:       stepaudio train --config=configs/reward_model_33b.py --workdir=… --config.init=CHECKPOINT
           --config.data.sources.comparisons.path=FOLDER
Hardware:  as configs/sft_33b.py
"""

import ml_collections

from configs import common, sft_33b


def get_config() -> ml_collections.ConfigDict:
    config = sft_33b.get_config()
    config.data = common.packed("comparisons", tokens=10_240, rows=128)
    config.optim.learning_rate = 5e-6
    config.optim.end_learning_rate = 5e-7
    return config
