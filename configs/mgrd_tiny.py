"""Modality-grounded reasoning distillation in small: a tiny model that reasons from captions learns to listen.

Questions come with a caption of the sound, half of which are of another scene. The start is a model that was taught to
reason from the caption (`python -m benchmarks.rl_effects --only listening` makes one).

Data:      stepaudio data miniature texts --records=400 --text-share=1
           stepaudio data build texts/data.jsonl --out=texts/built
Run:       stepaudio rl mgrd --config=configs/mgrd_tiny.py --workdir=… --config.init=CHECKPOINT
           --config.sft.data.sources.text.path=texts/built
Hardware:  two CPU cores
"""

import ml_collections

from configs import common, rlvr_tiny
from stepaudio_jax.miniature import KINDS


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.init = ""
    config.seed = 0
    config.rounds = 2
    config.judge = "small world"  # "none", or "package.module:function" (rl/grounding.py)
    config.rendering = ml_collections.ConfigDict({"length_rule": "hf", "template": "default", "keep_think": False})

    config.rlvr = rlvr_tiny.get_config()
    config.rlvr.steps = config.rlvr.checkpoints.save_every = 10
    config.rlvr.eval_every = 1_000_000
    config.rlvr.rl.row_tokens = 224
    config.rl = config.rlvr.rl
    config.prompts = config.rlvr.prompts
    kinds = tuple(kind for kind in KINDS if kind != "dialogue")
    config.prompts.miniature.update({"records": 600, "wrong_captions": 0.5, "kinds": kinds})

    config.texts = ml_collections.ConfigDict()  # questions in words, reinforced beside: name: path, weight, reward, …

    config.control = ml_collections.ConfigDict({"samples": 4, "most": 2})
    config.distil = ml_collections.ConfigDict({"samples": 8, "most": 1})
    config.filter = ml_collections.ConfigDict({"samples": 8, "least": 3, "most": 6})

    config.sft = common.run()
    config.sft.steps = config.sft.checkpoints.save_every = 40
    config.sft.save_dtype = "float32"
    config.sft.data = common.packed("audio", "text", tokens=1_024, rows=4)
    config.sft.data.sources.text.weight = 0.1
    config.sft.data.window = 1_024
    config.sft.data.threads = 2
    config.sft.optim.learning_rate = 3e-4
    config.sft.optim.end_learning_rate = 3e-5
    config.sft.optim.warmup_steps = 5
    return config
