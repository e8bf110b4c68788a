"""Encoder, adaptor, decoder, and Step-Audio, their composition."""

from stepaudio_jax.models.adaptor import Adaptor
from stepaudio_jax.models.decoder import Decoder
from stepaudio_jax.models.encoder import AudioEncoder
from stepaudio_jax.models.step_audio import AudioInput, StepAudio

__all__ = ["Adaptor", "AudioEncoder", "AudioInput", "Decoder", "StepAudio"]
