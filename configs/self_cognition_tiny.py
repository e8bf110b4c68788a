"""Self-cognition in small: a tiny model that says now and then that it is a text model learns that it hears.

Run:       stepaudio rl self-cognition --config=configs/self_cognition_tiny.py --workdir=… --config.init=CHECKPOINT
Hardware:  two CPU cores
"""

import ml_collections

from configs import common, rlvr_tiny


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.init = ""
    config.seed = 0
    config.judge = "small world"
    config.samples = 4  # replies to each prompt
    config.most_pairs = 8_000
    config.rendering = ml_collections.ConfigDict({"length_rule": "hf", "template": "default", "keep_think": False})
    config.prompts = ml_collections.ConfigDict({"miniature": common.small_world(), "kept": ""})
    config.prompts.miniature.records = 400
    config.rl = rlvr_tiny.get_config().rl

    config.sft = common.run()
    config.sft.steps = config.sft.checkpoints.save_every = 30
    config.sft.save_dtype = "float32"
    config.sft.data = common.packed("own", tokens=1_024, rows=4)
    config.sft.data.window = 1_024
    config.sft.data.threads = 2
    config.sft.optim.learning_rate = 2e-4
    config.sft.optim.warmup_steps = 5

    config.dpo = common.run()
    config.dpo.steps = config.dpo.checkpoints.save_every = 30
    config.dpo.save_dtype = "float32"
    config.dpo.dpo = ml_collections.ConfigDict({"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 0.0})
    config.dpo.data = common.packed("pairs", tokens=1_024, rows=4)
    config.dpo.data.window = 1_024
    config.dpo.data.threads = 2
    config.dpo.optim.learning_rate = 2e-5
    config.dpo.optim.weight_decay = 0.0
    config.dpo.optim.warmup_steps = 3
    return config
