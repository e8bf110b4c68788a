"""Records as other tools write them, to Samples: a file per family, each opening with a record as an example.

    swift       messages with text, `audios` beside them (ms-swift; LLaMA-Factory in its OpenAI form)
    sharegpt    conversations of from/value, `audios` beside them (LLaMA-Factory)
    chat        messages whose content is a list of parts (Hugging Face, OpenAI, TRL)
    verl        a prompt, and in `reward_model` what its reward is computed from
"""

from stepaudio_jax.data.formats.parsing import FORMATS, detect, parse

__all__ = ["FORMATS", "detect", "parse"]
