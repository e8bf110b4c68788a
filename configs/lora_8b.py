"""LoRA beside every matrix of Step-Audio-2-mini's size (8B): configs/lora_33b.py, smaller.

Plan:      stepaudio plan --config=configs/lora_8b.py
Hardware:  8 chips of v6e
"""

import ml_collections

from configs import lora_33b


def get_config() -> ml_collections.ConfigDict:
    config = lora_33b.get_config()
    config.model = "8b"
    config.topology = "v6e:2x4"
    config.remat = "full"
    return config
