"""Cold-start SFT of all of Step-Audio-R1 (33B) but its encoder (R1 §4.1, R1.5 §3.2).

Dialogues packed into rows of 10,240 tokens, their sound into rows of as many units of 80 ms; AdamW with float32
parameters, bfloat16 compute. Of the audio data a tenth of the tokens is to carry reasoning (R1 §4.1), the rest the
empty think; 1 B tokens of text stand beside 4 B of audio.

Data:      stepaudio data check FILES…; stepaudio data build FILES… --out=gs://…/cold_start --tokenizer=CHECKPOINT
Plan:      stepaudio plan --config=configs/sft_33b.py
Run:       stepaudio train --config=configs/sft_33b.py --workdir=gs://… --config.init=CHECKPOINT
           --config.data.sources.audio_cot.path=gs://…/cold_start, and so for the other two (launch/README.md)
Hardware:  64 chips of v5p, 128 rows a step in two microbatches; `make plans` has other slices
Floor:     see benchmarks/README.md, "Plans"
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.run()
    config.topology = "v5p:4x4x4"
    config.model = "33b"
    config.remat = "gate"
    config.vocab_chunks = 8
    config.microbatches = 2
    config.compute_dtype = "bfloat16"
    config.data = common.packed(tokens=10_240, rows=128)
    config.data.sources.audio_cot = common.source("audio", "cot", weight=0.4)
    config.data.sources.audio_plain = common.source("audio", "empty_think", weight=3.6)
    config.data.sources.text = common.source("text", weight=1.0)
    return config
