"""PPO of a tiny judge on whether its verdicts are right (R1.5 §3.3), after configs/reward_model_tiny.py.

Data:      that config's lessons; their column `level` is the truth
Run:       stepaudio rl train --config=configs/reward_model_ppo_tiny.py --workdir=… --config.init=JUDGE
           --config.prompts.sources.lessons.path=lessons
Hardware:  two CPU cores
"""

import ml_collections

from configs import rlvr_tiny


def get_config() -> ml_collections.ConfigDict:
    config = rlvr_tiny.get_config()
    del config.prompts.miniature
    config.prompts.sources.lessons = ml_collections.ConfigDict(
        {"path": "", "weight": 1.0, "reward": "verdict", "accuracy": "", "truth": "level"}
    )
    config.trainable = ("decoder",)
    config.optim.learning_rate = 1e-4
    rl = config.rl
    rl.prompts, rl.samples = 32, 4
    rl.max_new_tokens = 160
    rl.row_tokens, rl.rows = 1_536, 4
    rl.sound_rows = 0
    return config
