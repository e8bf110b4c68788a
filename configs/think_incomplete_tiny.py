"""Think-incomplete SFT of the tiny model (configs/think_incomplete_33b.py).

Data:      stepaudio data miniature scenes --records=2000
           stepaudio data build scenes/data.jsonl --audio=scenes --out=scenes/incomplete --think-incomplete=0 --copies=2
Run:       stepaudio train --config=configs/think_incomplete_tiny.py --workdir=runs/think_incomplete_tiny
           --config.data.sources.scenes.path=scenes/incomplete
Hardware:  two CPU cores, some five minutes
"""

import ml_collections

from configs import sft_tiny


def get_config() -> ml_collections.ConfigDict:
    return sft_tiny.get_config()
