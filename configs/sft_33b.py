"""Supervised fine-tuning of all of Step-Audio-R1 (33B) but its encoder (R1 §4.1, R1.5 §3.2).

Rows of 10,240 tokens, into which dialogues are packed; AdamW with float32 parameters, bfloat16 compute.

Plan:      stepaudio plan --config=configs/sft_33b.py
Hardware:  64 chips of v5p, 128 rows a step in two microbatches; `make plans` has other slices
Floor:     see benchmarks/README.md, "Plans"
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.stage = "supervised"
    config.topology = "v5p:4x4x4"
    config.model = "33b"
    config.init = ""  # a checkpoint to start from: stepaudio convert from-hf …
    config.seed = 0
    config.steps = 1_000
    config.trainable = ("adaptor", "decoder")
    config.remat = "gate"
    config.scan_layers = True
    config.vocab_chunks = 8
    config.microbatches = 2
    config.compute_dtype = "bfloat16"
    config.save_dtype = "bfloat16"
    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})

    config.data = ml_collections.ConfigDict()
    config.data.batch_size = 128  # rows of an optimizer step
    config.data.buckets = ((10_240, 10_240 * 1_280),)  # tokens of a row, samples of its sound: 80 ms a token

    config.optim = ml_collections.ConfigDict()
    config.optim.learning_rate = 1e-5
    config.optim.end_learning_rate = 1e-6
    config.optim.warmup_steps = 50
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0
    config.optim.schedule = "cosine"  # or linear, constant, wsd
    config.optim.decay_steps = 0  # of wsd
    config.optim.groups = ml_collections.ConfigDict()  # "adaptor": rates of its own (training/optimizer.py)
    return config
