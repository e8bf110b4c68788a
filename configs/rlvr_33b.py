"""Reinforcement learning with verified rewards of the 33B, text and sound together (R1 §4.1, §4.2).

PPO without KL: 16 replies to a prompt, γ = λ = 1, rewards at the last token (RECIPE §2); rates and the critic's twelve
steps an update are those of RECIPE §3. R1 trains on 2,000 questions of text and 3,000 of speech.

Data:      records with the answer in a column or in the last turn: stepaudio data build FILES… --out=FOLDER
Plan:      stepaudio plan --config=configs/rlvr_33b.py
Run:       stepaudio rl train --config=configs/rlvr_33b.py --workdir=… --config.init=CHECKPOINT
           --config.prompts.sources.text.path=FOLDER --config.prompts.sources.audio.path=FOLDER
Hardware:  128 chips of v5p
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.reinforcement()
    config.topology = "v5p:4x4x8"
    config.model = "33b"
    config.remat = "full"
    config.vocab_chunks = 8
    config.compute_dtype = "bfloat16"
    for name, weight, reward, accuracy in (("text", 0.4, "maths", ""), ("audio", 0.6, "audio", "exact")):
        config.prompts.sources[name] = ml_collections.ConfigDict(
            {"path": "", "weight": weight, "reward": reward, "accuracy": accuracy, "truth": ""}
        )
    config.rl.rows = 128
    config.rl.sound_rows = 128
    return config
