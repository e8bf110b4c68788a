"""Audio-centric mid-training of the 8B (R1.5 §3.1): configs/mid_training_33b.py, smaller.

Plan:      stepaudio plan --config=configs/mid_training_8b.py
Hardware:  32 chips of v6e, 32 rows a step
"""

import ml_collections

from configs import mid_training_33b


def get_config() -> ml_collections.ConfigDict:
    config = mid_training_33b.get_config()
    config.model = "8b"
    config.topology = "v6e:4x8"
    config.remat = "full"
    config.microbatches = 1
    config.data.batch_size = 32
    return config
