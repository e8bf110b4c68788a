"""RLHF of Step-Audio-R1.5 (33B) with a rubric-guided generative reward model (R1.5 §3.3).

Dialogues with a rubric and without one, and questions with verified answers, mixed in one stage by their weights; the
policy is held to the one that it began as by a KL of its own in the loss. The judge is a server on a slice of its own,
as `stepaudio serve` starts one (planned: configs/serve_33b.py). On the same mesh there is room for it beside batches of
half as many rows: --config.reward_model.judge=checkpoint --config.rl.rows=32 --config.reward_model.at=CHECKPOINT

Data:      stepaudio data build FILES… --out=gs://…/dialogues --tokenizer=CHECKPOINT, with columns rubric and reference
Plan:      stepaudio plan --config=configs/rlhf_33b.py
Run:       JUDGE_API_KEY=… stepaudio rl train --config=configs/rlhf_33b.py --workdir=gs://… --config.init=CHECKPOINT
           --config.reward_model.at=http://…/v1 --config.prompts.sources.rubrics.path=gs://…/rubrics
           --config.prompts.sources.dialogues.path=gs://… --config.prompts.sources.speech.path=gs://…
Hardware:  128 chips of v5p, and a slice for the judge
"""

import ml_collections

from configs import common, rlvr_33b


def get_config() -> ml_collections.ConfigDict:
    config = rlvr_33b.get_config()
    preference = {"path": "", "weight": 2.0, "reward": "preference", "accuracy": "", "truth": "reference"}
    verified = {"path": "", "weight": 1.0, "reward": "audio", "accuracy": "exact", "truth": "answer"}
    config.prompts.sources = ml_collections.ConfigDict(
        {"rubrics": preference, "dialogues": dict(preference), "speech": verified}
    )
    config.reward_model = common.reward_model()
    config.reward_model.judge = "endpoint"
    config.reward_model.at_once = 64
    config.reward_model.max_rows = 8  # where it lies on the same mesh

    config.rl.kl.weight = 0.01
    config.rl.normalise = True
    config.rl.guards.verdict = 0.5
    config.rl.guards.repetition = 0.5
    return config
