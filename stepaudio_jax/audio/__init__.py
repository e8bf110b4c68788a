"""From a file to log-mel chunks: loading, chunking, the front end, and every length rule."""

from stepaudio_jax.audio.chunks import chunk, stack
from stepaudio_jax.audio.lengths import SAMPLE_RATE, audio_tokens
from stepaudio_jax.audio.load import AudioError, AudioTooLong, check_samples, load_audio, load_audio_bytes
from stepaudio_jax.audio.mel import log_mel

__all__ = [
    "SAMPLE_RATE",
    "AudioError",
    "AudioTooLong",
    "audio_tokens",
    "check_samples",
    "chunk",
    "load_audio",
    "load_audio_bytes",
    "log_mel",
    "stack",
]
