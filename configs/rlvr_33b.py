"""Reinforcement with verified rewards of Step-Audio-R1 (33B): PPO with a critic, 16 replies to a prompt (R1 §4.1).

128 prompts an update, of 5,000 in all (2,000 of text, 3,000 of sound), each answered right 3 to 6 times of 8 by the
model of the round before (`stepaudio rl filter`); sequences of at most 10,240 tokens; clip 0.2, γ = λ = 1, no KL.

Data:      stepaudio data build FILES… --out=gs://…/maths --tokenizer=CHECKPOINT, and so for speech
Plan:      stepaudio plan --config=configs/rlvr_33b.py
Run:       stepaudio rl train --config=configs/rlvr_33b.py --workdir=gs://… --config.init=CHECKPOINT
           --config.prompts.sources.maths.path=gs://…/maths --config.prompts.sources.speech.path=gs://…/speech
Hardware:  128 chips of v5p
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.reinforcement()
    config.topology = "v5p:4x4x8"
    config.model = "33b"
    config.remat = "gate"
    config.vocab_chunks = 8
    config.compute_dtype = "bfloat16"
    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": 32, "context": 1, "tensor": 4})
    config.optim.warmup_steps = config.critic_optim.warmup_steps = 50
    config.prompts.sources = ml_collections.ConfigDict(
        {
            "maths": {"path": "", "weight": 2.0, "reward": "maths", "accuracy": "", "truth": "answer"},
            "speech": {"path": "", "weight": 3.0, "reward": "audio", "accuracy": "exact", "truth": "answer"},
        }
    )
    config.rl.sound_rows, config.rl.sound_units = 128, 5_120  # a row of sound to a chip
    config.rl.engine.max_rows = 8  # of each lane
    return config
