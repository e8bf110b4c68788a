"""From a file to log-mel chunks: loading, chunking, the front end, and every length rule."""

from stepaudio_jax.audio.chunks import chunk, stack
from stepaudio_jax.audio.errors import AudioError, AudioTooLong, AudioWarning, collect_warnings
from stepaudio_jax.audio.lengths import SAMPLE_RATE, audio_tokens
from stepaudio_jax.audio.load import check_samples, load_audio, load_audio_array, load_audio_bytes
from stepaudio_jax.audio.mel import log_mel

__all__ = [
    "SAMPLE_RATE",
    "AudioError",
    "AudioTooLong",
    "AudioWarning",
    "audio_tokens",
    "check_samples",
    "chunk",
    "collect_warnings",
    "load_audio",
    "load_audio_array",
    "load_audio_bytes",
    "log_mel",
    "stack",
]
