"""Think-incomplete SFT of the 33B, for answering while still thinking (R1.1, mind-paced speaking).

Each record keeps the first paragraphs of its reasoning, a random number of them, and all of its reply; replies with
Markdown or lists are left out. `data build` does that, so that rows can be packed by their true lengths.

Data:      stepaudio data build FILES… --out=FOLDER --tokenizer=CHECKPOINT --think-incomplete=0 --copies=4
Run:       stepaudio train --config=configs/think_incomplete_33b.py --workdir=… --config.init=CHECKPOINT
           --config.data.sources.incomplete.path=FOLDER
Hardware:  as configs/sft_33b.py
"""

import ml_collections

from configs import common, sft_33b


def get_config() -> ml_collections.ConfigDict:
    config = sft_33b.get_config()
    config.data = common.packed("incomplete", tokens=10_240, rows=128)
    return config
