"""LoRA (arXiv:2106.09685) beside every matrix of the 33B's decoder: configs/sft_33b.py, its own weights frozen.

Frozen weights take two bytes each where full fine-tuning takes twelve; a rate ten times that of full fine-tuning.

Plan:      stepaudio plan --config=configs/lora_33b.py
Hardware:  8 chips of v5p; `make plans` has 8 chips of v6e
Run:       name a checkpoint in config.init; the folder written holds adapters (stepaudio convert to-hf merges them,
           to-peft makes a PEFT folder)
"""

import ml_collections

from configs import sft_33b


def get_config() -> ml_collections.ConfigDict:
    config = sft_33b.get_config()
    config.topology = "v5p:2x2x2"
    config.trainable = ("lora",)
    config.lora = ml_collections.ConfigDict()
    config.lora.rank = 32
    config.lora.alpha = 64.0
    config.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    config.lora.modules = ("decoder",)
    config.lora.rslora = False
    config.data.batch_size = 16
    config.microbatches = 2
    config.optim.learning_rate = 1e-4
    config.optim.end_learning_rate = 1e-5
    config.optim.weight_decay = 0.0
    return config
