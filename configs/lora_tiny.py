"""LoRA (arXiv:2106.09685) beside the shipped tiny model's decoder, on configs/tiny_finish.py's scenes: two minutes.

Run:       stepaudio train --config=configs/lora_tiny.py --workdir=runs/lora_tiny
           stepaudio ask --checkpoint=runs/lora_tiny/checkpoint FILE QUESTION
Hardware:  two CPU cores
"""

import ml_collections

from configs import tiny_finish


def get_config() -> ml_collections.ConfigDict:
    config = tiny_finish.get_config()
    config.init = "tiny"
    config.trainable = ("lora",)
    config.lora = ml_collections.ConfigDict()
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    config.lora.modules = ("decoder",)
    config.lora.rslora = False
    config.steps = config.eval_every = 100
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 10
    return config
