"""Mid-training in small: sound and text-only reasoning of one stored data set in a mixture, four tokens to one.

Data:      as configs/sft_tiny.py
Run:       stepaudio train --config=configs/mid_training_tiny.py --workdir=runs/mid_training_tiny
           --config.data.sources.audio.path=scenes/built --config.data.sources.text.path=scenes/built
Hardware:  two CPU cores, some five minutes
"""

import ml_collections

from configs import common, sft_tiny


def get_config() -> ml_collections.ConfigDict:
    config = sft_tiny.get_config()
    config.data.sources = ml_collections.ConfigDict()
    config.data.sources.audio = common.source("audio", weight=4.0)
    config.data.sources.text = common.source("text", weight=1.0)
    return config
