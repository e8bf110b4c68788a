"""Serves Step-Audio-R1 (33B) in bfloat16: 32 conversations of up to 16,384 tokens at once.

Plan:      stepaudio plan --config=configs/serve_33b.py
Hardware:  v6e-8 or v5p 2x2x1
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.stage = "serve"
    config.topology = "v6e:2x4"
    config.model = "33b"
    config.dtype = "bfloat16"
    config.weights = None  # or "int8"
    config.kv_cache = None  # or "int8"
    config.vocab_size = 158_258  # entries of the tokenizer; the rows above are padding
    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": 1, "context": 1, "tensor": -1})

    config.batch_size = 32  # rows that decode together
    config.cache_length = 16_384  # tokens a row
    config.page_size = 64
    config.burst = 16  # decode steps between two looks of the host
    config.prefill_rows = 1
    config.prompt_length = 2_048
    config.encode_chunks = 16  # of 25 s
    return config
