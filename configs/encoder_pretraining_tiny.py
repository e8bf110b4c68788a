"""Pretraining of an audio encoder, in small: encoder and adaptor learn to be heard by a decoder that stays as it is.

The released encoder was trained by others and stays frozen in every stage; only the tiny model needs this.

Data:      as configs/sft_tiny.py
Run:       stepaudio train --config=configs/encoder_pretraining_tiny.py --workdir=runs/encoder_pretraining_tiny
           --config.data.sources.scenes.path=scenes/built
Hardware:  two CPU cores, some eight minutes
"""

import ml_collections

from configs import common, sft_tiny


def get_config() -> ml_collections.ConfigDict:
    config = sft_tiny.get_config()
    config.trainable = ("encoder", "adaptor")
    config.data.sources = ml_collections.ConfigDict({"scenes": common.source("audio")})
    config.optim.learning_rate = 1e-3
    return config
