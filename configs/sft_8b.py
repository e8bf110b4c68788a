"""Supervised fine-tuning of all of Step-Audio-2-mini's size (8B) but its encoder: configs/sft_33b.py, smaller.

Plan:      stepaudio plan --config=configs/sft_8b.py
Hardware:  16 chips of v5p, 32 rows a step
"""

import ml_collections

from configs import sft_33b


def get_config() -> ml_collections.ConfigDict:
    config = sft_33b.get_config()
    config.model = "8b"
    config.topology = "v5p:2x2x4"
    config.data.batch_size = 32
    return config
