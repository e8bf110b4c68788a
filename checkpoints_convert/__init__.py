"""Hugging Face safetensors ⇄ our checkpoints, exact and in bounded memory.

from_hf.py, to_hf.py, initialise.py (a new model from public base weights), verify.py, inspection.py and synth.py are
the commands that `command.py` lists, each a function to call from Python:

from checkpoints_convert.from_hf import from_hf
from_hf("stepfun-ai/Step-Audio-R1.1", "r1.1", dtype="bf16")
"""
