"""Encoder, adaptor, decoder, Step-Audio, their composition, and adapters beside its matrices."""

from stepaudio_jax.models.adaptor import Adaptor
from stepaudio_jax.models.decoder import Decoder
from stepaudio_jax.models.encoder import AudioEncoder
from stepaudio_jax.models.lora import LoraConfig, add_lora, merge_lora
from stepaudio_jax.models.step_audio import AudioInput, StepAudio, make_critic

__all__ = [
    "Adaptor",
    "AudioEncoder",
    "AudioInput",
    "Decoder",
    "LoraConfig",
    "StepAudio",
    "add_lora",
    "make_critic",
    "merge_lora",
]
