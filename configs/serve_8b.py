"""Serves Step-Audio-2-mini's size (8B) in bfloat16 on four chips: configs/serve_33b.py, smaller.

Plan:      stepaudio plan --config=configs/serve_8b.py
Hardware:  v6e-4
"""

import ml_collections

from configs import serve_33b


def get_config() -> ml_collections.ConfigDict:
    config = serve_33b.get_config()
    config.model = "8b"
    config.topology = "v6e:2x2"
    return config
