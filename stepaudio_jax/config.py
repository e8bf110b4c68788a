"""Model sizes, as frozen dataclasses that also read the released config.json files.

Field names are the ones the released files use, so a config can be compared with them line by
line. Three shapes of config.json exist and all are read by `StepAudioConfig.from_hf`:

  nested  `StepAudio2ForCausalLM`: `text_config` and `audio_encoder_config`
  flat    `StepAudioForCausalLMV2`: decoder keys at the top level beside `audio_encoder_config`
  parts   `Qwen2ForCausalLM` (a decoder alone) and `Qwen2AudioForConditionalGeneration` (an audio
          encoder), the public base weights a new model can start from
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath


class ConfigError(ValueError):
    """A config that cannot be used; the message names the field, what was expected and found."""


@dataclasses.dataclass(frozen=True)
class AudioEncoderConfig:
    """The Qwen2-Audio encoder (25 Hz) and the adaptor behind it (12.5 Hz)."""

    n_mels: int = 128
    n_audio_ctx: int = 1500
    n_audio_state: int = 1280
    n_audio_head: int = 20
    n_audio_layer: int = 32
    llm_dim: int = 5120
    kernel_size: int = 3
    adapter_stride: int = 2
    adapter_state: int = 2048
    """Width between the adaptor's two linear layers: 2048 in every release, whose files do not name it."""

    def __post_init__(self):
        _positive(self, "audio_encoder_config")
        _divides(self, "audio_encoder_config", "n_audio_state", "n_audio_head")
        if self.kernel_size != 3 or self.adapter_stride != 2:
            raise ConfigError(
                "audio_encoder_config: only kernel_size 3 with adapter_stride 2 is defined by the release, "
                f"found {self.kernel_size} and {self.adapter_stride}"
            )

    @property
    def head_dim(self) -> int:
        return self.n_audio_state // self.n_audio_head


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary embedding scaling, as `rope_scaling` in a Hugging Face config: "linear" or "yarn"."""

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self):
        if self.rope_type not in ("linear", "yarn"):
            raise ConfigError(f'rope_scaling.rope_type: expected "linear" or "yarn", found "{self.rope_type}"')
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"rope_scaling.factor: expected at least 1, found {self.factor}")

    @classmethod
    def from_hf(cls, values: Mapping[str, Any] | None) -> RopeScaling | None:
        if not values:
            return None
        values = dict(values)
        rope_type = values.pop("rope_type", None) or values.pop("type", None) or "default"
        values.pop("type", None)
        values.pop("rope_theta", None)
        if rope_type == "default":
            return None
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"rope_scaling: unknown keys {unknown}; known are {sorted(known)}")
        if "factor" not in values and rope_type in ("linear", "yarn"):
            raise ConfigError(f'rope_scaling: "{rope_type}" needs a "factor"')
        arguments: dict[str, Any] = {"factor": 1.0} | values
        return cls(rope_type=rope_type, **arguments)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The Qwen2.5 decoder. Every size comes from the file, `rms_norm_eps` too (R1.1 1e-5, mini 1e-6)."""

    vocab_size: int = 158720
    hidden_size: int = 5120
    intermediate_size: int = 27648
    num_hidden_layers: int = 64
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 65536
    tie_word_embeddings: bool = False

    def __post_init__(self):
        _positive(self, "text_config")
        _divides(self, "text_config", "num_attention_heads", "num_key_value_heads")
        if self.head_dim % 2:
            raise ConfigError(f"text_config.head_dim: rotary embedding needs an even size, found {self.head_dim}")


@dataclasses.dataclass(frozen=True)
class StepAudioConfig:
    """Decoder and audio encoder together. Either may be None for a config.json that describes only one."""

    text_config: DecoderConfig | None
    audio_encoder_config: AudioEncoderConfig | None
    eos_token_ids: tuple[int, ...] = (151643, 151645, 151665)
    pad_token_id: int = 151643

    def __post_init__(self):
        text, audio = self.text_config, self.audio_encoder_config
        if text and audio and text.hidden_size != audio.llm_dim:
            raise ConfigError(
                f"audio_encoder_config.llm_dim: expected the decoder's hidden_size {text.hidden_size}, "
                f"found {audio.llm_dim}"
            )

    @property
    def decoder(self) -> DecoderConfig:
        if self.text_config is None:
            raise ConfigError("this config describes an audio encoder only, it has no decoder")
        return self.text_config

    @property
    def audio(self) -> AudioEncoderConfig:
        if self.audio_encoder_config is None:
            raise ConfigError("this config describes a decoder only, it has no audio encoder")
        return self.audio_encoder_config

    def with_yarn(self, factor: float) -> StepAudioConfig:
        """The same model over `factor` times as many positions, by YaRN (arXiv:2309.00071).

        It was no part of the release, which was neither trained nor tested with it: expect answers about short sound to
        change too, and take the smallest factor that is enough.

        Raises:
          ConfigError: a factor below 1, or positions that are scaled already, in another way or by another factor.
        """
        decoder = self.decoder
        scaling = decoder.rope_scaling or RopeScaling("yarn", float(factor))
        if (scaling.rope_type, scaling.factor) != ("yarn", factor):
            raise ConfigError(
                f'text_config.rope_scaling: expected none or "yarn" with factor {factor:g}, which was asked for, found '
                f'"{scaling.rope_type}" with factor {scaling.factor:g}; leave yarn_factor out to use that'
            )
        trained = scaling.original_max_position_embeddings or decoder.max_position_embeddings
        scaling = dataclasses.replace(scaling, original_max_position_embeddings=trained)
        positions = max(decoder.max_position_embeddings, int(trained * factor))
        text = dataclasses.replace(decoder, rope_scaling=scaling, max_position_embeddings=positions)
        return dataclasses.replace(self, text_config=text)

    @classmethod
    def preset(cls, name: str) -> StepAudioConfig:
        """The named size: "33b" (Step-Audio-R1.1), "8b" (Step-Audio-2-mini) or "tiny" (this project's own)."""
        if name not in PRESETS:
            raise ConfigError(f'preset: expected one of {", ".join(PRESETS)}, found "{name}"')
        return PRESETS[name]

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> StepAudioConfig:
        """Reads a parsed config.json of any of the three shapes.

        Raises:
          ConfigError: an architecture that is not ours, or a key that is missing or inconsistent.
        """
        architecture = (values.get("architectures") or [""])[0]
        if architecture == "Qwen2AudioForConditionalGeneration":
            return cls(None, _encoder_from_qwen2_audio(values.get("audio_config", {})))
        audio = values.get("audio_encoder_config")
        text = values.get("text_config", values)
        if architecture not in ("StepAudio2ForCausalLM", "StepAudioForCausalLMV2", "Qwen2ForCausalLM"):
            raise ConfigError(
                "architectures: expected StepAudio2ForCausalLM, StepAudioForCausalLMV2, Qwen2ForCausalLM or "
                f'Qwen2AudioForConditionalGeneration, found "{architecture}"'
            )
        if audio is None and architecture != "Qwen2ForCausalLM":
            raise ConfigError(f"audio_encoder_config: missing from a {architecture} config")
        eos = values.get("eos_token_id", text.get("eos_token_id", 151643))
        eos = (eos,) if isinstance(eos, int) else tuple(eos)
        # Only the end-of-text id is in the file; generation also ends a turn (MODEL.md §1).
        stops = (*eos, *(i for i in (151645, 151665) if i not in eos and max(eos) >= 151643))
        return cls(
            _decoder_from_hf(text),
            _known(AudioEncoderConfig, audio, "audio_encoder_config") if audio is not None else None,
            eos_token_ids=stops,
            pad_token_id=values.get("pad_token_id", text.get("pad_token_id")) or eos[0],
        )

    def to_hf(self, shape: str = "nested") -> dict[str, Any]:
        """A config.json in one of the shapes above: "nested", "flat", or of the parts "decoder" and "encoder"."""
        if shape == "encoder":
            sizes = {theirs: getattr(self.audio, ours) for ours, theirs in _QWEN2_AUDIO_NAMES.items()}
            audio = {"model_type": "qwen2_audio_encoder", "encoder_ffn_dim": 4 * self.audio.n_audio_state, **sizes}
            return {
                "architectures": ["Qwen2AudioForConditionalGeneration"],
                "model_type": "qwen2_audio",
                "audio_config": audio,
            }
        text = dataclasses.asdict(self.decoder)
        text |= {"rope_scaling": _rope_to_hf(self.decoder.rope_scaling), "hidden_act": "silu"}
        ids = {"eos_token_id": list(self.eos_token_ids), "pad_token_id": self.pad_token_id}
        if shape == "decoder":
            return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **text, **ids}
        text["num_attention_groups"] = self.decoder.num_key_value_heads
        audio = {"audio_encoder_config": dataclasses.asdict(self.audio)}
        if shape == "flat":
            return {
                "architectures": ["StepAudioForCausalLMV2"],
                "model_type": "step_audio_qwen2",
                **text,
                **audio,
                **ids,
            }
        if shape != "nested":
            raise ConfigError(f'shape: expected nested, flat, decoder or encoder, found "{shape}"')
        return {
            "architectures": ["StepAudio2ForCausalLM"],
            "model_type": "step_audio_2",
            "text_config": text,
            **audio,
            **ids,
        }

    @classmethod
    def read(cls, path: epath.PathLike, *, yarn_factor: float | None = None) -> StepAudioConfig:
        """Reads a config.json file (or the one in a folder), with `yarn_factor` as `with_yarn` makes of it.

        Raises:
          ConfigError: what is wrong, and in which file.
        """
        path = epath.Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            config = cls.from_hf(json.loads(path.read_text()))
            return config if yarn_factor is None else config.with_yarn(yarn_factor)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; a checkpoint folder holds a config.json") from None
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: not JSON ({error})") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _decoder_from_hf(text: Mapping[str, Any]) -> DecoderConfig:
    values = dict(text)
    if (activation := values.get("hidden_act", "silu")) != "silu":
        raise ConfigError(f'text_config.hidden_act: expected "silu", found "{activation}"')
    if values.get("use_sliding_window"):
        raise ConfigError("text_config.use_sliding_window: the release attends to everything, found true")
    groups = values.get("num_key_value_heads", values.get("num_attention_groups"))
    if groups is None:
        raise ConfigError("text_config.num_key_value_heads: missing (as is num_attention_groups)")
    if values.get("num_attention_groups", groups) != groups:
        raise ConfigError(
            f"text_config.num_attention_groups: expected num_key_value_heads {groups}, "
            f"found {values['num_attention_groups']}"
        )
    values["num_key_value_heads"] = groups
    rope = values.get("rope_parameters") or values.get("rope_scaling")  # transformers 5 renamed it
    values["rope_scaling"] = RopeScaling.from_hf(rope)
    if "rope_theta" not in values:
        if not rope or "rope_theta" not in rope:
            raise ConfigError("text_config.rope_theta: missing")
        values["rope_theta"] = rope["rope_theta"]
    for key in ("hidden_size", "num_attention_heads"):
        if key not in values:
            raise ConfigError(f"text_config.{key}: missing")
    if not values.get("head_dim"):
        _require(
            values["hidden_size"] % values["num_attention_heads"] == 0,
            "text_config.hidden_size",
            f"a multiple of {values['num_attention_heads']} heads",
            values["hidden_size"],
        )
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    values.setdefault("tie_word_embeddings", False)
    return _known(DecoderConfig, values, "text_config")


_QWEN2_AUDIO_NAMES = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
}


def _encoder_from_qwen2_audio(audio: Mapping[str, Any]) -> AudioEncoderConfig:
    defaults = AudioEncoderConfig()  # Qwen2-Audio omits the keys that keep its class defaults
    return AudioEncoderConfig(
        **{ours: audio.get(theirs, getattr(defaults, ours)) for ours, theirs in _QWEN2_AUDIO_NAMES.items()}
    )


def _known(cls, values: Mapping[str, Any], where: str):
    """Builds `cls` from the keys it knows; a size the file leaves out is an error, never a default."""
    optional = {"rope_scaling", "adapter_state", "kernel_size", "adapter_stride"}
    fields = [f.name for f in dataclasses.fields(cls)]
    if missing := [name for name in fields if name not in values and name not in optional]:
        raise ConfigError(f"{where}: missing {', '.join(missing)}")
    return cls(**{name: values[name] for name in fields if name in values})


def _rope_to_hf(rope: RopeScaling | None) -> dict[str, Any] | None:
    return {k: v for k, v in dataclasses.asdict(rope).items() if v is not None} if rope else None


def _positive(config, where: str):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _require(value > 0, f"{where}.{field.name}", "a positive number", value)


def _divides(config, where: str, total: str, part: str):
    whole, by = getattr(config, total), getattr(config, part)
    _require(whole % by == 0, f"{where}.{total}", f"a multiple of {part} {by}", whole)


def _require(ok: bool, field: str, expected: str, found):
    if not ok:
        raise ConfigError(f"{field}: expected {expected}, found {found}")


PRESETS: dict[str, StepAudioConfig] = {
    "33b": StepAudioConfig(DecoderConfig(), AudioEncoderConfig()),
    "8b": StepAudioConfig(
        DecoderConfig(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            rms_norm_eps=1e-6,
            max_position_embeddings=16384,
        ),
        AudioEncoderConfig(llm_dim=3584),
    ),
    "tiny": StepAudioConfig(
        DecoderConfig(
            vocab_size=1024,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            rms_norm_eps=1e-6,
            rope_theta=1e4,
            max_position_embeddings=4096,
        ),
        AudioEncoderConfig(n_audio_state=128, n_audio_head=4, n_audio_layer=3, llm_dim=192, adapter_state=384),
        eos_token_ids=(0, 1),
        pad_token_id=0,
    ),
}
